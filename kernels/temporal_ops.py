"""Kernels for what a frame takes over from the one before. Operations and arguments are those of
`temporal_reference`; any memory order is read as it lies. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import temporal_reference as reference
from instantvision.kernels.launch import launch

# Positions a program handles: with all their channels at once, and of a plane.
POSITIONS, BLOCK = 32, 128


def motion(latents: Tensor, before: Tensor, *, out: Tensor | None = None) -> Tensor:
    """See `temporal_reference.motion`."""
    reference.check_pair(latents, before)
    out = reference.plane(latents) if out is None else out
    channels, count = _sizes(latents)
    launch(
        motion_kernel,
        (triton.cdiv(count, BLOCK),),
        latents,
        before,
        out,
        *_strides(latents),
        *_strides(before),
        latents.shape[3],
        count,
        CHANNELS=channels,
        BLOCK=BLOCK,
    )
    return out


def gate(motion: Tensor, limits: Tensor) -> Tensor:
    """See `temporal_reference.gate`."""
    out = torch.empty_like(motion)
    rows, columns = motion.shape[2:]
    launch(
        gate_kernel, (triton.cdiv(rows * columns, BLOCK),), motion, limits, out, rows, columns, BLOCK=BLOCK
    )
    return out


def spread(gate: Tensor) -> Tensor:
    """See `temporal_reference.spread`."""
    out = torch.empty_like(gate)
    rows, columns = gate.shape[2:]
    launch(spread_kernel, (triton.cdiv(rows * columns, BLOCK),), gate, out, rows, columns, BLOCK=BLOCK)
    return out


def blend(kept: Tensor, new: Tensor, share: Tensor, *, out: Tensor | None = None) -> Tensor:
    """See `temporal_reference.blend`."""
    reference.check_pair(kept, new)
    out = torch.empty_like(kept) if out is None else out
    channels, count = _sizes(kept)
    launch(
        blend_kernel,
        (triton.cdiv(count, POSITIONS),),
        kept,
        new,
        share,
        out,
        *_strides(kept),
        *_strides(new),
        *_strides(out),
        kept.shape[3],
        channels,
        count,
        CHANNELS=triton.next_power_of_2(channels),
        POSITIONS=POSITIONS,
    )
    return out


def _sizes(latents: Tensor) -> tuple[int, int]:
    return latents.shape[1], latents.shape[2] * latents.shape[3]


def _strides(latents: Tensor) -> tuple[int, ...]:
    return latents.stride()[1:]


@triton.jit
def motion_kernel(
    p_latents,
    p_before,
    p_out,
    one_channel,
    one_row,
    one_column,
    other_channel,
    other_row,
    other_column,
    columns,
    count,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean over the channels of the squared difference, BLOCK positions a program.

    Reads 4 bytes a value (bf16), writes 4 a position; 3 operations a value. Saves the difference and its square
    going to memory and back. In channels_last a position's 32 channels share one line of the cache.
    """
    o_position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_position = o_position < count
    i_row, i_column = o_position // columns, o_position % columns
    o_one = i_row * one_row + i_column * one_column
    o_other = i_row * other_row + i_column * other_column
    b_sum = tl.full((BLOCK,), 0.0, tl.float32)
    for i_channel in range(CHANNELS):
        b_one = tl.load(p_latents + o_one + i_channel * one_channel, mask=m_position, other=0)
        b_other = tl.load(p_before + o_other + i_channel * other_channel, mask=m_position, other=0)
        b_difference = b_one.to(tl.float32) - b_other.to(tl.float32)
        b_sum += b_difference * b_difference
    tl.store(p_out + o_position, b_sum / CHANNELS, mask=m_position)


