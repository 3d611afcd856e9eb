"""Group normalisation with everything elementwise around it: statistics come from whoever wrote the picture.

Operations and arguments are those of `reference_layers`. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import reference_layers as reference
from instantvision.kernels.conv_reference import picture_buffer
from instantvision.kernels.launch import launch, overlapped

# Channels of a program, and its warps.
BLOCK_CHANNELS, WARPS = 64, 4
# Programs that add their channels' moments up are no more than keep a GPU busy; others are many small ones.
PROGRAMS, PROGRAMS_WITH_TABLE = 264, 1056
# Moments that a program of the table reads at once, and its warps.
TILES_AT_ONCE, TABLE_WARPS = 128, 4


def channel_moments(x: Tensor) -> Tensor:
    """See `reference_layers.channel_moments`."""
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    rows = max(64, triton.next_power_of_2(triton.cdiv(height * width, 64)))
    tiles = triton.cdiv(height * width, rows)
    parts = x.new_empty((batch, tiles, 2, channels), dtype=torch.float32)
    grid = (tiles, triton.cdiv(channels, BLOCK_CHANNELS), batch)
    launch(
        channel_moments_kernel,
        grid,
        x,
        parts,
        height * width,
        rows,
        C=channels,
        BLOCK_M=64,
        BLOCK_C=BLOCK_CHANNELS,
        **overlapped(x),
    )
    return parts


def group_norm(
    pictures: tuple[Tensor, ...],
    moments: tuple[Tensor | None, ...],
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    modulation: Tensor | None = None,
    silu: bool = False,
    framed_out: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See `reference_layers.group_norm`."""
    reference.check_group_norm(pictures, weight, groups)
    pictures = tuple(picture.contiguous(memory_format=torch.channels_last) for picture in pictures)
    parts = tuple(
        channel_moments(picture) if given is None else given
        for picture, given in zip(pictures, moments, strict=True)
    )
    first, second = (*pictures, pictures[0])[:2]
    batch, _, height, width = first.shape
    channels, border = len(weight), 2 if framed_out else 0
    group = channels // groups
    out = picture_buffer(first, channels, height + border, width + border, dtype)
    # Groups that fill whole blocks of channels are added up where they are needed, others by a kernel before.
    widths = {picture.shape[1] for picture in pictures}
    whole = BLOCK_CHANNELS % group == 0 and len(widths) == 1 and first.shape[1] % BLOCK_CHANNELS == 0
    table = weight if whole else _table(pictures, parts, weight, bias, modulation, groups, eps)
    columns = triton.cdiv(channels, BLOCK_CHANNELS)
    positions = (height + border) * (width + border)
    programs = PROGRAMS if whole else PROGRAMS_WITH_TABLE
    rows = min(128, max(16, triton.next_power_of_2(triton.cdiv(positions * columns * batch, programs))))
    launch(
        group_norm_kernel,
        (triton.cdiv(positions, rows), columns, batch),
        first,
        second,
        parts[0],
        parts[-1],
        table,
        weight,
        bias,
        weight if modulation is None else modulation,
        out,
        parts[0].shape[1],
        parts[-1].shape[1],
        height,
        width,
        0 if modulation is None or len(modulation) == 1 else modulation.stride(0),
        eps,
        FIRST=pictures[0].shape[1],
        SECOND=pictures[1].shape[1] if len(pictures) > 1 else 0,
        GROUP=group,
        WHOLE=whole,
        MODULATION=modulation is not None,
        SILU=silu,
        BORDER=border // 2,
        BLOCK_M=rows,
        BLOCK_C=BLOCK_CHANNELS,
        BLOCK_TILES=min(128, triton.next_power_of_2(max(part.shape[1] for part in parts))),
        num_warps=WARPS,
        **overlapped(first),
    )
    return out


def _table(
    pictures: tuple[Tensor, ...],
    parts: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None,
    groups: int,
    eps: float,
) -> Tensor:
    """A product and a sum for every channel that normalise and modulate it, [B, 2, C], float32."""
    first = pictures[0]
    batch, _, height, width = first.shape
    table = first.new_empty((batch, 2, len(weight)), dtype=torch.float32)
    group = len(weight) // groups
    tiles = max(part.shape[1] for part in parts)
    launch(
        scale_and_shift_kernel,
        (groups, batch),
        parts[0],
        parts[-1],
        weight,
        bias,
        weight if modulation is None else modulation,
        table,
        parts[0].shape[1],
        parts[-1].shape[1],
        height * width,
        0 if modulation is None or len(modulation) == 1 else modulation.stride(0),
        eps,
        FIRST=first.shape[1],
        SECOND=len(weight) - first.shape[1],
        GROUP=group,
        MODULATION=modulation is not None,
        BLOCK_C=triton.next_power_of_2(group),
        BLOCK_TILES=min(TILES_AT_ONCE, triton.next_power_of_2(tiles)),
        num_warps=TABLE_WARPS,
        **overlapped(first),
    )
    return table


