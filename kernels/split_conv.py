"""Sums of 3x3 convolutions over a few positions, in parts: each program has a share of the taps and channels.

With few positions there are tiles for all multiprocessors only when the sums are parted. Where lines are 16, 32, …
positions long a tile is whole lines of the picture without its frame: counted along framed lines, a fifth of the tiles
at 16x16 would be frame. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels.launch import (
    Blocks,
    launch,
    matrix,
    prefetch,
    product_options,
    shared_memory,
    uses_descriptors,
)

# Programs that sums are parted for: one for each multiprocessor of an H100.
PROGRAMS = 132
# Positions of a line: at 8x8 a tile is all of the picture, and finishing the many parts costs what the tiles save.
WIDTHS = 16, 32, 64
# Channels from which on larger tiles pay off, which leave more parts to finish.
DEEP = 1280


def fits_lines(framed: Tensor, stride: int) -> bool:
    """Whether tiles of whole lines cover a picture and nothing else."""
    whole = framed.shape[3] - 2 in WIDTHS and framed.shape[1] % 128 == 0
    return stride == 1 and whole and uses_descriptors(framed)


def parts_of(steps: int, programs: int) -> int:
    """In how many parts to compute sums of so many steps, for so many programs a part."""
    return max(1, min(PROGRAMS // programs, steps // 4))


def line_sum(framed: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """The sums of a convolution in parts, for `finish` to add up.

    Returns:
        [B, parts, N, h, w], float32, each part channels_last.
    """
    batch, channels, framed_height, framed_width = framed.shape
    height, width, features = framed_height - 2, framed_width - 2, len(weight)
    blocks = _blocks(channels, weight.element_size()).fitted(shared_memory(framed), weight.element_size())
    tiles, columns = triton.cdiv(height * width, blocks.rows), triton.cdiv(features, blocks.columns)
    splits = parts_of(9 * channels // blocks.depth, tiles * columns * batch)
    parts = framed.new_empty((batch, splits, height, width, features), dtype=torch.float32)
    grid = (columns, tiles, batch * splits)
    launch(
        line_sum_kernel,
        grid,
        matrix(framed.permute(0, 2, 3, 1), (1, blocks.rows // width, width, blocks.depth), True),
        matrix(weight.permute(0, 2, 3, 1).flatten(1), (blocks.columns, blocks.depth), True),
        weight,
        parts if scale is None else scale,
        parts,
        height,
        C=channels,
        N=features,
        WIDTH=width,
        LINES=blocks.rows // width,
        SPLITS=splits,
        SCALED=scale is not None,
        **product_options(blocks, weight, grid),
    )
    return parts.permute(0, 1, 4, 2, 3)


def _blocks(channels: int, value_bytes: int) -> Blocks:
    """Measured on an H100 (benchmarks/README.md)."""
    rows, stages = (128, 4) if channels >= DEEP else (64, 5)
    return Blocks(rows, 128, 128 // value_bytes, 4, stages)


@triton.jit(do_not_specialize=["height"])
def line_sum_kernel(
    x,
    w,
    p_weight,
    p_scale,
    p_parts,
    height,
    C: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """LINES lines of WIDTH positions by BLOCK_N features of one part a program.

    18·h·w·C·N operations; reads h·w·C + 9·C·N values, writes 4·h·w·N bytes a part.
    """
    i_n = tl.program_id(0)
    first_line = tl.program_id(1) * LINES
    i_part = tl.program_id(2)
    steps: tl.constexpr = C // BLOCK_K
    share: tl.constexpr = (9 * steps + SPLITS - 1) // SPLITS
    first = i_part % SPLITS * share
    i_feature = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_feature = i_feature < N
    if USE_PDL:
        i_program = (i_part * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + i_n
        programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
        prefetch(p_weight, 9 * C * N, i_program, programs, PREFETCH, THREADS)
        tl.extra.cuda.gdc_wait()
    b_sum = tl.zeros((LINES * WIDTH, BLOCK_N), tl.float32)
    for i in range(first, tl.minimum(first + share, 9 * steps)):
        tap = i // steps
        b_x = x.load([i_part // SPLITS, first_line + tap // 3, tap % 3, i % steps * BLOCK_K])
        b_w = w.load([i_n * BLOCK_N, i * BLOCK_K])
        b_sum = tl.dot(tl.reshape(b_x, (LINES * WIDTH, BLOCK_K)), b_w.T, b_sum)
        if USE_PDL:
            # A tile of four dimensions is multiplied out of registers, and Triton (3.6, 3.7) loads the next one into
            # these while a product may still read them. A use of the sums, which costs nothing, has it wait.
            b_sum = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=f,f", [b_sum], tl.float32, is_pure=False, pack=1
            )
    if SCALED:
        b_sum *= tl.load(p_scale + i_feature, mask=m_feature, other=0)[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    i_position = first_line * WIDTH + tl.arange(0, LINES * WIDTH)
    m_part = (i_position < height * WIDTH)[:, None] & m_feature[None, :]
    o_part = (i_part * (height * WIDTH) + i_position).to(tl.int64)[:, None] * N + i_feature[None, :]
    tl.store(p_parts + o_part, b_sum, mask=m_part)
