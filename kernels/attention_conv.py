"""Attention together with its output projection: the gathered values never go to memory.

The projection is the 1x1 convolution of the literature's fused attention and convolution. Operations and arguments are
those of `reference_layers`. Needs triton.
"""

import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import reference_layers as reference
from instantvision.kernels.launch import launch, matrix, overlapped, shared_memory, uses_descriptors
from instantvision.kernels.softmax import LOG2_E, gathered

# Queries and keys a step, warps and pipeline stages: measured on an H100.
BLOCKS = 64, 128, 4, 3


def attention_conv(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, heads: int) -> Tensor:
    """See `reference_layers.attention_conv`."""
    reference.check_attention_conv(qkv, weight, residual, heads)
    batch, tokens, channels = residual.shape
    width = channels // heads
    block_m, block_n, warps, stages = BLOCKS
    if shared_memory(qkv) < 2 * (block_m + 2 * stages * block_n) * width + 8192:
        stages = 2
    tiles = triton.cdiv(tokens, block_m)
    parts = residual.new_empty((batch, heads, tokens, channels))
    descriptors = uses_descriptors(qkv)
    rows = qkv.flatten(0, 1)
    launch(
        attention_conv_kernel,
        (tiles, heads, batch),
        matrix(rows, (block_m, width), descriptors),
        matrix(rows, (block_n, width), descriptors),
        weight,
        bias,
        residual,
        parts,
        tokens,
        width**-0.5 * LOG2_E,
        C=channels,
        WIDTH=width,
        DESCRIPTORS=descriptors,
        WHOLE=tokens % block_n == 0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_C=min(128, triton.next_power_of_2(channels)),
        num_warps=warps,
        num_stages=stages,
        **overlapped(qkv),
    )
    return parts


