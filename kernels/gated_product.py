"""Matrix products of wide transformers in e4m3 with the gate behind them on store, whose starts overlap.

Saves the pass over a product four times as wide as what is kept of it. Which shapes a library's product and a pass are
faster for was measured on an H100 (benchmarks/README.md). Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels.launch import (
    Blocks,
    launch,
    matrix,
    prefetch,
    product_options,
    shared_memory,
    uses_descriptors,
)

# Tokens and channels from which on together a library's product is faster by as much as a pass takes.
LIBRARY_TOKENS, LIBRARY_CHANNELS = 1024, 1280
# Values of a product that keep a GPU busy with the largest tiles.
LARGE = 2**24


def fits_gate(x: Tensor) -> bool:
    """Whether a product of x is faster with its gate on store."""
    channels = x.shape[-1]
    deep = channels >= LIBRARY_CHANNELS and x.numel() // channels >= LIBRARY_TOKENS
    return not deep and uses_descriptors(x)


def product_gated_on_store(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    gate_scale: float,
) -> Tensor:
    """See `token_reference.gated_product`."""
    channels, features = x.shape[-1], len(weight)
    rows = x.numel() // channels
    out = x.new_empty((*x.shape[:-1], features // 2), dtype=dtype)
    blocks = _blocks(rows, features).fitted(shared_memory(x), weight.element_size())
    grid = (triton.cdiv(features, blocks.columns), triton.cdiv(rows, blocks.rows))
    launch(
        gated_product_kernel,
        grid,
        matrix(x.reshape(rows, channels), (blocks.rows, blocks.depth), True),
        matrix(weight, (blocks.columns, blocks.depth), True),
        weight,
        bias,
        *scales,
        out,
        rows,
        1 / gate_scale,
        C=channels,
        N=features,
        BLOCK_M=blocks.rows,
        **product_options(blocks, weight, grid),
    )
    return out


def _blocks(rows: int, features: int) -> Blocks:
    """Measured on an H100 (benchmarks/README.md)."""
    if rows <= 64:
        return Blocks(64, 128, 128, 4, 4)
    if rows * features >= LARGE:
        return Blocks(256, 128, 128, 8, 3)
    return Blocks(128, 128, 128, 4, 3)


@triton.jit
def gelu(x):
    """x times the normal distribution's share below x, to 2e-7 of |x|: the compiler's erf takes three times as long.

    Source: Abramowitz & Stegun 1964, formula 7.1.26.
    """
    size = tl.abs(x)
    t = 1 / (1 + 0.23164189 * size)
    above = t * (
        0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))
    )
    # exp(-x²/2)
    return tl.maximum(x, 0.0) - size * above * tl.exp2(x * x * -0.72134752)


@triton.jit
def gated(b_pairs, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """[BLOCK_M, 2 * BLOCK_C] to [BLOCK_M, BLOCK_C]: each value times GELU of its gate, which the same thread holds."""
    b_value, b_gate = tl.split(tl.reshape(b_pairs, (BLOCK_M, BLOCK_C, 2)))
    return b_value * gelu(b_gate)


@triton.jit(do_not_specialize=["rows"])
def gated_product_kernel(
    x,
    w,
    p_weight,
    p_bias,
    p_x_scale,
    p_scale,
    p_out,
    rows,
    factor,
    C: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M tokens by BLOCK_N features, half of them gates, a program.

    2·T·C·N operations; reads T·C + C·N bytes (e4m3), writes T·N / 2.
    """
    i_n = tl.program_id(0)
    i_m = tl.program_id(1)
    if USE_PDL:
        i_program = i_m * tl.num_programs(0) + i_n
        prefetch(p_weight, C * N, i_program, tl.num_programs(0) * tl.num_programs(1), PREFETCH, THREADS)
    i_feature = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_bias = tl.load(p_bias + i_feature, mask=i_feature < N, other=0).to(tl.float32)
    b_factor = tl.load(p_x_scale) * tl.load(p_scale) * factor
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    b_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # What a last step has beyond C is zeros.
    for k in range(0, C, BLOCK_K):
        b_x = x.load([i_m * BLOCK_M, k])
        b_w = w.load([i_n * BLOCK_N, k])
        b_sum = tl.dot(b_x, b_w.T, b_sum)
    b_out = gated(b_sum * b_factor + b_bias[None, :], BLOCK_M, BLOCK_N // 2)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    i_row = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_column = i_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    o_out = i_row.to(tl.int64)[:, None] * (N // 2) + i_column[None, :]
    m_out = (i_row < rows)[:, None] & (i_column < N // 2)[None, :]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
