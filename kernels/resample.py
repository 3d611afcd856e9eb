"""Framing a picture for a convolution: as it is or enlarged, normalised, or brought from one resolution to another.

Operations and arguments are those of `reference_layers`. Needs triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels.conv_reference import picture_buffer
from instantvision.kernels.launch import launch, overlapped

# Values a program handles.
BLOCK = 4096
# Positions by channels a program of `frame` writes.
FRAME_ROWS, FRAME_CHANNELS = 64, 64


def frame(
    pictures: tuple[Tensor, ...],
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See `conv_reference.frame`."""
    first, second = (*pictures, pictures[0])[:2]
    batch, _, height, width = first.shape
    rows, columns = size or (height, width)
    joined = sum(picture.shape[1] for picture in pictures)
    out = picture_buffer(first, channels or joined, rows + 2, columns + 2, dtype)
    tiles = triton.cdiv((rows + 2) * (columns + 2), FRAME_ROWS)
    launch(
        frame_kernel,
        (tiles, triton.cdiv(out.shape[1], FRAME_CHANNELS), batch),
        first.contiguous(memory_format=torch.channels_last),
        second.contiguous(memory_format=torch.channels_last),
        out,
        height,
        width,
        rows,
        columns,
        FIRST=first.shape[1],
        JOINED=joined,
        C=out.shape[1],
        BLOCK_M=FRAME_ROWS,
        BLOCK_C=FRAME_CHANNELS,
        **overlapped(first),
    )
    return out


