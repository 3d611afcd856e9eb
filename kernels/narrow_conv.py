"""3x3 convolutions to a few features, as a decoder's last: a position is read for three taps at once.

A tap has too few features for the matrix units, and nine taps read all of a large picture nine times. Three taps side
by side are multiplied together; each of their columns is then shifted to the position that it counts for. Needs triton.
"""

import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import conv_reference as reference
from instantvision.kernels.launch import (
    fit_pipeline,
    launch,
    matrix,
    overlapped,
    shared_memory,
    step_depth,
    uses_descriptors,
)

# Features that a tap's columns have room for, four taps of them, the last one empty.
FEATURES_MAX = 4
# Positions from which on larger tiles still keep a GPU busy.
LARGE_MIN = 32768


def narrow_conv3x3(framed: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `conv_reference.conv3x3`, of at most FEATURES_MAX features, without options."""
    batch, channels, framed_height, framed_width = framed.shape
    height, width = framed_height - 2, framed_width - 2
    positions = (height - 1) * framed_width + width
    rows = 128 if positions * batch > LARGE_MIN else 64
    depth, stages = fit_pipeline(rows, 16, step_depth(channels), 4, shared_memory(framed))
    descriptors = uses_descriptors(framed)
    x_matrix = framed.permute(0, 2, 3, 1).reshape(-1, channels)
    out = reference.picture_buffer(framed, len(weight), height, width)
    launch(
        narrow_conv3x3_kernel,
        (triton.cdiv(positions, rows - 2), batch),
        matrix(x_matrix, (rows, depth), descriptors),
        weight,
        bias,
        out,
        len(x_matrix),
        height,
        width,
        framed_height,
        C=channels,
        N=len(weight),
        DESCRIPTORS=descriptors,
        BLOCK_M=rows,
        BLOCK_K=depth,
        num_warps=4,
        num_stages=stages,
        **overlapped(framed),
    )
    return out


@triton.jit(do_not_specialize=["x_rows", "height", "width", "framed_height"])
def narrow_conv3x3_kernel(
    x,
    p_weight,
    p_bias,
    p_out,
    x_rows,
    height,
    width,
    framed_height,
    C: tl.constexpr,
    N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M - 2 positions a program: the last two are read for the taps of those before.

    18·h·w·C·N operations; reads 2·h·w·C bytes (bf16), each position three times, writes 2·h·w·N.
    """
    pitch = width + 2
    i_batch = tl.program_id(1)
    first = tl.program_id(0) * (BLOCK_M - 2)
    i_row = tl.arange(0, BLOCK_M)
    i_column = tl.arange(0, 16)
    i_tap = i_column // 4
    m_weight = (i_tap < 3) & (i_column % 4 < N)
    row = i_batch * (framed_height * pitch) + first
    steps: tl.constexpr = C // BLOCK_K
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    b_sum = tl.zeros((BLOCK_M, 16), tl.float32)
    for i in range(3 * steps):
        i_line = i // steps
        i_channel = (i % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        if DESCRIPTORS:
            b_x = x.load([row + i_line * pitch, (i % steps) * BLOCK_K])
        else:
            i_x_row = row + i_line * pitch + i_row
            o_x = i_x_row.to(tl.int64)[:, None] * C + i_channel[None, :]
            b_x = tl.load(x + o_x, mask=(i_x_row < x_rows)[:, None], other=0.0)
        o_weight = ((i_column % 4) * 9 + i_line * 3 + i_tap) * C
        b_weight = tl.load(
            p_weight + o_weight[:, None] + i_channel[None, :], mask=m_weight[:, None], other=0.0
        )
        b_sum = tl.dot(b_x, b_weight.T, b_sum)
    # A position's second tap was multiplied one row further on, its third another one.
    i_source = tl.minimum(i_row[:, None] + i_tap[None, :], BLOCK_M - 1)
    b_sum = tl.sum(tl.reshape(tl.gather(b_sum, i_source, 0), (BLOCK_M, 4, 4)), 1)
    i_feature = tl.arange(0, 4)
    m_feature = i_feature < N
    b_sum += tl.load(p_bias + i_feature, mask=m_feature, other=0).to(tl.float32)[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    i_y = (first + i_row) // pitch
    i_x = (first + i_row) % pitch
    m_position = (i_row < BLOCK_M - 2) & (i_y < height) & (i_x < width)
    i_pixel = i_batch * (height * width) + i_y * width + i_x
    o_out = i_pixel.to(tl.int64)[:, None] * N + i_feature[None, :]
    tl.store(p_out + o_out, b_sum.to(p_out.dtype.element_ty), mask=m_position[:, None] & m_feature[None, :])
