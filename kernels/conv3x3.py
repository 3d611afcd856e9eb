"""3x3 convolutions as nine shifted matrix products over a framed picture, with everything around them on store.

A framed picture, [B, C, h + 2, w + 2] in channels_last, carries a frame of zeros one position wide. Seen as a matrix
of positions by channels, every tap of the kernel is then the same matrix some rows further on: no bounds are checked,
and on Hopper the tensor memory accelerator fetches whole tiles. What frames a picture normalises or enlarges it in the
same pass (group_norm.py, resample.py). Operations and arguments are those of `reference_layers`. Needs triton.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import reference_layers as reference
from instantvision.kernels.launch import (
    fit_pipeline,
    launch,
    matrix,
    overlapped,
    prefetch,
    prefetches,
    shared_memory,
    step_depth,
    uses_descriptors,
)
from instantvision.kernels.library_conv import finish, library_sum, pointwise, unfused_way
from instantvision.kernels.narrow_conv import FEATURES_MAX, narrow_conv3x3
from instantvision.kernels.resample import rms_norm_silu
from instantvision.kernels.split_conv import fits_lines, line_sum, parts_of
from instantvision.kernels.strip_conv import fits_strips, strip_conv3x3
from instantvision.kernels.taps import taps_side_by_side

# Values of a result from which on tiles of whole positions, which can be normalised on store, keep a GPU busy.
WHOLE_ROWS_MIN = 2**22


def conv3x3(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    embedding: Tensor | None = None,
    shortcut: tuple[tuple[Tensor, ...], Tensor] | None = None,
    residual: Tensor | None = None,
    activation: reference.Activation = None,
    framed_out: bool = False,
    moments: bool = False,
    scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `reference_layers.conv3x3`."""
    reference.check_conv3x3(framed, weight, stride, framed_out)
    reference.check_results(framed_out, moments, dtype, also_plain)
    if stride == 2 and framed.shape[3] % 2:
        # Positions of an odd line do not pair up.
        return reference.conv3x3(
            framed, weight, bias, stride=2, embedding=embedding, shortcut=shortcut, residual=residual,
            activation=activation, moments=moments, scale=scale,
        )  # fmt: skip
    alone = all(term is None for term in (embedding, shortcut, residual))
    if stride == 1 and not moments and alone:
        options = activation, scale, dtype
        if len(weight) <= FEATURES_MAX and not framed_out and all(option is None for option in options):
            return narrow_conv3x3(framed, weight, bias), None
        if not also_plain and fits_strips(framed, weight):
            out = strip_conv3x3(
                framed, weight, bias, activation=activation, framed_out=framed_out, scale=scale, dtype=dtype
            )
            return out, None
    height, width = (framed.shape[2] - 3) // stride + 1, (framed.shape[3] - 3) // stride + 1
    if activation is None and not framed_out and framed.is_cuda:
        way = unfused_way(framed, weight, stride)
        if way is not None:
            library = way == "library"
            sums = (
                library_sum(framed, weight, stride) if library else split_sum(framed, weight, stride, scale)
            )
            added = residual if shortcut is None else pointwise(*shortcut)
            return finish(sums, bias, embedding, added, moments=moments)
    # Positions are counted along framed lines, so that a tile is a run of rows; those past a line's end are dropped.
    positions = (height - 1) * framed.shape[3] + width
    depth = math.gcd(framed.shape[1], *(source.shape[1] for source in (shortcut or ((),))[0]))
    blocks = _blocks(positions * len(framed), len(weight), depth, weight.element_size())
    blocks = blocks.fitted(shared_memory(framed), weight.element_size())
    walk = Walk(height, width, triton.cdiv(positions, blocks.rows), stride=stride)
    results = _results(framed, bias, walk, framed_out, moments, dtype, also_plain)
    epilogue = Epilogue(embedding, shortcut, residual, activation, scale)
    _launch(framed, weight, bias, blocks, walk, epilogue, results)
    return results.out, results.beside


