"""What a 3x3 convolution of few channels multiplies, as a part of its kernel. Needs triton."""

import triton
import triton.language as tl


@triton.jit
def taps_side_by_side(
    p_picture,
    i_batch,
    i_y,
    i_x,
    height,
    width,
    offset,
    limit,
    C: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All nine taps of positions of a picture without frame, [positions, BLOCK_K], beyond 9·C and the picture zeros.

    Values are tanh(value / limit) where they are LIMITED; then comes the offset.
    """
    i_k = tl.arange(0, BLOCK_K)
    i_tap = i_k // C
    i_tap_y = i_y[:, None] + i_tap[None, :] // 3 - 1
    i_tap_x = i_x[:, None] + i_tap[None, :] % 3 - 1
    m_inside = (i_tap_y >= 0) & (i_tap_y < height) & (i_tap_x >= 0) & (i_tap_x < width) & (i_tap < 9)[None, :]
    o_picture = ((i_batch * height + i_tap_y).to(tl.int64) * width + i_tap_x) * C + (i_k % C)[None, :]
    b_taps = tl.load(p_picture + o_picture, mask=m_inside, other=0).to(tl.float32)
    if LIMITED:
        b_taps = 2 * tl.sigmoid(2 / limit * b_taps) - 1
    return tl.where(m_inside, b_taps + offset, 0.0).to(p_picture.dtype.element_ty)
