"""The layers of wide transformers in plain torch: what surrounds the matrix products that a library computes best.

Names: B batch, T tokens, S tokens of the context, C width. An update is what a residual stream is about to take in: the
product of a projection, without its bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The largest number of e4m3, which has no infinity.
E4M3_MAX = 448.0


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
    """Take an update into the residual stream, and normalise each token of the sum.

    Args:
        x: residual stream, [B, T, C].
        update: likewise, or None.
        update_bias: [C], or None.
        weight, bias: of the normalisation, [C].
        eps: added to the variance.
        dtype: of the normalised tokens; float8_e4m3fn holds what is within +-448.

    Returns:
        The new residual stream, `x` itself without an update, and the normalised tokens, both [B, T, C].

    Source: Ba et al. 2016 (arXiv 1607.06450), eq. 3.
    """
    if update is not None:
        total = x.float() + update.float()
        x = (total if update_bias is None else total + update_bias.float()).to(x.dtype)
    normal = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return x, rounded(normal, dtype)


def geglu(x: Tensor, bias: Tensor, *, dtype: torch.dtype, scale: float = 1.0, paired: bool = False) -> Tensor:
    """Values times GELU of gates.

    Args:
        x: values, then gates, without their bias, [B, T, 2C].
        bias: in the same order, [2C].
        dtype: of the result; float8_e4m3fn holds what is within +-448.
        scale: how many times too large x is.
        paired: x and bias are pairs of a value and its gate.

    Returns:
        [B, T, C].

    Source: Shazeer 2020 (arXiv 2002.05202), eq. 6.
    """
    both = x.float() / scale + bias.float()
    value, gate = both.unflatten(-1, (-1, 2)).unbind(-1) if paired else both.chunk(2, -1)
    return rounded(value * F.gelu(gate), dtype)


def pairs(values_gates: Tensor) -> Tensor:
    """Rows for values and then as many for their gates, [2C, ...], as pairs of a value's and its gate's."""
    return values_gates.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1).contiguous()


def gated_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: tuple[Tensor, Tensor],
    *,
    dtype: torch.dtype,
    gate_scale: float = 1.0,
) -> Tensor:
    """`geglu` of a product.

    Args:
        x, weight, scales: of `product`, [B, T, C], and [2N, C] in `pairs`: of a gate and its value a tile has both.
        bias: [2N], in the same order.
        dtype: of the result; float8_e4m3fn holds what is within +-448.
        gate_scale: how many times too large the scales make the product, so that it may be kept as x is.

    Returns:
        [B, T, N].
    """
    return geglu(product(x, weight, scales, x.dtype), bias, dtype=dtype, scale=gate_scale, paired=True)


def product(x: Tensor, weight: Tensor, scales: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> Tensor:
    """x @ weight.T, by a library.

    Args:
        x: [..., C].
        weight: [N, C].
        scales: what x and the weight are multiplied by, float32, each of one value; None multiplies by nothing.
        dtype: of the result; float8_e4m3fn holds what is within +-448.

    Returns:
        [..., N].
    """
    if scales is None:
        return rounded(F.linear(x, weight), dtype)
    if x.is_cpu or x.dtype != torch.float8_e4m3fn:
        return rounded(F.linear(x.float(), weight.float()) * (scales[0] * scales[1]), dtype)
    # Fast accumulation keeps 14 bits between steps, plenty for factors of 4.
    y = torch._scaled_mm(
        x.flatten(0, -2),
        weight.T,
        scale_a=scales[0],
        scale_b=scales[1],
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return y.view(*x.shape[:-1], -1)


def attention(
    queries: Tensor,
    keys_values: Tensor | None,
    *,
    heads: int,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Softmax attention of all heads.

    Args:
        queries: [B, T, C], heads one after the other; with `keys_values` None keys and values follow, [B, T, 3C].
        keys_values: of a context, side by side, [B or 1, S, 2C].
        heads: number of heads.
        dtype: of the result; float8_e4m3fn holds what is within +-448. None is that of the queries.
        scale: the result is so many times too large.

    Returns:
        The gathered values, [B, T, C].

    Raises:
        ValueError: the widths do not fit.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.
    """
    query, key, value = apart(queries, keys_values, heads)
    gathered = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return rounded(gathered, dtype or queries.dtype, scale)


def apart(queries: Tensor, keys_values: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values, each [B, heads, tokens, C / heads]; arguments as of `attention`."""
    query, key, value = queries.chunk(3, -1) if keys_values is None else (queries, *keys_values.chunk(2, -1))
    if query.shape[-1] % heads or key.shape[-1] != query.shape[-1]:
        raise ValueError(f"queries {list(query.shape)}, keys {list(key.shape)} and {heads} heads do not fit")
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    return query, key.expand(len(query), -1, -1, -1), value.expand(len(query), -1, -1, -1)


def rounded(values: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Values times `scale` in another type; what e4m3 cannot hold becomes its largest number, as on a GPU."""
    if scale != 1:
        values = values * scale
    if dtype == torch.float8_e4m3fn:
        values = values.clamp(-E4M3_MAX, E4M3_MAX)
    return values.to(dtype)