def cross_attention(
    parts: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    queries_to_scores: Tensor,
    scores_to_out: Tensor,
    bias: Tensor,
    *,
    heads: int,
    eps: float,
) -> Tensor:
    """See `reference_layers.cross_attention`."""
    reference.check_cross_attention(parts, queries_to_scores, scores_to_out, heads)
    batch, count, tokens, channels = parts.shape
    out = parts.new_empty((batch, tokens, channels))
    context = queries_to_scores.shape[1] // heads
    block_m = 16
    launch(
        cross_attention_kernel,
        (triton.cdiv(tokens, block_m), batch),
        parts,
        norm_weight,
        norm_bias,
        queries_to_scores,
        scores_to_out,
        bias,
        out,
        tokens,
        eps,
        0 if len(queries_to_scores) == 1 else queries_to_scores.stride(0),
        PARTS=count,
        C=channels,
        HEADS=heads,
        CONTEXT=context,
        BLOCK_M=block_m,
        BLOCK_C=triton.next_power_of_2(channels),
        num_warps=4,
        **overlapped(parts),
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def attention_conv_kernel(
    queries,
    keys,
    p_weight,
    p_bias,
    p_residual,
    p_parts,
    tokens,
    scale,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M queries of one head a program, to the head's share of the projection.

    4·T²·C + 2·T·C² operations; reads 8·T·C bytes (bf16), writes 2·T·C a head. Saves the scores, the gathered values,
    and three kernels: projection, bias, residual.
    """
    i_m = tl.program_id(0)
    i_head = tl.program_id(1)
    i_batch = tl.program_id(2)
    i_token = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_width = tl.arange(0, WIDTH)
    m_token = i_token < tokens
    first_row = i_batch * tokens
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    if DESCRIPTORS:
        b_query = queries.load([first_row + i_m * BLOCK_M, i_head * WIDTH])
    else:
        o_query = (first_row + i_token).to(tl.int64)[:, None] * (3 * C) + i_head * WIDTH + i_width[None, :]
        b_query = tl.load(queries + o_query, mask=m_token[:, None], other=0)
    b_gathered = gathered(
        b_query, keys, first_row, C + i_head * WIDTH, C, tokens, scale, 3 * C, WIDTH, DESCRIPTORS, WHOLE,
        BLOCK_M, BLOCK_N, WIDTH,
    )  # fmt: skip
    b_gathered = b_gathered.to(p_weight.dtype.element_ty)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    o_token = (first_row + i_token).to(tl.int64)[:, None] * C
    o_part = ((i_batch * tl.num_programs(1) + i_head) * tokens + i_token).to(tl.int64)[:, None] * C
    for start in range(0, C, BLOCK_C):
        i_channel = start + tl.arange(0, BLOCK_C)
        m_channel = i_channel < C
        o_weight = i_channel[:, None] * C + i_head * WIDTH + i_width[None, :]
        b_weight = tl.load(p_weight + o_weight, mask=m_channel[:, None], other=0)
        b_out = tl.dot(b_gathered, b_weight.T)
        m_out = m_token[:, None] & m_channel[None, :]
        if i_head == 0:
            b_out += tl.load(p_bias + i_channel, mask=m_channel, other=0).to(tl.float32)[None, :]
            b_out += tl.load(p_residual + o_token + i_channel[None, :], mask=m_out, other=0).to(tl.float32)
        tl.store(p_parts + o_part + i_channel[None, :], b_out.to(p_parts.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["tokens", "stride"])
def cross_attention_kernel(
    p_parts,
    p_norm_weight,
    p_norm_bias,
    p_to_scores,
    p_to_out,
    p_bias,
    p_out,
    tokens,
    eps,
    stride,
    PARTS: tl.constexpr,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    CONTEXT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M tokens, all heads a program: add up, normalise, score, softmax, project, add.

    4·T·C·heads·context operations; reads 2·T·C bytes (bf16) a part, writes 2·T·C. Saves every
    intermediate: the normalised tokens, queries, scores, gathered values and the projection.
    """
    i_batch = tl.program_id(1)
    i_channel = tl.arange(0, BLOCK_C)
    i_slot = tl.arange(0, HEADS * CONTEXT)
    i_token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_channel = i_channel < C
    m_x = (i_token < tokens)[:, None] & m_channel[None, :]
    o_slot = i_batch * stride + i_slot[:, None] * C + i_channel[None, :]
    # What does not depend on the kernel before is on its way while that ends.
    b_to_scores = tl.load(p_to_scores + o_slot, mask=m_channel[None, :], other=0)
    b_to_out = tl.load(p_to_out + o_slot, mask=m_channel[None, :], other=0)
    b_scale = tl.load(p_norm_weight + i_channel, mask=m_channel, other=0).to(tl.float32)
    b_shift = tl.load(p_norm_bias + i_channel, mask=m_channel, other=0).to(tl.float32)
    b_bias = tl.load(p_bias + i_channel, mask=m_channel, other=0).to(tl.float32)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    o_x = (i_batch * PARTS * tokens + i_token).to(tl.int64)[:, None] * C + i_channel[None, :]
    b_x = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in tl.static_range(PARTS):
        b_x += tl.load(p_parts + o_x + i * tokens * C, mask=m_x, other=0).to(tl.float32)
    b_normal = tl.where(m_channel[None, :], b_x - (tl.sum(b_x, 1) / C)[:, None], 0.0)
    b_normal *= tl.rsqrt(tl.sum(b_normal * b_normal, 1) / C + eps)[:, None]
    b_normal = b_normal * b_scale[None, :] + b_shift[None, :]
    b_score = tl.dot(b_normal.to(b_to_scores.dtype), b_to_scores.T)
    b_score = tl.reshape(b_score, (BLOCK_M, HEADS, CONTEXT))
    b_share = tl.exp(b_score - tl.max(b_score, 2)[:, :, None])
    b_share = b_share / tl.sum(b_share, 2)[:, :, None]
    b_share = tl.reshape(b_share, (BLOCK_M, HEADS * CONTEXT)).to(b_to_out.dtype)
    b_out = tl.dot(b_share, b_to_out) + b_x + b_bias[None, :]
    o_out = (i_batch * tokens + i_token).to(tl.int64)[:, None] * C + i_channel[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_x)
