"""Linear layers over tokens: normalised while loading, gated or added to the residual stream while storing.

Operations and arguments are those of `reference_layers`. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import reference_layers as reference
from instantvision.kernels.launch import (
    Blocks,
    launch,
    matrix,
    overlapped,
    prefetch,
    product_options,
    shared_memory,
    uses_descriptors,
)


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    groups: int = 0,
    moments: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """See `reference_layers.norm_linear`."""
    reference.check_norm_linear(x, weight, groups, moments)
    batch, tokens, channels = x.shape
    features = len(weight) // (2 if gated else 1)
    out = x.new_empty((batch, tokens, features), dtype=weight.dtype)
    block_m, block_n, warps = norm_blocks(channels, gated, groups > 0, shared_memory(x))
    grid = (triton.cdiv(features, block_n), triton.cdiv(tokens, block_m), batch)
    launch(
        norm_linear_kernel,
        grid,
        x,
        norm_weight,
        norm_bias,
        weight,
        norm_weight if bias is None else bias,
        norm_weight if moments is None else moments,
        out,
        tokens,
        0 if moments is None else moments.shape[1],
        eps,
        C=channels,
        N=features,
        GROUPS=groups,
        GATED=gated,
        BIAS=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_C=triton.next_power_of_2(channels),
        num_warps=warps,
        **overlapped(x),
    )
    return out


def linear(
    sources: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    moments: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `reference_layers.linear`."""
    reference.check_linear(sources, weight)
    first, second = (*sources, sources[0])[:2]
    batch, tokens, _ = first.shape
    features = len(weight)
    blocks = _blocks(batch * tokens, features)
    depth = next(k for k in (blocks.depth, 64, 32, 16) if all(source.shape[2] % k == 0 for source in sources))
    blocks = blocks._replace(depth=depth).fitted(shared_memory(first))
    tiles = triton.cdiv(tokens, blocks.rows)
    out = first.new_empty((batch, tokens, features))
    parts = first.new_empty((batch, tiles, 2, features), dtype=torch.float32) if moments else None
    descriptors = uses_descriptors(first)
    grid = (triton.cdiv(features, blocks.columns), tiles, batch)
    launch(
        linear_kernel,
        grid,
        matrix(first.flatten(0, 1), (blocks.rows, blocks.depth), descriptors),
        matrix(second.flatten(0, 1), (blocks.rows, blocks.depth), descriptors),
        matrix(weight, (blocks.columns, blocks.depth), descriptors),
        weight,
        bias,
        out if residual is None else residual,
        out,
        bias if parts is None else parts,
        tokens,
        batch * tokens,
        FIRST=first.shape[2],
        SECOND=second.shape[2] if len(sources) > 1 else 0,
        N=features,
        RESIDUAL=residual is not None,
        MOMENTS=moments,
        DESCRIPTORS=descriptors,
        BLOCK_M=blocks.rows,
        **product_options(blocks, weight, grid),
    )
    return out, parts


def norm_blocks(channels: int, gated: bool, grouped: bool, shared: int) -> tuple[int, int, int]:
    """Tokens and features a program of `norm_linear`, and its warps: measured on an H100, within shared memory."""
    rows, columns, warps = (64, 64, 4) if grouped or not gated else (64, 128, 8)
    line = 2 * triton.next_power_of_2(channels)
    while columns > 16 and (rows + columns * (2 if gated else 1)) * line > shared - 8192:
        columns //= 2
    return rows, columns, warps