def rms_norm_silu(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """See `reference_layers.rms_norm_silu`."""
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = picture_buffer(x, channels, height + 2, width + 2)
    block_c = triton.next_power_of_2(channels)
    block_m = max(1, BLOCK // block_c)
    grid = (triton.cdiv((height + 2) * (width + 2), block_m), batch)
    launch(
        rms_norm_silu_kernel,
        grid,
        x,
        weight,
        out,
        height,
        width,
        eps,
        C=channels,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        **overlapped(x),
    )
    return out


def space_to_depth_add(
    convolved: Tensor, framed: Tensor, norm: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference_layers.space_to_depth_add`."""
    _, before, framed_height, framed_width = framed.shape
    height, width = (framed_height - 2) // 2, (framed_width - 2) // 2
    if 4 * convolved.shape[1] not in (before, 2 * before) or before & (before - 1):
        raise ValueError(
            f"{before} channels to {4 * convolved.shape[1]}: expected a power of two, or its double"
        )
    return _resample(
        space_to_depth_add_kernel, convolved, framed, norm, 4 * convolved.shape[1], height, width, eps
    )


def depth_to_space_add(projected: Tensor, x: Tensor, norm: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference_layers.depth_to_space_add`."""
    height, width = 2 * x.shape[2], 2 * x.shape[3]
    before = x.shape[1]
    if projected.shape[1] not in (2 * before, 4 * before) or before & (before - 1):
        raise ValueError(
            f"{before} channels to {projected.shape[1] // 4}: expected a power of two, or its half"
        )
    return _resample(
        depth_to_space_add_kernel, projected, x, norm, projected.shape[1] // 4, height, width, eps
    )


def _resample(
    kernel: Any, mapped: Tensor, x: Tensor, norm: Tensor, channels: int, height: int, width: int, eps: float
) -> tuple[Tensor, Tensor]:
    out = picture_buffer(x, channels, height, width)
    normalised = picture_buffer(x, channels, height + 2, width + 2)
    block_c = triton.next_power_of_2(channels)
    block_m = max(1, BLOCK // block_c)
    grid = (triton.cdiv((height + 2) * (width + 2), block_m), len(x))
    launch(
        kernel, grid, mapped, x, norm, out, normalised, height, width, eps,
        BEFORE=x.shape[1], C=channels, BLOCK_M=block_m, BLOCK_C=block_c, **overlapped(x),
    )  # fmt: skip
    return out, normalised


@triton.jit(do_not_specialize=["height", "width", "rows", "columns"])
def frame_kernel(
    p_first,
    p_second,
    p_out,
    height,
    width,
    rows,
    columns,
    FIRST: tl.constexpr,
    JOINED: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """Pictures side by side, enlarged, inside a frame of zeros, BLOCK_M positions a program.

    Reads 2·h·w·C bytes (bf16), writes 2·(rows + 2)·(columns + 2)·C. Saves two passes: the joined and enlarged pictures.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    pitch = columns + 2
    i_position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    i_batch = tl.program_id(2).to(tl.int64)
    i_y = i_position // pitch - 1
    i_x = i_position % pitch - 1
    m_inside = ((i_y >= 0) & (i_y < rows) & (i_x >= 0) & (i_x < columns))[:, None]
    i_pixel = i_batch * height * width + (i_y * height // rows) * width + i_x * width // columns
    o_first = i_pixel[:, None] * FIRST + i_channel[None, :]
    b_x = tl.load(p_first + o_first, mask=m_inside & (i_channel < FIRST)[None, :], other=0)
    if JOINED > FIRST:
        o_second = i_pixel[:, None] * (JOINED - FIRST) + (i_channel - FIRST)[None, :]
        m_second = m_inside & ((i_channel >= FIRST) & (i_channel < JOINED))[None, :]
        b_x += tl.load(p_second + o_second, mask=m_second, other=0)
    o_out = (i_batch * (rows + 2) * pitch + i_position)[:, None] * C + i_channel[None, :]
    m_out = (i_position < (rows + 2) * pitch)[:, None] & (i_channel < C)[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_out, b_x, mask=m_out)


@triton.jit
def store_normalised(
    p_norm,
    p_normalised,
    b_x,
    i_batch,
    i_position,
    height,
    width,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """Divide positions by their root mean square, weigh, SiLU, and store them, frame included."""
    i_channel = tl.arange(0, BLOCK_C)
    m_channel = i_channel < C
    b_x *= tl.rsqrt(tl.sum(b_x * b_x, 1) / C + eps)[:, None]
    b_x *= tl.load(p_norm + i_channel, mask=m_channel, other=0).to(tl.float32)[None, :]
    b_x *= tl.sigmoid(b_x)
    positions = (height + 2) * (width + 2)
    o_out = (i_batch * positions + i_position)[:, None] * C + i_channel[None, :]
    m_out = (i_position < positions)[:, None] & m_channel[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_normalised + o_out, b_x.to(p_normalised.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["height", "width"])
def rms_norm_silu_kernel(
    p_x,
    p_weight,
    p_out,
    height,
    width,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M positions a program. Reads 2·h·w·C bytes (bf16), writes as many. Saves three passes of eager torch."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    pitch = width + 2
    i_batch = tl.program_id(1).to(tl.int64)
    i_position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_channel = tl.arange(0, BLOCK_C)
    i_y = i_position // pitch - 1
    i_x = i_position % pitch - 1
    m_inside = ((i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width))[:, None]
    m_channel = (i_channel < C)[None, :]
    o_x = (i_batch * height * width + i_y * width + i_x)[:, None] * C + i_channel[None, :]
    b_x = tl.load(p_x + o_x, mask=m_inside & m_channel, other=0).to(tl.float32)
    store_normalised(p_weight, p_out, b_x, i_batch, i_position, height, width, eps, C, BLOCK_C, USE_PDL)


@triton.jit(do_not_specialize=["height", "width"])
def space_to_depth_add_kernel(
    p_convolved,
    p_framed,
    p_norm,
    p_out,
    p_normalised,
    height,
    width,
    eps,
    BEFORE: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M positions of the smaller picture a program.

    Reads 8·h·w·(C / 4 + BEFORE) bytes (bf16), writes 4·h·w·C. Saves four passes: folding twice, mean, normalisation.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    mean_of: tl.constexpr = 4 * BEFORE // C
    pitch = width + 2
    i_batch = tl.program_id(1).to(tl.int64)
    i_position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_channel = tl.arange(0, BLOCK_C)
    i_y = i_position // pitch - 1
    i_x = i_position % pitch - 1
    m_row = ((i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width))[:, None]
    m_inside = m_row & (i_channel < C)[None, :]
    # Corners of the 2x2 positions are read one by one, whole lines of channels each, and interleaved in registers.
    quarter: tl.constexpr = C // 4
    i_quarter = tl.arange(0, quarter)[None, :]
    i_pixel = (i_batch * (4 * height * width) + 2 * i_y * (2 * width) + 2 * i_x)[:, None]
    o_convolved = i_pixel * quarter + i_quarter
    b_00 = tl.load(p_convolved + o_convolved, mask=m_row, other=0)
    b_01 = tl.load(p_convolved + o_convolved + quarter, mask=m_row, other=0)
    b_10 = tl.load(p_convolved + o_convolved + 2 * width * quarter, mask=m_row, other=0)
    b_11 = tl.load(p_convolved + o_convolved + (2 * width + 1) * quarter, mask=m_row, other=0)
    b_corners = tl.join(tl.join(b_00, b_10), tl.join(b_01, b_11))
    b_out = tl.reshape(b_corners, (BLOCK_M, C)).to(tl.float32)
    i_before = tl.arange(0, BEFORE)[None, :]
    framed_width = 2 * width + 2
    i_framed = (i_batch * ((2 * height + 2) * framed_width) + (2 * i_y + 1) * framed_width + 2 * i_x + 1)[
        :, None
    ]
    o_framed = i_framed * BEFORE + i_before
    b_00 = tl.load(p_framed + o_framed, mask=m_row, other=0).to(tl.float32)
    b_01 = tl.load(p_framed + o_framed + BEFORE, mask=m_row, other=0).to(tl.float32)
    b_10 = tl.load(p_framed + o_framed + framed_width * BEFORE, mask=m_row, other=0).to(tl.float32)
    b_11 = tl.load(p_framed + o_framed + (framed_width + 1) * BEFORE, mask=m_row, other=0).to(tl.float32)
    if mean_of == 4:
        b_out += (b_00 + b_01 + b_10 + b_11) * 0.25
    else:
        b_out += tl.reshape(tl.join(b_00 + b_01, b_10 + b_11), (BLOCK_M, C)) * 0.5
    o_out = (i_batch * height * width + i_y * width + i_x)[:, None] * C + i_channel[None, :]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_inside)
    store_normalised(
        p_norm, p_normalised, b_out, i_batch, i_position, height, width, eps, C, BLOCK_C, USE_PDL
    )


@triton.jit(do_not_specialize=["height", "width"])
def depth_to_space_add_kernel(
    p_projected,
    p_x,
    p_norm,
    p_out,
    p_normalised,
    height,
    width,
    eps,
    BEFORE: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M positions of the larger picture a program.

    Reads h·w·(2·C + BEFORE / 2) bytes (bf16), writes 4·h·w·C. Saves three passes: repeating, unfolding, normalisation.
    """
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    repeat: tl.constexpr = 4 * C // BEFORE
    pitch = width + 2
    i_batch = tl.program_id(1).to(tl.int64)
    i_position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_channel = tl.arange(0, BLOCK_C)
    i_y = i_position // pitch - 1
    i_x = i_position % pitch - 1
    m_row = ((i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width))[:, None]
    m_inside = m_row & (i_channel < C)[None, :]
    i_corner = (i_y % 2 * 2 + i_x % 2)[:, None]
    i_pixel = (i_batch * (height * width // 4) + i_y // 2 * (width // 2) + i_x // 2)[:, None]
    o_projected = (i_pixel * 4 + i_corner) * C + i_channel[None, :]
    b_out = tl.load(p_projected + o_projected, mask=m_inside, other=0).to(tl.float32)
    if repeat == 4:
        b_out += tl.load(p_x + i_pixel * BEFORE + i_channel[None, :], mask=m_inside, other=0).to(tl.float32)
    else:
        # Even channels for the upper positions, odd ones for the lower: read as whole lines, parted in registers.
        i_before = tl.arange(0, BEFORE)[None, :]
        b_x = tl.load(p_x + i_pixel * BEFORE + i_before, mask=m_row, other=0).to(tl.float32)
        b_upper, b_lower = tl.split(tl.reshape(b_x, (BLOCK_M, C, 2)))
        b_out += tl.where(i_corner < 2, b_upper, b_lower)
    o_out = (i_batch * height * width + i_y * width + i_x)[:, None] * C + i_channel[None, :]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_inside)
    store_normalised(
        p_norm, p_normalised, b_out, i_batch, i_position, height, width, eps, C, BLOCK_C, USE_PDL
    )