@triton.jit(do_not_specialize=["positions", "rows"])
def channel_moments_kernel(
    p_x,
    p_moments,
    positions,
    rows,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """Sums and sums of squares of BLOCK_C channels over `rows` positions a program; reads 2·h·w·C bytes (bf16)."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    i_tile = tl.program_id(0)
    i_channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    i_batch = tl.program_id(2).to(tl.int64)
    m_channel = i_channel < C
    b_sum = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    b_square = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, rows, BLOCK_M):
        i_position = i_tile * rows + start + tl.arange(0, BLOCK_M)
        o_x = (i_batch * positions + i_position)[:, None] * C + i_channel[None, :]
        m_x = (i_position < positions)[:, None] & m_channel[None, :]
        b_x = tl.load(p_x + o_x, mask=m_x, other=0).to(tl.float32)
        b_sum += b_x
        b_square += b_x * b_x
    o_moments = (i_batch * tl.num_programs(0) + i_tile) * (2 * C) + i_channel
    tl.store(p_moments + o_moments, tl.sum(b_sum, 0), mask=m_channel)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_moments + o_moments + C, tl.sum(b_square, 0), mask=m_channel)


@triton.jit
def scale_and_shift(
    mean,
    rstd,
    p_weight,
    p_bias,
    p_modulation,
    i_channel,
    m_channel,
    CHANNELS: tl.constexpr,
    MODULATION: tl.constexpr,
):
    """One product and one sum a value that normalise it, weigh it and modulate it."""
    scale = tl.load(p_weight + i_channel, mask=m_channel).to(tl.float32) * rstd
    shift = tl.load(p_bias + i_channel, mask=m_channel).to(tl.float32) - mean * scale
    if MODULATION:
        factor = 1 + tl.load(p_modulation + i_channel, mask=m_channel).to(tl.float32)
        term = tl.load(p_modulation + i_channel + CHANNELS, mask=m_channel).to(tl.float32)
        scale, shift = scale * factor, shift * factor + term
    return scale, shift


@triton.jit(do_not_specialize=["first_tiles", "second_tiles", "positions", "modulation_stride"])
def scale_and_shift_kernel(
    p_first_moments,
    p_second_moments,
    p_weight,
    p_bias,
    p_modulation,
    p_table,
    first_tiles,
    second_tiles,
    positions,
    modulation_stride,
    eps,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    GROUP: tl.constexpr,
    MODULATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """One group a program; reads the moments of its channels, writes 8 bytes a channel."""
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    i_batch = tl.program_id(1)
    i_member = tl.arange(0, BLOCK_C)
    i_channel = tl.program_id(0) * GROUP + i_member
    m_channel = i_member < GROUP
    i_tile = tl.arange(0, BLOCK_TILES)
    b_sum = tl.zeros((BLOCK_TILES, BLOCK_C), tl.float32)
    b_square = tl.zeros((BLOCK_TILES, BLOCK_C), tl.float32)
    for start in range(0, first_tiles, BLOCK_TILES):
        o_part = (i_batch * first_tiles + start + i_tile)[:, None] * (2 * FIRST) + i_channel[None, :]
        m_part = (start + i_tile < first_tiles)[:, None] & (m_channel & (i_channel < FIRST))[None, :]
        b_sum += tl.load(p_first_moments + o_part, mask=m_part, other=0)
        b_square += tl.load(p_first_moments + o_part + FIRST, mask=m_part, other=0)
    if SECOND > 0:
        for start in range(0, second_tiles, BLOCK_TILES):
            o_part = (i_batch * second_tiles + start + i_tile)[:, None] * (2 * SECOND)
            o_part += (i_channel - FIRST)[None, :]
            m_part = (start + i_tile < second_tiles)[:, None] & (m_channel & (i_channel >= FIRST))[None, :]
            b_sum += tl.load(p_second_moments + o_part, mask=m_part, other=0)
            b_square += tl.load(p_second_moments + o_part + SECOND, mask=m_part, other=0)
    count = positions * GROUP
    mean = tl.sum(tl.sum(b_sum, 0), 0) / count
    power = tl.sum(tl.sum(b_square, 0), 0) / count
    rstd = tl.rsqrt(tl.maximum(power - mean * mean, 0.0) + eps)
    scale, shift = scale_and_shift(
        mean, rstd, p_weight, p_bias, p_modulation + i_batch * modulation_stride, i_channel, m_channel,
        FIRST + SECOND, MODULATION,
    )  # fmt: skip
    o_table = i_batch * (2 * (FIRST + SECOND)) + i_channel
    tl.store(p_table + o_table, scale, mask=m_channel)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_table + o_table + FIRST + SECOND, shift, mask=m_channel)


@triton.jit(do_not_specialize=["first_tiles", "second_tiles", "height", "width", "modulation_stride"])
def group_norm_kernel(
    p_first,
    p_second,
    p_first_moments,
    p_second_moments,
    p_table,
    p_weight,
    p_bias,
    p_modulation,
    p_out,
    first_tiles,
    second_tiles,
    height,
    width,
    modulation_stride,
    eps,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE: tl.constexpr,
    MODULATION: tl.constexpr,
    SILU: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """Normalise, scale, shift, SiLU and frame BLOCK_M positions of BLOCK_C channels a program.

    Reads 2·h·w·C bytes (bf16) and the moments, writes 2·(h + 2)·(w + 2)·C. Saves six passes of eager torch: the joined
    pictures, statistics, the normalised, modulated and activated picture, the frame.
    """
    channels: tl.constexpr = FIRST + SECOND
    i_batch = tl.program_id(2)
    first_channel = tl.program_id(1) * BLOCK_C
    i_lane = tl.arange(0, BLOCK_C)
    i_channel = first_channel + i_lane
    pitch = width + 2 * BORDER
    lines = height + 2 * BORDER
    i_position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_y = i_position // pitch - BORDER
    i_x = i_position % pitch - BORDER
    m_position = (i_y >= 0) & (i_y < height) & (i_x >= 0) & (i_x < width)
    i_pixel = (i_batch.to(tl.int64) * (height * width) + i_y * width + i_x)[:, None]
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    if WHOLE:
        groups: tl.constexpr = BLOCK_C // GROUP
        # The whole block lies in one of the pictures, which are equally wide.
        p_x, p_moments, tiles = p_first, p_first_moments, first_tiles
        if first_channel >= FIRST:
            p_x, p_moments, tiles = p_second, p_second_moments, second_tiles
        lane = tl.multiple_of(first_channel % FIRST, BLOCK_C)
        # The picture is asked for before the statistics: it arrives while they are added up.
        b_x = tl.load(p_x + i_pixel * FIRST + lane + i_lane[None, :], mask=m_position[:, None], other=0)
        i_tile = tl.arange(0, BLOCK_TILES)
        # Sums and sums of squares side by side: one reduction for both.
        i_both = tl.arange(0, 2 * BLOCK_C)
        o_both = i_both // BLOCK_C * FIRST + lane + i_both % BLOCK_C
        b_both = tl.zeros((2 * BLOCK_C,), tl.float32)
        for start in range(0, tiles, BLOCK_TILES):
            o_part = (i_batch * tiles + start + i_tile)[:, None] * (2 * FIRST) + o_both[None, :]
            b_both += tl.sum(tl.load(p_moments + o_part, mask=(start + i_tile < tiles)[:, None], other=0), 0)
        b_both = tl.sum(tl.reshape(b_both, (2, groups, GROUP)), 2) / (height * width * GROUP)
        b_mean, b_power = tl.split(tl.trans(b_both))
        b_rstd = tl.rsqrt(tl.maximum(b_power - b_mean * b_mean, 0.0) + eps)
        mean = tl.reshape(tl.broadcast_to(b_mean[:, None], (groups, GROUP)), (BLOCK_C,))
        rstd = tl.reshape(tl.broadcast_to(b_rstd[:, None], (groups, GROUP)), (BLOCK_C,))
        scale, shift = scale_and_shift(
            mean, rstd, p_weight, p_bias, p_modulation + i_batch * modulation_stride, i_channel, None, channels,
            MODULATION,
        )  # fmt: skip
        m_channel = i_lane < BLOCK_C
    else:
        m_channel = i_channel < channels
        m_first = m_position[:, None] & (i_channel < FIRST)[None, :]
        b_x = tl.load(p_first + i_pixel * FIRST + i_channel[None, :], mask=m_first, other=0)
        if SECOND > 0:
            o_second = i_pixel * SECOND + (i_channel - FIRST)[None, :]
            m_second = m_position[:, None] & (m_channel & (i_channel >= FIRST))[None, :]
            b_x += tl.load(p_second + o_second, mask=m_second, other=0)
        o_table = i_batch * (2 * channels) + i_channel
        scale = tl.load(p_table + o_table, mask=m_channel, other=0)
        shift = tl.load(p_table + o_table + channels, mask=m_channel, other=0)
    b_out = b_x.to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        b_out *= tl.sigmoid(b_out)
    b_out = tl.where(m_position[:, None], b_out, 0.0)
    o_out = (i_batch.to(tl.int64) * (lines * pitch) + i_position)[:, None] * channels + i_channel[None, :]
    m_out = (i_position < lines * pitch)[:, None] & m_channel[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
