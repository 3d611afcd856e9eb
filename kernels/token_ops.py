"""Layers of wide transformers: everything between two matrix products in one pass over memory.

The products themselves are a library's, which is faster at these widths (benchmarks/README.md). Operations and
arguments are those of `token_reference`. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import token_reference as reference
from instantvision.kernels.attention import attention, rounded
from instantvision.kernels.gated_product import fits_gate, gated, gelu, product_gated_on_store
from instantvision.kernels.launch import launch, overlapped

__all__ = ["add_layer_norm", "attention", "gated_product", "geglu", "rounded"]

# Tokens and values of each that a program of `geglu` writes: measured on an H100.
GEGLU_BLOCK = 8, 256


def add_layer_norm(
    x: Tensor,
    update: Tensor | None,
    update_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See `token_reference.add_layer_norm`."""
    channels = x.shape[-1]
    tokens = x.numel() // channels
    out, normal = torch.empty_like(x) if update is not None else x, torch.empty_like(x, dtype=dtype)
    rows, warps = _norm_tile(channels)
    launch(
        add_layer_norm_kernel,
        (triton.cdiv(tokens, rows),),
        x,
        x if update is None else update,
        bias if update_bias is None else update_bias,
        weight,
        bias,
        out,
        normal,
        tokens,
        eps,
        C=channels,
        UPDATE=update is not None,
        UPDATE_BIAS=update_bias is not None,
        BLOCK_M=rows,
        BLOCK_C=triton.next_power_of_2(channels),
        num_warps=warps,
        **overlapped(x),
    )
    return out, normal


def _norm_tile(channels: int) -> tuple[int, int]:
    """Tokens and warps of a program of `add_layer_norm`: measured on an H100."""
    return (1, 8) if channels > 1024 else (2, 2) if channels > 512 else (8, 8)


def geglu(x: Tensor, bias: Tensor, *, dtype: torch.dtype, scale: float = 1.0, paired: bool = False) -> Tensor:
    """See `token_reference.geglu`."""
    *shape, both = x.shape
    channels = both // 2
    out = x.new_empty((*shape, channels), dtype=dtype)
    rows, columns = GEGLU_BLOCK
    grid = (triton.cdiv(channels, columns), triton.cdiv(x.numel() // both, rows))
    launch(
        geglu_kernel,
        grid,
        x,
        bias,
        out,
        x.numel() // both,
        1 / scale,
        C=channels,
        PAIRED=paired,
        BLOCK_M=rows,
        BLOCK_C=columns,
        num_warps=4,
        **overlapped(x),
    )
    return out


def gated_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: tuple[Tensor, Tensor],
    *,
    dtype: torch.dtype,
    gate_scale: float = 1.0,
) -> Tensor:
    """See `token_reference.gated_product`."""
    if fits_gate(x):
        return product_gated_on_store(x, weight, bias, scales, dtype, gate_scale)
    pairs = reference.product(x, weight, scales, x.dtype)
    return geglu(pairs, bias, dtype=dtype, scale=gate_scale, paired=True)


@triton.jit(do_not_specialize=["tokens"])
def add_layer_norm_kernel(
    p_x,
    p_update,
    p_update_bias,
    p_weight,
    p_bias,
    p_out,
    p_normal,
    tokens,
    eps,
    C: tl.constexpr,
    UPDATE: tl.constexpr,
    UPDATE_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M whole tokens a program.

    Reads 4·T·C bytes (bf16), writes as many. Saves the sum's and the normalisation's passes.
    """
    i_token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_channel = tl.arange(0, BLOCK_C)
    m_channel = i_channel < C
    m_x = (i_token < tokens)[:, None] & m_channel[None, :]
    o_x = i_token.to(tl.int64)[:, None] * C + i_channel[None, :]
    # Weights do not depend on the kernel before: they are on their way while it ends.
    b_scale = tl.load(p_weight + i_channel, mask=m_channel, other=0).to(tl.float32)
    b_shift = tl.load(p_bias + i_channel, mask=m_channel, other=0).to(tl.float32)
    if UPDATE_BIAS:
        b_update_bias = tl.load(p_update_bias + i_channel, mask=m_channel, other=0).to(tl.float32)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    b_x = tl.load(p_x + o_x, mask=m_x, other=0).to(tl.float32)
    if UPDATE:
        b_x += tl.load(p_update + o_x, mask=m_x, other=0).to(tl.float32)
        if UPDATE_BIAS:
            b_x += b_update_bias[None, :]
        # Normalised is what others will read.
        b_sum = b_x.to(p_out.dtype.element_ty)
        b_x = tl.where(m_x, b_sum.to(tl.float32), 0.0)
    b_centred = tl.where(m_x, b_x - (tl.sum(b_x, 1) / C)[:, None], 0.0)
    b_normal = b_centred * tl.rsqrt(tl.sum(b_centred * b_centred, 1) / C + eps)[:, None]
    b_normal = b_normal * b_scale[None, :] + b_shift[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if UPDATE:
        tl.store(p_out + o_x, b_sum, mask=m_x)
    tl.store(p_normal + o_x, b_normal.to(p_normal.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["tokens"])
def geglu_kernel(
    p_x,
    p_bias,
    p_out,
    tokens,
    factor,
    C: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M tokens by BLOCK_C channels a program. Reads 4·T·C bytes (bf16), writes 2·T·C; of each half in e4m3."""
    i_token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = i_channel < C
    m_x = (i_token < tokens)[:, None] & m_channel[None, :]
    o_token = i_token.to(tl.int64)[:, None]
    if PAIRED:
        i_either = tl.program_id(0) * (2 * BLOCK_C) + tl.arange(0, 2 * BLOCK_C)
        m_either = (i_token < tokens)[:, None] & (i_either < 2 * C)[None, :]
        b_bias = tl.load(p_bias + i_either, mask=i_either < 2 * C, other=0).to(tl.float32)
    else:
        b_value_bias = tl.load(p_bias + i_channel, mask=m_channel, other=0).to(tl.float32)
        b_gate_bias = tl.load(p_bias + C + i_channel, mask=m_channel, other=0).to(tl.float32)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    if PAIRED:
        b_x = tl.load(p_x + o_token * (2 * C) + i_either[None, :], mask=m_either, other=0.0).to(tl.float32)
        b_out = gated(b_x * factor + b_bias[None, :], BLOCK_M, BLOCK_C)
    else:
        o_x = o_token * (2 * C) + i_channel[None, :]
        b_value = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32) * factor + b_value_bias[None, :]
        b_gate = tl.load(p_x + o_x + C, mask=m_x, other=0.0).to(tl.float32) * factor + b_gate_bias[None, :]
        b_out = b_value * gelu(b_gate)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_token * C + i_channel[None, :], b_out.to(p_out.dtype.element_ty), mask=m_x)
