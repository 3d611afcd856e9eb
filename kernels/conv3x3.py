"""3x3 convolutions as nine shifted matrix products over a framed picture, with everything around them on store.

A framed picture, [B, C, h + 2, w + 2] in channels_last, carries a frame of zeros one position wide. Seen as a matrix
of positions by channels, every tap of the kernel is then the same matrix some rows further on: no bounds are checked,
and on Hopper the tensor memory accelerator fetches whole tiles. What frames a picture normalises or enlarges it in the
same pass (group_norm.py, resample.py). Operations and arguments are those of `conv_reference`. Needs triton.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from instantvision.kernels import conv_reference as reference
from instantvision.kernels.conv3x3_kernel import conv3x3_kernel
from instantvision.kernels.launch import (
    Blocks,
    launch,
    matrix,
    product_options,
    shared_memory,
    step_depth,
    uses_descriptors,
)
from instantvision.kernels.library_conv import finish, library_sum, pointwise, unfused_way
from instantvision.kernels.narrow_conv import FEATURES_MAX, narrow_conv3x3
from instantvision.kernels.resample import rms_norm_silu
from instantvision.kernels.split_conv import fits_lines, line_sum, parts_of
from instantvision.kernels.strip_conv import fits_strips, strip_conv3x3

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
    """See `conv_reference.conv3x3`."""
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
    blocks = _blocks(positions * len(framed), len(weight), framed.shape[1], weight.element_size())
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
    """See `conv_reference.conv3x3_shallow`."""
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
    """See `conv_reference.conv3x3_doubled`."""
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


class Walk(NamedTuple):
    """How programs go over a picture: height and width of what is convolved to, and in how many tiles."""

    height: int
    width: int
    tiles: int
    stride: int = 1
    doubled: bool = False
    splits: int = 0


class Entry(NamedTuple):
    """What is done with a picture without frame when it is read; see `conv_reference.conv3x3_shallow`."""

    offset: float = 0.0
    limit: float | None = None


class Epilogue(NamedTuple):
    """What is done with sums before they are stored; see `conv3x3` and `conv3x3_rms` of the reference."""

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
            return Blocks(256, columns, depth, 4, 4)
        if positions > 32768:
            return Blocks(128, columns, depth, 4, 3)
        return Blocks(128 if positions > 16384 else 64, columns, depth, 4, 4)
    if value_bytes == 1 and positions >= 16384:
        return Blocks(256, 128, deep, 8, 4)
    if value_bytes == 1 and triton.cdiv(positions, 128) * triton.cdiv(features, 128) >= 80:
        return Blocks(128, 128, deep, 4, 3 if deep == 128 else 4)
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
        BLOCK_SHORTCUT=step_depth(math.gcd(*(source.shape[1] for source in sources)))
        if sources
        else blocks.depth,
        **product_options(blocks, weight, grid),
    )


def _form(residual: Tensor | None, height: int) -> str | None:
    """How a residual lies in memory."""
    if residual is None:
        return None
    return "plain" if residual.shape[2] == height else "framed"
