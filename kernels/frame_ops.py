"""Kernels between a picture in memory and a network's input and output.

Operations and arguments are those of `reference`, bit for bit. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import reference
from instantvision.kernels.launch import launch

# Elements a program writes; 8 a thread at 4 warps.
BLOCK = 1024


def pixels_to_input(
    pixels: Tensor, *, fold: int, mirror: bool, bgr: bool, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """See `reference.pixels_to_input`."""
    out = reference.input_buffer(pixels, fold, dtype, out)
    rows, columns = out.shape[2:]
    grid = (rows, triton.cdiv(columns * 3 * fold * fold, BLOCK))
    launch(pixels_to_input_kernel, grid, pixels, out, columns, FOLD=fold, MIRROR=mirror, BGR=bgr, BLOCK=BLOCK)
    return out


def output_to_pixels(output: Tensor, *, fold: int, bgr: bool, out: Tensor | None = None) -> Tensor:
    """See `reference.output_to_pixels`."""
    out = reference.pixel_buffer(output, fold, out)
    height, width = out.shape[:2]
    grid = (height, triton.cdiv(width * 3, BLOCK))
    _, channel_stride, row_stride, column_stride = output.stride()
    launch(
        output_to_pixels_kernel,
        grid,
        output,
        out,
        width,
        channel_stride,
        row_stride,
        column_stride,
        FOLD=fold,
        BGR=bgr,
        BLOCK=BLOCK,
    )
    return out


@triton.jit
def pixels_to_input_kernel(
    p_pixels,
    p_out,
    columns,
    FOLD: tl.constexpr,
    MIRROR: tl.constexpr,
    BGR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """uint8 [H, W, 3] to folded channels_last, one row of positions by BLOCK values a program.

    Reads 3·H·W bytes, writes 6·H·W (bf16); 2 operations a value. Saves five passes: mirror, fold, to float, scale,
    to the network's dtype. Neighbouring values come from the same few cache lines: the gather costs as much as a copy.
    """
    channels: tl.constexpr = 3 * FOLD * FOLD
    i_row = tl.program_id(0).to(tl.int64)
    # Within a row 32 bits are enough and divisors are constants: no 64-bit division.
    i_value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_value = i_value < columns * channels
    i_channel = i_value % channels
    i_colour = i_channel // (FOLD * FOLD)
    i_x = i_value // channels * FOLD + i_channel % FOLD
    if MIRROR:
        i_x = columns * FOLD - 1 - i_x
    if BGR:
        i_colour = 2 - i_colour
    i_y = i_row * FOLD + i_channel // FOLD % FOLD
    o_pixels = (i_y * (columns * FOLD) + i_x) * 3 + i_colour
    o_out = i_row * (columns * channels) + i_value
    b_value = tl.load(p_pixels + o_pixels, mask=m_value, other=0).to(tl.float32)
    # Subtracting first is exact, which leaves one rounding: the same bits as the reference.
    b_value = (b_value - 127.5) * (1 / 127.5)
    tl.store(p_out + o_out, b_value.to(p_out.dtype.element_ty), mask=m_value)


@triton.jit
def output_to_pixels_kernel(
    p_output,
    p_out,
    width,
    channel_stride,
    row_stride,
    column_stride,
    FOLD: tl.constexpr,
    BGR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Folded values of any strides to uint8 [H, W, 3], one row of pixels by BLOCK values a program.

    Reads 6·H·W bytes (bf16), writes 3·H·W; 5 operations a value. Saves six passes: to float, scale, clamp, round,
    unfold, to bytes.
    """
    i_y = tl.program_id(0)
    i_value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_value = i_value < width * 3
    i_x = i_value // 3
    i_colour = i_value % 3
    if BGR:
        i_colour = 2 - i_colour
    i_channel = (i_colour * FOLD + i_y % FOLD) * FOLD + i_x % FOLD
    o_output = i_channel.to(tl.int64) * channel_stride
    o_output += (i_y // FOLD).to(tl.int64) * row_stride
    o_output += (i_x // FOLD).to(tl.int64) * column_stride
    b_value = tl.load(p_output + o_output, mask=m_value, other=0).to(tl.float32)
    # The clamp between product and sum keeps the compiler from fusing the two into one rounding.
    b_value = tl.minimum(tl.maximum((b_value + 1) * 127.5, 0.0), 255.0) + 0.5
    o_out = i_y.to(tl.int64) * (width * 3) + i_value
    tl.store(p_out + o_out, b_value.to(tl.uint8), mask=m_value)
