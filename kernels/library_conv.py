"""3x3 convolutions of many channels over few positions: sums first, by cuDNN or in parts, and one pass for the rest.

Which shapes these are was measured on an H100 with weights that come from memory (benchmarks/README.md). Needs triton.
"""

from typing import Literal

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import conv_reference as reference
from instantvision.kernels.launch import launch, overlapped
from instantvision.kernels.split_conv import fits_lines

# Above so many positions our own kernel has tiles for every multiprocessor.
POSITIONS_MAX = 4096
# Up to so many it has too few and parts the sums; in numbers of two bytes, unless tiles are whole lines, up to fewer.
SPLIT_MAX, SPLIT_MAX_16_BITS = 256, 64
# Input times output channels from which on sums are long enough for either.
CHANNELS_MIN = 640 * 1280
# Positions and channels a program of the last pass.
ROWS, COLUMNS = 32, 64


def unfused_way(framed: Tensor, weight: Tensor, stride: int) -> Literal["library", "split"] | None:
    """Which way of computing sums first and the rest in a pass of its own is faster than doing all at once, if any."""
    height, width = ((side - 3) // stride + 1 for side in framed.shape[2:])
    positions, value_bytes = len(framed) * height * width, weight.element_size()
    if positions > POSITIONS_MAX or framed.shape[1] * len(weight) < CHANNELS_MIN or value_bytes > 2:
        return None
    fast = value_bytes == 1 or fits_lines(framed, stride)
    if positions <= (SPLIT_MAX if fast else SPLIT_MAX_16_BITS):
        return "split"
    # cuDNN has no convolution in e4m3 that takes pictures as they are here.
    return "library" if value_bytes == 2 else None


def library_sum(framed: Tensor, weight: Tensor, stride: int) -> Tensor:
    """cuDNN's convolution, [B, 1, N, h, w]."""
    convolved = F.conv2d(framed, weight, stride=stride)
    return convolved.contiguous(memory_format=torch.channels_last)[:, None]


def finish(
    sums: Tensor,
    bias: Tensor,
    embedding: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    moments: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `conv_reference.finish`."""
    batch, count, features, height, width = sums.shape
    positions = height * width
    tiles = triton.cdiv(positions, ROWS)
    out = reference.picture_buffer(sums, features, height, width, bias.dtype)
    parts = sums.new_empty((batch, tiles, 2, features), dtype=torch.float32) if moments else None
    launch(
        finish_kernel,
        (triton.cdiv(features, COLUMNS), tiles, batch),
        sums,
        bias,
        bias if embedding is None else embedding,
        out if residual is None else residual,
        out,
        bias if parts is None else parts,
        positions,
        0 if embedding is None or len(embedding) == 1 else embedding.stride(0),
        N=features,
        COUNT=count,
        EMBEDDING=embedding is not None,
        RESIDUAL=residual is not None,
        MOMENTS=moments,
        BLOCK_M=ROWS,
        BLOCK_N=COLUMNS,
        num_warps=4,
        **overlapped(sums),
    )
    return out, parts


def pointwise(pictures: tuple[Tensor, ...], weight: Tensor) -> Tensor:
    """A 1x1 convolution, [N, C], over pictures side by side."""
    batch, _, height, width = pictures[0].shape
    first, *others = (picture.permute(0, 2, 3, 1).flatten(0, 2) for picture in pictures)
    start = first.shape[1]
    out = first @ weight[:, :start].T
    for other in others:
        out.addmm_(other, weight[:, start : start + other.shape[1]].T)
        start += other.shape[1]
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


@triton.jit(do_not_specialize=["positions", "embedding_stride"])
def finish_kernel(
    p_sums,
    p_bias,
    p_embedding,
    p_residual,
    p_out,
    p_moments,
    positions,
    embedding_stride,
    N: tl.constexpr,
    COUNT: tl.constexpr,
    EMBEDDING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MOMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M positions by BLOCK_N features a program.

    Reads 2·h·w·N bytes (bf16) of a library's sums or 4 of each part of ours, 2·h·w·N of a residual, writes 2·h·w·N.
    Saves three passes: embedding, residual and statistics.
    """
    i_m = tl.program_id(1)
    i_batch = tl.program_id(2)
    i_position = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_feature = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_feature = i_feature < N
    m_x = (i_position < positions)[:, None] & m_feature[None, :]
    o_x = (i_batch * positions + i_position).to(tl.int64)[:, None] * N + i_feature[None, :]
    b_bias = tl.load(p_bias + i_feature, mask=m_feature, other=0).to(tl.float32)
    if EMBEDDING:
        o_embedding = i_batch * embedding_stride + i_feature
        b_bias += tl.load(p_embedding + o_embedding, mask=m_feature, other=0).to(tl.float32)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    b_x = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) + b_bias[None, :]
    o_sums = (i_batch * (COUNT - 1) * positions).to(tl.int64) * N + o_x
    for i in tl.static_range(COUNT):
        b_x += tl.load(p_sums + o_sums + i * positions * N, mask=m_x, other=0).to(tl.float32)
    if RESIDUAL:
        b_x += tl.load(p_residual + o_x, mask=m_x, other=0).to(tl.float32)
    if MOMENTS:
        b_counted = tl.where(m_x, b_x, 0.0)
        o_moments = (i_batch * tl.num_programs(1) + i_m) * (2 * N) + i_feature
        tl.store(p_moments + o_moments, tl.sum(b_counted, 0), mask=m_feature)
        tl.store(p_moments + o_moments + N, tl.sum(b_counted * b_counted, 0), mask=m_feature)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_x, b_x.to(p_out.dtype.element_ty), mask=m_x)