def conv3x3_rms(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor,
    *,
    eps: float,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference_layers.conv3x3_rms`."""
    reference.check_conv3x3(framed, weight, 1, False)
    batch, _, framed_height, framed_width = framed.shape
    height, width, features = framed_height - 2, framed_width - 2, len(weight)
    if batch * height * width * features < WHOLE_ROWS_MIN:
        out, _ = conv3x3(framed, weight, bias, residual=residual)
        return out, rms_norm_silu(out, norm, eps=eps)
    columns = triton.next_power_of_2(features)
    blocks = Blocks(128, columns, step_depth(framed.shape[1]), 8 if columns > 128 else 4, 3)
    blocks = blocks.fitted(shared_memory(framed))
    walk = Walk(height, width, triton.cdiv((height - 1) * framed_width + width, blocks.rows))
    out = reference.picture_buffer(framed, features, height, width)
    normalised = reference.picture_buffer(framed, features, framed_height, framed_width)
    epilogue = Epilogue(residual=residual, norm=norm, eps=eps)
    _launch(framed, weight, bias, blocks, walk, epilogue, Results(normalised, framed_out=True, plain=out))
    return out, normalised


def conv3x3_shallow(
    picture: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    limit: float | None = None,
    offset: float = 0.0,
    activation: reference.Activation = None,
    framed_out: bool = False,
    moments: bool = False,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `reference_layers.conv3x3_shallow`."""
    reference.check_shallow(picture, weight)
    reference.check_results(framed_out, moments, dtype, also_plain)
    picture = picture.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = picture.shape
    # Positions are counted as in a framed picture, whose frame the result then brings along.
    positions = (height - 1) * (width + 2) + width
    rows, warps = (128, 4) if positions * batch > 32768 else (64, 2)
    columns = max(16, min(64, triton.next_power_of_2(len(weight))))
    blocks = Blocks(rows, columns, triton.next_power_of_2(9 * channels), warps, 1)
    walk = Walk(height, width, triton.cdiv(positions, blocks.rows))
    results = _results(picture, bias, walk, framed_out, moments, dtype, also_plain)
    entry = Entry(offset, limit)
    _launch(picture, weight, bias, blocks, walk, Epilogue(activation=activation), results, entry)
    return results.out, results.beside


def conv3x3_doubled(
    framed: Tensor,
    folded: Tensor,
    bias: Tensor,
    *,
    activation: reference.Activation = None,
    framed_out: bool = False,
    moments: bool = False,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `reference_layers.conv3x3_doubled`."""
    reference.check_doubled(framed, folded, bias)
    reference.check_results(framed_out, moments, dtype, also_plain)
    batch, channels, framed_height, framed_width = framed.shape
    positions = (framed_height - 2) * framed_width
    blocks = _doubled_blocks(batch * positions, len(bias), channels)
    blocks = blocks.fitted(shared_memory(framed))
    walk = Walk(framed_height - 2, framed_width - 2, triton.cdiv(positions, blocks.rows), doubled=True)
    results = _results(framed, bias, walk, framed_out, moments, dtype, also_plain)
    epilogue = Epilogue(activation=activation)
    _launch(framed, folded, bias, blocks, walk, epilogue, results)
    return results.out, results.beside


def split_sum(framed: Tensor, weight: Tensor, stride: int, scale: Tensor | None) -> Tensor:
    """See `split_conv.line_sum`; for lines of any length."""
    if fits_lines(framed, stride):
        return line_sum(framed, weight, scale)
    height, width = (framed.shape[2] - 3) // stride + 1, (framed.shape[3] - 3) // stride + 1
    channels, features = framed.shape[1], len(weight)
    positions = (height - 1) * framed.shape[3] + width
    deep = 128 if channels % 128 == 0 else step_depth(channels)
    blocks = Blocks(64, 128, deep, 4, 4).fitted(shared_memory(framed), weight.element_size())
    tiles = triton.cdiv(positions, blocks.rows)
    programs = tiles * triton.cdiv(features, blocks.columns) * len(framed)
    splits = parts_of(9 * channels // blocks.depth, programs)
    parts = framed.new_empty((len(framed), splits, height, width, features), dtype=torch.float32)
    walk = Walk(height, width, tiles, stride=stride, splits=splits)
    _launch(framed, weight, weight, blocks, walk, Epilogue(scale=scale), Results(parts))
    return parts.permute(0, 1, 4, 2, 3)


class Blocks(NamedTuple):
    """Tile of the result, depth of a step, warps and pipeline stages of a program."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def fitted(self, shared: int, value_bytes: int = 2) -> "Blocks":
        """The same tile within `shared` bytes of shared memory."""
        # Memory for twice as many numbers of half the size.
        shared = shared * 2 // value_bytes
        depth, stages = fit_pipeline(self.rows, self.columns, self.depth, self.stages, shared)
        return self._replace(depth=depth, stages=stages)


class Walk(NamedTuple):
    """How programs go over a picture: height and width of what is convolved to, and in how many tiles."""

    height: int
    width: int
    tiles: int
    stride: int = 1
    doubled: bool = False
    splits: int = 0


class Entry(NamedTuple):
    """What is done with a picture without frame when it is read; see `reference_layers.conv3x3_shallow`."""

    offset: float = 0.0
    limit: float | None = None


class Epilogue(NamedTuple):
    """What is done with sums before they are stored; see `reference_layers.conv3x3` and `conv3x3_rms`."""

    embedding: Tensor | None = None
    shortcut: tuple[tuple[Tensor, ...], Tensor] | None = None
    residual: Tensor | None = None
    activation: reference.Activation = None
    scale: Tensor | None = None
    norm: Tensor | None = None
    eps: float = 0.0


class Results(NamedTuple):
    """Memory for a result, framed or not, for the same without frame, and for moments."""

    out: Tensor
    framed_out: bool = False
    plain: Tensor | None = None
    parts: Tensor | None = None

    @property
    def beside(self) -> Tensor | None:
        """What is returned with the result."""
        return self.parts if self.plain is None else self.plain


def _results(
    framed: Tensor,
    bias: Tensor,
    walk: Walk,
    framed_out: bool = False,
    moments: bool = False,
    dtype: torch.dtype | None = None,
    also_plain: bool = False,
) -> Results:
    batch, features, enlargement = len(framed), len(bias), 2 if walk.doubled else 1
    height, width = enlargement * walk.height, enlargement * walk.width
    border = 2 if framed_out else 0
    out = reference.picture_buffer(framed, features, height + border, width + border, dtype or bias.dtype)
    plain = reference.picture_buffer(framed, features, height, width, bias.dtype) if also_plain else None
    tiles = walk.tiles * enlargement**2
    parts = framed.new_empty((batch, tiles, 2, features), dtype=torch.float32) if moments else None
    return Results(out, framed_out, plain, parts)


def _blocks(positions: int, features: int, channels: int, value_bytes: int) -> Blocks:
    """Measured on an H100 (benchmarks/README.md)."""
    depth = step_depth(channels)
    deep = 128 if channels % 128 == 0 else depth
    if features <= 64:
        columns = max(16, triton.next_power_of_2(features))
        if value_bytes == 1 and positions > 32768:
            return Blocks(256, columns, depth, 4 if positions > 131072 else 8, 3)
        if positions > 32768:
            return Blocks(128, columns, depth, 4, 3)
        return Blocks(128 if positions > 16384 else 64, columns, depth, 4, 4)
    if value_bytes == 1 and positions >= 16384:
        return Blocks(256, 128, deep, 8, 4)
    if value_bytes == 1 and triton.cdiv(positions, 128) * triton.cdiv(features, 128) >= 120:
        return Blocks(128, 128, deep, 8, 3)
    if features > 128 and triton.cdiv(positions, 256) * triton.cdiv(features, 128) >= 120:
        return Blocks(256, 128, depth, 8, 3)
    if triton.cdiv(positions, 128) * triton.cdiv(features, 128) >= 120:
        return Blocks(128, 128, depth, 4, 3)
    # Few positions: small tiles, so that every multiprocessor has one, and deep pipelines, since nothing else hides
    # the way to memory.
    if features >= 640 and triton.cdiv(positions, 64) * triton.cdiv(features, 128) >= 64:
        return Blocks(64, 128, deep, 4, 4)
    if triton.cdiv(positions, 64) * triton.cdiv(features, 128) >= 120:
        return Blocks(128, 64, deep, 4, 4)
    return Blocks(64, 64, deep, 4, 4)


def _doubled_blocks(positions: int, features: int, channels: int) -> Blocks:
    """Of `conv3x3_doubled`, four corners of so many positions: measured on an H100."""
    depth = step_depth(channels)
    if features <= 64:
        return Blocks(128, max(16, triton.next_power_of_2(features)), depth, 4, 4)
    if 4 * triton.cdiv(positions, 128) * triton.cdiv(features, 128) >= 120:
        return Blocks(128, 128, depth, 4, 3)
    return Blocks(128, 64, 128 if channels % 128 == 0 else depth, 4, 4)


def _launch(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    blocks: Blocks,
    walk: Walk,
    epilogue: Epilogue,
    results: Results,
    entry: Entry | None = None,
) -> None:
    """Launch the kernel; what is absent is passed as some other tensor, since a kernel wants a pointer.

    With an entry the picture is one without frame.
    """
    batch, channels, framed_height, framed_width = framed.shape
    if entry is not None:
        framed_height, framed_width = framed_height + 2, framed_width + 2
    features = len(bias)  # `weight` has four times as many rows where it is folded
    sources, shortcut_weight = epilogue.shortcut or ((), weight)
    first, second = (*sources, *sources, framed, framed)[:2]
    descriptors = entry is None and uses_descriptors(framed)
    # At stride 2 a row of the matrix is a pair of neighbouring positions: taps are whole rows apart again.
    x_matrix = framed.permute(0, 2, 3, 1).reshape(-1, walk.stride * channels)
    w_matrix = weight.permute(0, 2, 3, 1).flatten(1)
    layers = 4 if walk.doubled else max(1, walk.splits)
    grid = (triton.cdiv(features, blocks.columns), walk.tiles, batch * layers)
    launch(
        conv3x3_kernel,
        grid,
        matrix(x_matrix, (blocks.rows, blocks.depth), descriptors),
        matrix(w_matrix, (blocks.columns, blocks.depth), descriptors),
        weight,
        bias,
        bias if epilogue.embedding is None else epilogue.embedding,
        first,
        second,
        shortcut_weight,
        results.out if epilogue.residual is None else epilogue.residual,
        bias if epilogue.norm is None else epilogue.norm,
        bias if epilogue.scale is None else epilogue.scale,
        results.out,
        results.out if results.plain is None else results.plain,
        bias if results.parts is None else results.parts,
        len(x_matrix),
        walk.height,
        walk.width,
        framed_width,
        framed_height,
        0 if epilogue.embedding is None or len(epilogue.embedding) == 1 else epilogue.embedding.stride(0),
        epilogue.eps,
        0.0 if entry is None else entry.offset,
        1.0 if entry is None or entry.limit is None else entry.limit,
        C=channels,
        N=features,
        FIRST=sources[0].shape[1] if sources else 0,
        SECOND=sources[1].shape[1] if len(sources) > 1 else 0,
        STRIDE=walk.stride,
        SHALLOW=entry is not None,
        LIMITED=entry is not None and entry.limit is not None,
        DOUBLED=walk.doubled,
        SPLITS=walk.splits,
        EMBEDDING=epilogue.embedding is not None,
        RESIDUAL=_form(epilogue.residual, walk.height),
        ACTIVATION=epilogue.activation,
        SCALED=epilogue.scale is not None,
        FRAMED_OUT=results.framed_out,
        ALSO_PLAIN=results.plain is not None,
        NORM=epilogue.norm is not None,
        MOMENTS=results.parts is not None,
        DESCRIPTORS=descriptors,
        BLOCK_M=blocks.rows,
        BLOCK_N=blocks.columns,
        BLOCK_K=blocks.depth,
        PREFETCH=prefetches(weight, grid, blocks.warps),
        THREADS=32 * blocks.warps,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **overlapped(framed),
    )


def _form(residual: Tensor | None, height: int) -> str | None:
    """How a residual lies in memory."""
    if residual is None:
        return None
    return "plain" if residual.shape[2] == height else "framed"


@triton.jit(
    do_not_specialize=["x_rows", "height", "width", "framed_width", "framed_height", "embedding_stride"]
)
def conv3x3_kernel(
    x,
    w,
    p_weight,
    p_bias,
    p_embedding,
    p_first,
    p_second,
    p_shortcut,
    p_residual,
    p_norm,
    p_scale,
    p_out,
    p_plain,
    p_moments,
    x_rows,
    height,
    width,
    framed_width,
    framed_height,
    embedding_stride,
    eps,
    offset,
    limit,
    C: tl.constexpr,
    N: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    STRIDE: tl.constexpr,
    SHALLOW: tl.constexpr,
    LIMITED: tl.constexpr,
    DOUBLED: tl.constexpr,
    SPLITS: tl.constexpr,
    EMBEDDING: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    FRAMED_OUT: tl.constexpr,
    ALSO_PLAIN: tl.constexpr,
    NORM: tl.constexpr,
    MOMENTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M positions by BLOCK_N features of the result a program.

    18·h·w·C·N operations; reads 2·(h·w·C + 9·C·N) bytes (bf16), writes 2·h·w·N. On store, and so without a pass:
    bias, embedding, 1x1 convolution of the shortcut, residual, activation, frame, the sums of the next group
    normalisation, and beside a framed result that is normalised or in e4m3 the plain one. Doubled, each corner of the
    enlarged positions is a convolution of its own with four taps: 32·h·w·C·N operations for four times the positions.
    """
    i_n = tl.program_id(0)
    i_m = tl.program_id(1)
    i_batch = tl.program_id(2)
    taps_wide: tl.constexpr = 2 if DOUBLED else 3
    taps: tl.constexpr = taps_wide * taps_wide
    corner_y, corner_x, first_weight = 0, 0, 0
    if DOUBLED:
        corner_y, corner_x, first_weight = i_batch % 4 // 2, i_batch % 2, i_batch % 4 * N
        i_batch = i_batch // 4
    i_split = 0
    if SPLITS > 0:
        i_split = i_batch % SPLITS
        i_batch = i_batch // SPLITS
    i_part = tl.program_id(2) * tl.num_programs(1) + i_m
    # Distances within the framed picture, in rows of x: to the next line, and between lines of the result.
    line = framed_width // STRIDE
    pitch = framed_width
    i_position = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_feature = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = i_batch * (framed_height * framed_width // STRIDE) + i_m * BLOCK_M
    i_y = i_position // pitch
    i_x = i_position % pitch
    m_position = (i_y < height) & (i_x < width)
    m_feature = i_feature < N
    i_pixel = i_batch * (height * width) + i_y * width + i_x
    if DOUBLED:
        i_pixel = i_batch * (4 * height * width) + (2 * i_y + corner_y) * (2 * width) + 2 * i_x + corner_x
    if SPLITS > 0:
        i_pixel += (i_batch * (SPLITS - 1) + i_split) * (height * width)
    if USE_PDL:
        i_program = i_part * tl.num_programs(0) + i_n
        programs = tl.num_programs(0) * tl.num_programs(1)
        prefetch(p_weight, 9 * C * N, i_program, programs, PREFETCH, THREADS)
        tl.extra.cuda.gdc_wait()
    steps: tl.constexpr = C // BLOCK_K
    first_step, last_step = 0, taps * steps
    if SPLITS > 0:
        share: tl.constexpr = (taps * steps + SPLITS - 1) // SPLITS
        first_step = i_split * share
        last_step = tl.minimum(first_step + share, taps * steps)
    b_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if SHALLOW:
        b_x = taps_side_by_side(x, i_batch, i_y, i_x, height, width, offset, limit, C, LIMITED, BLOCK_K)
        i_column = tl.arange(0, BLOCK_K)
        o_w = i_feature[:, None] * (9 * C) + i_column[None, :]
        b_w = tl.load(w + o_w, mask=m_feature[:, None] & (i_column < 9 * C)[None, :], other=0)
        b_sum = tl.dot(b_x, b_w.T, b_sum)
    else:
        for i in range(first_step, last_step):
            tap = i // steps
            k = (i % steps) * BLOCK_K
            tap_y = tap // taps_wide + corner_y
            tap_x = tap % taps_wide + corner_x
            x_row = row + tap_y * line + tap_x // STRIDE
            x_column = (tap_x % STRIDE) * C + k
            if DESCRIPTORS:
                b_x = x.load([x_row, x_column])
                b_w = w.load([first_weight + i_n * BLOCK_N, i * BLOCK_K])
            else:
                i_row = x_row + tl.arange(0, BLOCK_M)
                i_column = tl.arange(0, BLOCK_K)
                o_x = i_row.to(tl.int64)[:, None] * (STRIDE * C) + x_column + i_column[None, :]
                b_x = tl.load(x + o_x, mask=(i_row < x_rows)[:, None], other=0.0)
                o_w = (first_weight + i_feature)[:, None] * (taps * C) + i * BLOCK_K + i_column[None, :]
                b_w = tl.load(w + o_w, mask=m_feature[:, None], other=0.0)
            b_sum = tl.dot(b_x, b_w.T, b_sum)
    if SCALED:
        b_sum *= tl.load(p_scale + i_feature, mask=m_feature, other=0)[None, :]
    if FIRST > 0:
        i_column = tl.arange(0, BLOCK_K)
        for k in range(0, FIRST, BLOCK_K):
            o_x = i_pixel.to(tl.int64)[:, None] * FIRST + k + i_column[None, :]
            b_x = tl.load(p_first + o_x, mask=m_position[:, None], other=0)
            o_w = i_feature[:, None] * (FIRST + SECOND) + k + i_column[None, :]
            b_sum = tl.dot(b_x, tl.load(p_shortcut + o_w, mask=m_feature[:, None], other=0).T, b_sum)
        for k in range(0, SECOND, BLOCK_K):
            o_x = i_pixel.to(tl.int64)[:, None] * SECOND + k + i_column[None, :]
            b_x = tl.load(p_second + o_x, mask=m_position[:, None], other=0)
            o_w = i_feature[:, None] * (FIRST + SECOND) + FIRST + k + i_column[None, :]
            b_sum = tl.dot(b_x, tl.load(p_shortcut + o_w, mask=m_feature[:, None], other=0).T, b_sum)
    if SPLITS == 0:
        b_bias = tl.load(p_bias + i_feature, mask=m_feature, other=0).to(tl.float32)
        if EMBEDDING:
            o_embedding = i_batch * embedding_stride + i_feature
            b_bias += tl.load(p_embedding + o_embedding, mask=m_feature, other=0).to(tl.float32)
        b_sum += b_bias[None, :]
    o_pixel = i_pixel.to(tl.int64)[:, None] * N + i_feature[None, :]
    m_inside = m_position[:, None] & m_feature[None, :]
    if RESIDUAL == "plain":
        b_sum += tl.load(p_residual + o_pixel, mask=m_inside, other=0).to(tl.float32)
    if RESIDUAL == "framed":
        i_framed = i_batch * ((height + 2) * pitch) + i_position + pitch + 1
        o_framed = i_framed.to(tl.int64)[:, None] * N + i_feature[None, :]
        b_sum += tl.load(p_residual + o_framed, mask=m_inside, other=0).to(tl.float32)
    if ACTIVATION == "silu":
        b_sum = b_sum * tl.sigmoid(b_sum)
    if ACTIVATION == "relu":
        b_sum = tl.maximum(b_sum, 0.0)
    if MOMENTS:
        b_counted = tl.where(m_inside, b_sum, 0.0)
        o_moments = i_part * (2 * N) + i_feature
        tl.store(p_moments + o_moments, tl.sum(b_counted, 0), mask=m_feature)
        tl.store(p_moments + o_moments + N, tl.sum(b_counted * b_counted, 0), mask=m_feature)
    if ALSO_PLAIN:
        tl.store(p_plain + o_pixel, b_sum.to(p_plain.dtype.element_ty), mask=m_inside)
    if NORM:
        b_sum *= tl.rsqrt(tl.sum(tl.where(m_feature[None, :], b_sum * b_sum, 0.0), 1) / N + eps)[:, None]
        b_sum *= tl.load(p_norm + i_feature, mask=m_feature, other=0).to(tl.float32)[None, :]
        b_sum *= tl.sigmoid(b_sum)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if FRAMED_OUT and DOUBLED:
        # Positions past a line's end are two: one clears the frame's right side, the other its left.
        doubled_pitch = 2 * width + 2
        column = tl.where(i_x > width, 0, 2 * i_x + corner_x + 1)
        i_framed = (2 * i_y + corner_y + 1) * doubled_pitch + column
        i_frame = i_batch * ((2 * height + 2) * doubled_pitch)
        m_framed = (i_y < height) & ((i_x < width) | (i_x == width + corner_x))
        o_framed = (i_frame + i_framed).to(tl.int64)[:, None] * N + i_feature[None, :]
        b_framed = tl.where(m_inside, b_sum, 0.0).to(p_out.dtype.element_ty)
        tl.store(p_out + o_framed, b_framed, mask=m_framed[:, None] & m_feature[None, :])
        # The first tiles of the upper left and the lower right corners clear the frame's top and bottom.
        if (i_m == 0) & (corner_x == corner_y):
            b_empty = tl.zeros((BLOCK_M, BLOCK_N), p_out.dtype.element_ty)
            i_line = i_frame + corner_y * (2 * height + 1) * doubled_pitch
            for start in range(0, doubled_pitch, BLOCK_M):
                i_column = start + tl.arange(0, BLOCK_M)
                o_framed = (i_line + i_column).to(tl.int64)[:, None] * N + i_feature[None, :]
                m_line = (i_column < doubled_pitch)[:, None] & m_feature[None, :]
                tl.store(p_out + o_framed, b_empty, mask=m_line)
    elif FRAMED_OUT:
        # Line 1, column 1 of the framed result is position 0; what lies past a line's end falls on the frame's sides.
        total = (height + 2) * pitch
        first = pitch + 1
        o_framed = (i_batch * total + i_position).to(tl.int64)[:, None] * N + i_feature[None, :]
        b_framed = tl.where(m_inside, b_sum, 0.0).to(p_out.dtype.element_ty)
        m_framed = (i_position + first < total)[:, None] & m_feature[None, :]
        tl.store(p_out + o_framed + first * N, b_framed, mask=m_framed)
        # The first and the last tile also clear the frame's top and bottom.
        b_empty = tl.zeros((BLOCK_M, BLOCK_N), p_out.dtype.element_ty)
        if i_m == 0:
            for start in range(0, first, BLOCK_M):
                m_framed = (i_position + start < first)[:, None] & m_feature[None, :]
                tl.store(p_out + o_framed + start * N, b_empty, mask=m_framed)
        if i_m == tl.num_programs(1) - 1:
            for start in range(first + BLOCK_M, total - i_m * BLOCK_M, BLOCK_M):
                m_framed = (i_position + start < total)[:, None] & m_feature[None, :]
                tl.store(p_out + o_framed + start * N, b_empty, mask=m_framed)
    else:
        tl.store(p_out + o_pixel, b_sum.to(p_out.dtype.element_ty), mask=m_inside)
