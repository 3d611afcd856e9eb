"""What every attention does with a tile of queries, as a part of a kernel. Needs triton.

Source: online softmax as in Milakov & Gimelshein 2018 (arXiv 1805.02867) and Dao et al. 2022 (arXiv 2205.14135).
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def gathered(
    b_query,
    others,
    first_row,
    first_column,
    to_values,
    context,
    scale,
    PITCH: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Values weighed by the softmax of queries and keys, [BLOCK_M, BLOCK_W], float32.

    Keys are rows of `others` from `first_row` and `first_column` on, values `to_values` columns further right; `scale`
    is that of the scores times log2(e). BLOCK_N keys a step; WHOLE: they fill their last step.
    """
    i_width = tl.arange(0, BLOCK_W)
    b_max = tl.full((BLOCK_M,), -1e30, tl.float32)
    b_total = tl.zeros((BLOCK_M,), tl.float32)
    b_gathered = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
    for start in range(0, context, BLOCK_N):
        i_key = start + tl.arange(0, BLOCK_N)
        if DESCRIPTORS:
            b_key = others.load([first_row + start, first_column])
            b_value = others.load([first_row + start, first_column + to_values])
        else:
            o_key = (first_row + i_key).to(tl.int64)[:, None] * PITCH + first_column + i_width[None, :]
            m_key = (i_key < context)[:, None] & (i_width < WIDTH)[None, :]
            b_key = tl.load(others + o_key, mask=m_key, other=0)
            b_value = tl.load(others + o_key + to_values, mask=m_key, other=0)
        b_score = tl.dot(b_query, b_key.T)
        if not WHOLE:
            b_score = tl.where((i_key < context)[None, :], b_score, -1e30)
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1) * scale)
        b_share = tl.exp2(b_score * scale - b_new_max[:, None])
        b_decay = tl.exp2(b_max - b_new_max)
        b_total = b_total * b_decay + tl.sum(b_share, 1)
        b_gathered = tl.dot(b_share.to(b_value.dtype), b_value, b_gathered * b_decay[:, None])
        b_max = b_new_max
    return b_gathered / b_total[:, None]