def _blocks(tokens: int, features: int) -> Blocks:
    """Of `linear`: measured on an H100."""
    if triton.cdiv(tokens, 128) * triton.cdiv(features, 128) >= 100:
        return Blocks(128, 128, 64, 8, 3)
    return Blocks(64, 32, 128, 4, 5)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def norm_linear_kernel(
    p_x,
    p_norm_weight,
    p_norm_bias,
    p_weight,
    p_bias,
    p_moments,
    p_out,
    tokens,
    tiles,
    eps,
    C: tl.constexpr,
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M tokens by BLOCK_N features a program; whole tokens are held, so they are normalised without a pass.

    2·T·C·N operations, twice that when gated; reads 2·(T·C + C·N) bytes (bf16), writes 2·T·N. Saves the normalised
    tokens going to memory and back and, when gated, the ungated features, four times as many.
    """
    i_n = tl.program_id(0)
    i_batch = tl.program_id(2)
    i_channel = tl.arange(0, BLOCK_C)
    i_token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    i_feature = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_channel = i_channel < C
    m_token = i_token < tokens
    m_feature = i_feature < N
    m_x = m_token[:, None] & m_channel[None, :]
    # Weights do not depend on the kernel before: they are on their way while it ends.
    o_weight = i_feature[:, None] * C + i_channel[None, :]
    m_weight = m_feature[:, None] & m_channel[None, :]
    b_weight = tl.load(p_weight + o_weight, mask=m_weight, other=0)
    if GATED:
        b_gate_weight = tl.load(p_weight + N * C + o_weight, mask=m_weight, other=0)
    b_scale = tl.load(p_norm_weight + i_channel, mask=m_channel, other=0).to(tl.float32)
    b_shift = tl.load(p_norm_bias + i_channel, mask=m_channel, other=0).to(tl.float32)
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    o_token = (i_batch * tokens + i_token).to(tl.int64)[:, None]
    b_x = tl.load(p_x + o_token * C + i_channel[None, :], mask=m_x, other=0).to(tl.float32)
    if GROUPS > 0:
        group: tl.constexpr = C // GROUPS
        i_tile = tl.arange(0, 32)
        # Sums and sums of squares side by side: one reduction for both.
        i_both = tl.arange(0, 2 * BLOCK_C)
        b_both = tl.zeros((2 * BLOCK_C,), tl.float32)
        for start in range(0, tiles, 32):
            o_part = (i_batch * tiles + start + i_tile)[:, None] * (2 * C) + i_both[None, :]
            b_both += tl.sum(tl.load(p_moments + o_part, mask=(start + i_tile < tiles)[:, None], other=0), 0)
        b_both = tl.sum(tl.reshape(b_both, (2, GROUPS, group)), 2) / (tokens * group)
        b_group_mean, b_power = tl.split(tl.trans(b_both))
        b_group_rstd = tl.rsqrt(tl.maximum(b_power - b_group_mean * b_group_mean, 0.0) + eps)
        b_mean = tl.reshape(tl.broadcast_to(b_group_mean[:, None], (GROUPS, group)), (1, BLOCK_C))
        b_rstd = tl.reshape(tl.broadcast_to(b_group_rstd[:, None], (GROUPS, group)), (1, BLOCK_C))
        b_x = (b_x - b_mean) * b_rstd
    else:
        b_x -= (tl.sum(b_x, 1) / C)[:, None]
        b_x = tl.where(m_channel[None, :], b_x, 0.0)
        b_x *= tl.rsqrt(tl.sum(b_x * b_x, 1) / C + eps)[:, None]
    b_normal = (b_x * b_scale[None, :] + b_shift[None, :]).to(p_weight.dtype.element_ty)
    b_out = tl.dot(b_normal, b_weight.T)
    if BIAS:
        b_out += tl.load(p_bias + i_feature, mask=m_feature, other=0).to(tl.float32)[None, :]
    if GATED:
        b_gate = tl.dot(b_normal, b_gate_weight.T)
        if BIAS:
            b_gate += tl.load(p_bias + N + i_feature, mask=m_feature, other=0).to(tl.float32)[None, :]
        b_out *= 0.5 * b_gate * (1 + tl.erf(b_gate * 0.7071067811865476))
    m_out = m_token[:, None] & m_feature[None, :]
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_token * N + i_feature[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["tokens", "rows"])
def linear_kernel(
    first,
    second,
    w,
    p_weight,
    p_bias,
    p_residual,
    p_out,
    p_moments,
    tokens,
    rows,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    N: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MOMENTS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr,
    THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """BLOCK_M tokens by BLOCK_N features a program, from one or two sources side by side.

    2·T·C·N operations; reads 2·(T·C + C·N) bytes (bf16), writes 2·T·N. Saves three passes: the joined sources, bias and
    residual, and the sums of the next normalisation.
    """
    i_n = tl.program_id(0)
    i_m = tl.program_id(1)
    i_batch = tl.program_id(2)
    i_token = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    i_feature = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    i_column = tl.arange(0, BLOCK_K)
    m_token = i_token < tokens
    m_feature = i_feature < N
    row = i_batch * tokens + i_m * BLOCK_M
    i_row = row + tl.arange(0, BLOCK_M)
    if USE_PDL:
        i_program = (i_batch * tl.num_programs(1) + i_m) * tl.num_programs(0) + i_n
        programs = tl.num_programs(0) * tl.num_programs(1)
        prefetch(p_weight, (FIRST + SECOND) * N, i_program, programs, PREFETCH, THREADS)
        tl.extra.cuda.gdc_wait()
    b_out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, FIRST, BLOCK_K):
        if DESCRIPTORS:
            b_x = first.load([row, k])
            b_w = w.load([i_n * BLOCK_N, k])
        else:
            o_x = i_row.to(tl.int64)[:, None] * FIRST + k + i_column[None, :]
            b_x = tl.load(first + o_x, mask=(i_row < rows)[:, None], other=0)
            o_w = i_feature[:, None] * (FIRST + SECOND) + k + i_column[None, :]
            b_w = tl.load(w + o_w, mask=m_feature[:, None], other=0)
        b_out = tl.dot(b_x, b_w.T, b_out)
    for k in range(0, SECOND, BLOCK_K):
        if DESCRIPTORS:
            b_x = second.load([row, k])
            b_w = w.load([i_n * BLOCK_N, FIRST + k])
        else:
            o_x = i_row.to(tl.int64)[:, None] * SECOND + k + i_column[None, :]
            b_x = tl.load(second + o_x, mask=(i_row < rows)[:, None], other=0)
            o_w = i_feature[:, None] * (FIRST + SECOND) + FIRST + k + i_column[None, :]
            b_w = tl.load(w + o_w, mask=m_feature[:, None], other=0)
        b_out = tl.dot(b_x, b_w.T, b_out)
    b_out += tl.load(p_bias + i_feature, mask=m_feature, other=0).to(tl.float32)[None, :]
    o_out = (i_batch * tokens + i_token).to(tl.int64)[:, None] * N + i_feature[None, :]
    m_out = m_token[:, None] & m_feature[None, :]
    if RESIDUAL:
        b_out += tl.load(p_residual + o_out, mask=m_out, other=0).to(tl.float32)
    if MOMENTS:
        b_counted = tl.where(m_out, b_out, 0.0)
        o_moments = (i_batch * tl.num_programs(1) + i_m) * (2 * N) + i_feature
        tl.store(p_moments + o_moments, tl.sum(b_counted, 0), mask=m_feature)
        tl.store(p_moments + o_moments + N, tl.sum(b_counted * b_counted, 0), mask=m_feature)
    if USE_PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