@triton.jit
def gate_kernel(p_motion, p_limits, p_out, rows, columns, BLOCK: tl.constexpr):
    """Mean over 3x3, root, smooth step; BLOCK positions a program.

    Reads 4 bytes a position from memory (the neighbours are in the cache) and writes 4; some 20 operations. Saves
    four passes.
    """
    o_position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i_row, i_column = o_position // columns, o_position % columns
    m_position = o_position < rows * columns
    b_sum = tl.full((BLOCK,), 0.0, tl.float32)
    b_count = tl.full((BLOCK,), 0.0, tl.float32)
    for i_neighbour in tl.static_range(9):
        row, column = i_row + i_neighbour // 3 - 1, i_column + i_neighbour % 3 - 1
        m_there = m_position & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        b_sum += tl.load(p_motion + row * columns + column, mask=m_there, other=0)
        b_count += m_there.to(tl.float32)
    low = tl.load(p_limits)
    high = tl.load(p_limits + 1)
    # Positions beyond the end have no neighbours: their result is not stored, but must not divide by zero.
    t = (tl.sqrt(b_sum / tl.maximum(b_count, 1)) - low) / (high - low)
    t = tl.minimum(tl.maximum(t, 0), 1)
    tl.store(p_out + o_position, t * t * (3 - 2 * t), mask=m_position)


@triton.jit
def spread_kernel(p_gate, p_out, rows, columns, BLOCK: tl.constexpr):
    """Mean over 3x3 of the maximum over 3x3; BLOCK positions a program.

    Reads 4 bytes a position from memory (the 25 neighbours are in the cache) and writes 4; 81 loads instead of
    another pass, which at a few thousand positions costs less than a launch.
    """
    o_position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i_row, i_column = o_position // columns, o_position % columns
    m_position = o_position < rows * columns
    b_sum = tl.full((BLOCK,), 0.0, tl.float32)
    b_count = tl.full((BLOCK,), 0.0, tl.float32)
    for i_neighbour in tl.static_range(9):
        near_row, near_column = i_row + i_neighbour // 3 - 1, i_column + i_neighbour % 3 - 1
        m_near = m_position & (near_row >= 0) & (near_row < rows)
        m_near &= (near_column >= 0) & (near_column < columns)
        b_max = tl.full((BLOCK,), 0.0, tl.float32)
        for i_next in tl.static_range(9):
            row, column = near_row + i_next // 3 - 1, near_column + i_next % 3 - 1
            m_there = m_near & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            b_max = tl.maximum(b_max, tl.load(p_gate + row * columns + column, mask=m_there, other=0))
        b_sum += b_max
        b_count += m_near.to(tl.float32)
    tl.store(p_out + o_position, b_sum / tl.maximum(b_count, 1), mask=m_position)


@triton.jit
def blend_kernel(
    p_kept,
    p_new,
    p_share,
    p_out,
    kept_channel,
    kept_row,
    kept_column,
    new_channel,
    new_row,
    new_column,
    out_channel,
    out_row,
    out_column,
    columns,
    channels,
    count,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """(1 - share)·kept + share·new, POSITIONS positions a program.

    Reads 4 bytes a value (bf16) and writes 2; 3 operations. Saves two passes: the scaled parts.
    """
    o_position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    o_channel = tl.arange(0, CHANNELS).to(tl.int64)[None, :]
    m_position = o_position < count
    m_value = m_position[:, None] & (o_channel < channels)
    i_row, i_column = (o_position // columns)[:, None], (o_position % columns)[:, None]
    o_kept = i_row * kept_row + i_column * kept_column + o_channel * kept_channel
    o_new = i_row * new_row + i_column * new_column + o_channel * new_channel
    o_out = i_row * out_row + i_column * out_column + o_channel * out_channel
    b_share = tl.load(p_share + o_position, mask=m_position, other=0)[:, None]
    b_kept = tl.load(p_kept + o_kept, mask=m_value, other=0).to(tl.float32)
    b_new = tl.load(p_new + o_new, mask=m_value, other=0).to(tl.float32)
    b_out = (1 - b_share) * b_kept + b_share * b_new
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_value)
