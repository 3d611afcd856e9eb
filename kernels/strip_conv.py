"""3x3 convolutions of few channels in e4m3 over a large picture: a program walks down a strip of lines.

With so few channels a tile's products take less time than fetching it nine times. Here a line is fetched three times,
once for each shift to the side, and multiplied for the lines above, below and its own, whose sums are under way at the
same time; the weights stay in shared memory all along. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import conv_reference as reference
from instantvision.kernels.launch import launch, matrix, overlapped, shared_memory, uses_descriptors

# Channels and features whose weights find room in shared memory, of which so much is needed then.
CHANNELS, SHARED_MIN = 64, 100 * 1024
# A strip's width and lines, warps and pipeline stages of a program: measured on an H100.
WIDTH, LINES, WARPS, STAGES = 64, 16, 4, 4
# Programs from which on a walk's lines keep the GPU as busy as tiles do that all start at once.
PROGRAMS_MIN = 256


def fits_strips(framed: Tensor, weight: Tensor) -> bool:
    """Whether `strip_conv3x3` is the faster way to convolve at stride 1."""
    batch, channels, height, width = framed.shape
    programs = batch * triton.cdiv(height - 2, LINES) * triton.cdiv(width - 2, WIDTH)
    return (
        weight.element_size() == 1
        and channels == len(weight) == CHANNELS
        and programs >= PROGRAMS_MIN
        and uses_descriptors(framed)
        and shared_memory(framed) >= SHARED_MIN
    )


def strip_conv3x3(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: reference.Activation,
    framed_out: bool,
    scale: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """See `conv_reference.conv3x3`."""
    batch, channels, framed_height, framed_width = framed.shape
    height, width, border = framed_height - 2, framed_width - 2, 2 * framed_out
    out = reference.picture_buffer(framed, channels, height + border, width + border, dtype or bias.dtype)
    x_matrix = framed.permute(0, 2, 3, 1).reshape(-1, channels)
    w_matrix = weight.permute(0, 2, 3, 1).flatten(1)
    launch(
        strip_conv3x3_kernel,
        (triton.cdiv(width, WIDTH), triton.cdiv(height, LINES), batch),
        matrix(x_matrix, (WIDTH, channels), True),
        matrix(w_matrix, (channels, channels), True),
        bias,
        bias if scale is None else scale,
        out,
        height,
        width,
        N=channels,
        ACTIVATION=activation,
        SCALED=scale is not None,
        FRAMED_OUT=framed_out,
        LINES=LINES,
        BLOCK_M=WIDTH,
        num_warps=WARPS,
        num_stages=STAGES,
        **overlapped(framed),
    )
    return out


@triton.jit(do_not_specialize=["height", "width"])
def strip_conv3x3_kernel(
    x,
    w,
    p_bias,
    p_scale,
    p_out,
    height,
    width,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    FRAMED_OUT: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """LINES lines of BLOCK_M positions a program, N channels to N features.

    18·h·w·N·N operations, LINES + 2 for every LINES of them; reads h·w·N bytes, each position three times, those of
    the lines between two strips twice as often; writes as many.
    """
    i_strip = tl.program_id(0)
    i_batch = tl.program_id(2)
    pitch = width + 2
    first_line = tl.program_id(1) * LINES
    i_x = i_strip * BLOCK_M + tl.arange(0, BLOCK_M)
    i_feature = tl.arange(0, N)
    row = (i_batch * (height + 2) + first_line) * pitch + i_strip * BLOCK_M
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    w_00, w_01, w_02 = w.load([0, 0]), w.load([0, N]), w.load([0, 2 * N])
    w_10, w_11, w_12 = w.load([0, 3 * N]), w.load([0, 4 * N]), w.load([0, 5 * N])
    w_20, w_21, w_22 = w.load([0, 6 * N]), w.load([0, 7 * N]), w.load([0, 8 * N])
    b_bias = tl.load(p_bias + i_feature).to(tl.float32)[None, :]
    b_scale = tl.load(p_scale + i_feature).to(tl.float32)[None, :]
    # Sums of the line that the line just read is in the middle of, and of the one that it begins.
    b_middle = tl.zeros((BLOCK_M, N), tl.float32)
    b_begun = tl.zeros((BLOCK_M, N), tl.float32)
    for i in range(LINES + 2):
        b_x_0 = x.load([row + i * pitch, 0])
        b_x_1 = x.load([row + i * pitch + 1, 0])
        b_x_2 = x.load([row + i * pitch + 2, 0])
        b_sum = tl.dot(b_x_2, w_22.T, tl.dot(b_x_1, w_21.T, tl.dot(b_x_0, w_20.T, b_middle)))
        b_middle = tl.dot(b_x_2, w_12.T, tl.dot(b_x_1, w_11.T, tl.dot(b_x_0, w_10.T, b_begun)))
        b_begun = tl.dot(b_x_2, w_02.T, tl.dot(b_x_1, w_01.T, tl.dot(b_x_0, w_00.T)))
        if SCALED:
            b_sum *= b_scale
        b_sum += b_bias
        if ACTIVATION == "silu":
            b_sum = b_sum * tl.sigmoid(b_sum)
        if ACTIVATION == "relu":
            b_sum = tl.maximum(b_sum, 0.0)
        b_out = b_sum.to(p_out.dtype.element_ty)
        # The first two lines end those of the strip above.
        i_y = first_line + i - 2
        whole = (i >= 2) & (i_y < height)
        m_out = ((i_x < width) & whole)[:, None]
        if FRAMED_OUT:
            p_line = p_out + ((i_batch * (height + 2) + i_y + 1) * pitch + 1).to(tl.int64) * N
            tl.store(p_line + i_x[:, None] * N + i_feature[None, :], b_out, mask=m_out)
            # The frame's right side, and behind it the left side of the next line.
            i_side = tl.arange(0, 2 * N)
            b_side = tl.zeros((2 * N,), p_out.dtype.element_ty)
            tl.store(p_line + width * N + i_side, b_side, mask=whole & (i_strip == tl.num_programs(0) - 1))
        else:
            p_line = p_out + ((i_batch * height + i_y) * width).to(tl.int64) * N
            tl.store(p_line + i_x[:, None] * N + i_feature[None, :], b_out, mask=m_out)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if FRAMED_OUT:
        # The strips at an edge together clear the top, with the left side of the line below it, and the bottom.
        b_empty = tl.zeros((BLOCK_M, N), p_out.dtype.element_ty)
        p_frame = p_out + (i_batch * (height + 2) * pitch).to(tl.int64) * N
        if first_line == 0:
            for start in range(0, pitch + 1, tl.num_programs(0) * BLOCK_M):
                m_frame = (start + i_x <= pitch)[:, None]
                tl.store(p_frame + (start + i_x)[:, None] * N + i_feature[None, :], b_empty, mask=m_frame)
        if first_line + LINES >= height:
            p_frame += ((height + 1) * pitch).to(tl.int64) * N
            for start in range(0, pitch, tl.num_programs(0) * BLOCK_M):
                m_frame = (start + i_x < pitch)[:, None]
                tl.store(p_frame + (start + i_x)[:, None] * N + i_feature[None, :], b_empty, mask=m_frame)
