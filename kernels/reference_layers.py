"""The layers of a network in plain torch: what the kernels must agree with, and what runs where there is no Triton.

Names: B batch, C channels, h w height and width of a picture of features, T tokens, N features of the result.
Pictures are [B, C, h, w] in channels_last, tokens are the same memory as [B, T, C]. A framed picture carries a frame
of zeros one position wide. Moments are sums and sums of squares a channel over parts of a picture, [B, parts, 2, C],
float32: whoever writes a picture adds them up on the way, so that the next normalisation need not read it twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.kernels.conv_reference import (
    channel_moments,
    conv3x3,
    conv3x3_doubled,
    conv3x3_shallow,
    finish,
    fold_doubling,
    frame,
)
from instantvision.kernels.token_reference import rounded

__all__ = [
    "attention_conv",
    "channel_moments",
    "check_attention_conv",
    "check_cross_attention",
    "check_group_norm",
    "check_linear",
    "check_norm_linear",
    "conv3x3",
    "conv3x3_doubled",
    "conv3x3_rms",
    "conv3x3_shallow",
    "cross_attention",
    "depth_to_space_add",
    "finish",
    "fold_context",
    "fold_doubling",
    "frame",
    "group_norm",
    "linear",
    "norm_linear",
    "rms_norm_silu",
    "space_to_depth_add",
]


def group_norm(
    pictures: tuple[Tensor, ...],
    moments: tuple[Tensor | None, ...],
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    modulation: Tensor | None = None,
    silu: bool = False,
    framed_out: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Group normalisation over one or two pictures side by side.

    Args:
        pictures: each [B, C', h, w], their channels adding up to C.
        moments: of each picture, None where they are not known.
        weight, bias: [C].
        groups: number of groups.
        eps: added to the variance.
        modulation: [B or 1, 2C], scale then shift: the result is multiplied by 1 + scale, then shifted.
        silu: at the end.
        framed_out: write a framed picture.
        dtype: of the result; float8_e4m3fn holds what is within +-448. None is that of the pictures.

    Returns:
        [B, C, h, w] or framed, channels_last.

    Raises:
        ValueError: the arguments are not of that form.

    Source: Wu & He 2018 (arXiv 1803.08494), eq. 1.
    """
    del moments  # plain torch counts itself
    check_group_norm(pictures, weight, groups)
    y = F.group_norm(torch.cat(pictures, 1), groups, weight, bias, eps)
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        y = y * (1 + scale) + shift
    if silu:
        y = F.silu(y)
    y = rounded(frame((y,)) if framed_out else y, dtype or y.dtype)
    return y.contiguous(memory_format=torch.channels_last)


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
    """A linear layer over normalised tokens.

    Args:
        x: [B, T, C], of any floating type.
        norm_weight, norm_bias: [C].
        weight: [N, C], or [2N, C] when gated: values, then gates.
        bias: [N] or [2N].
        eps: added to the variance.
        groups: of a group normalisation over all tokens; 0 normalises each token by itself.
        moments: of x, for a group normalisation.
        gated: multiply the values by GELU of the gates.

    Returns:
        [B, T, N] of the weight's type.

    Raises:
        ValueError: the arguments are not of that form.

    Source: Ba et al. 2016 (arXiv 1607.06450), eq. 3; Shazeer 2020 (arXiv 2002.05202), eq. 6.
    """
    check_norm_linear(x, weight, groups, moments)
    if groups:
        normal = F.group_norm(x.float().transpose(1, 2), groups, norm_weight.float(), norm_bias.float(), eps)
        normal = normal.transpose(1, 2)
    else:
        normal = F.layer_norm(x.float(), x.shape[-1:], norm_weight.float(), norm_bias.float(), eps)
    y = F.linear(normal.to(weight.dtype), weight, bias)
    if gated:
        value, gate = y.chunk(2, -1)
        y = value * F.gelu(gate)
    return y


def linear(
    sources: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    moments: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """A linear layer over one or two sources of tokens side by side.

    Args:
        sources: each [B, T, C'], their channels adding up to C.
        weight: [N, C].
        bias: [N].
        residual: added, [B, T, N].
        moments: also of the result.

    Returns:
        [B, T, N] and its moments or None.

    Raises:
        ValueError: the arguments are not of that form.
    """
    check_linear(sources, weight)
    y = F.linear(torch.cat(sources, -1), weight, bias)
    if residual is not None:
        y = y + residual
    return y, channel_moments(y.transpose(1, 2)[..., None]) if moments else None


def attention_conv(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, heads: int) -> Tensor:
    """Self-attention, its output projection (a 1x1 convolution), bias and residual.

    Args:
        qkv: queries, keys and values side by side, [B, T, 3C], heads one after the other in each.
        weight: of the projection, [C, C].
        bias: [C].
        residual: [B, T, C].
        heads: number of heads.

    Returns:
        Parts, [B, P, T, C], whose sum is the result: a kernel has one for each head, here it is one in all. Whoever
        reads them adds them up on the way.

    Raises:
        ValueError: the arguments are not of that form.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.
    """
    check_attention_conv(qkv, weight, residual, heads)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    gathered = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return (residual + F.linear(gathered, weight, bias))[:, None]


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
    """Attention of normalised tokens to a short context that was multiplied into the projections beforehand.

    With constant keys K and values V of a head, scores are x·(WqᵀKᵀ) and the result is softmax·(V·Wo): two small
    products, made once a context by `fold_context`.

    Args:
        parts: of `attention_conv`; their sum is the input and the residual.
        norm_weight, norm_bias: of the layer normalisation, [C].
        queries_to_scores: [B or 1, heads * S, C] for S context tokens, the softmax's scale included.
        scores_to_out: [B or 1, heads * S, C].
        bias: of the output projection, [C].
        heads: number of heads; heads * S is a power of two of at least 16.
        eps: of the normalisation.

    Returns:
        [B, T, C].

    Raises:
        ValueError: the arguments are not of that form.
    """
    check_cross_attention(parts, queries_to_scores, scores_to_out, heads)
    x = parts.float().sum(1)
    normal = F.layer_norm(x, x.shape[-1:], norm_weight.float(), norm_bias.float(), eps)
    scores = normal.to(queries_to_scores.dtype) @ queries_to_scores.transpose(1, 2)
    shares = scores.float().unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)
    out = shares.to(scores_to_out.dtype) @ scores_to_out
    return (x + out.float() + bias.float()).to(parts.dtype)


def fold_context(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, context: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Multiply a context into the projections of a cross-attention.

    Args:
        query: weight [C, C].
        key, value: weights [C, D].
        out: weight [C, C].
        context: [B, S, D].
        heads: number of heads.

    Returns:
        queries_to_scores and scores_to_out of `cross_attention`, each [B, heads * S, C], in the context's type.
    """
    keys, values = (
        F.linear(context.float(), weight.float()).unflatten(-1, (heads, -1)) for weight in (key, value)
    )
    width = keys.shape[-1]
    queries = query.float().unflatten(0, (heads, width))
    outs = out.float().unflatten(1, (heads, width))
    to_scores = torch.einsum("bshd,hdc->bhsc", keys, queries) * width**-0.5
    to_out = torch.einsum("bshd,chd->bhsc", values, outs)
    return to_scores.flatten(1, 2).to(context.dtype), to_out.flatten(1, 2).to(context.dtype)


def rms_norm_silu(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Divide each position by its root mean square over channels, weigh, SiLU, frame.

    Args:
        x: [B, C, h, w].
        weight: [C].
        eps: added to the mean square.

    Returns:
        [B, C, h + 2, w + 2], channels_last.

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4.
    """
    values = x.float()
    values = values * torch.rsqrt(values.square().mean(1, keepdim=True) + eps)
    return frame((F.silu(values * weight.float()[:, None, None]).to(x.dtype),))


def conv3x3_rms(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor,
    *,
    eps: float,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`conv3x3` with bias and residual, and `rms_norm_silu` of its result.

    Args:
        framed, weight, bias, residual: as of `conv3x3`.
        norm: weight of the normalisation, [N].
        eps: of the normalisation.

    Returns:
        The result, [B, N, h, w], and the normalised result, [B, N, h + 2, w + 2], both channels_last.
    """
    out, _ = conv3x3(framed, weight, bias, residual=residual)
    return out, rms_norm_silu(out, norm, eps=eps)


def space_to_depth_add(
    convolved: Tensor, framed: Tensor, norm: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Halve a picture: space-to-depth of its convolution, plus means of its own channels.

    Args:
        convolved: [B, C / 4, h, w].
        framed: the picture, [B, C', h + 2, w + 2], h and w even; C is C' or 2·C'.
        norm: weight of the normalisation, [C].
        eps: of the normalisation.

    Returns:
        The result, [B, C, h / 2, w / 2], and its `rms_norm_silu`, framed, both channels_last.
    """
    folded = F.pixel_unshuffle(convolved, 2)
    shortcut = F.pixel_unshuffle(framed[..., 1:-1, 1:-1], 2).unflatten(1, (folded.shape[1], -1)).mean(2)
    out = (folded + shortcut).contiguous(memory_format=torch.channels_last)
    return out, rms_norm_silu(out, norm, eps=eps)


def depth_to_space_add(projected: Tensor, x: Tensor, norm: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Double a picture: depth-to-space of its projection, plus its own channels repeated.

    Args:
        projected: [B, 4·C, h, w], one after the other the C channels of each of the four positions.
        x: [B, C', h, w]; C is C' or C' / 2.
        norm: weight of the normalisation, [C].
        eps: of the normalisation.

    Returns:
        The result, [B, C, 2·h, 2·w], and its `rms_norm_silu`, framed, both channels_last.
    """
    repeated = x.repeat_interleave(projected.shape[1] // x.shape[1], 1)
    folded = projected.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
    out = F.pixel_shuffle(folded + repeated, 2).contiguous(memory_format=torch.channels_last)
    return out, rms_norm_silu(out, norm, eps=eps)


def check_group_norm(pictures: tuple[Tensor, ...], weight: Tensor, groups: int) -> None:
    """Check the arguments of `group_norm`."""
    channels = sum(picture.shape[1] for picture in pictures)
    if len(weight) != channels or channels % groups:
        raise ValueError(f"{channels} channels, a weight of {len(weight)} and {groups} groups do not fit")


def check_norm_linear(x: Tensor, weight: Tensor, groups: int, moments: Tensor | None) -> None:
    """Check the arguments of `norm_linear`."""
    if weight.shape[1] != x.shape[2] or not x.is_contiguous() or not weight.is_contiguous():
        raise ValueError(f"weight {list(weight.shape)} and tokens {list(x.shape)} do not fit")
    if (groups > 0) != (moments is not None):
        raise ValueError(f"{groups} groups and {'no ' if moments is None else ''}moments")


def check_linear(sources: tuple[Tensor, ...], weight: Tensor) -> None:
    """Check the arguments of `linear`."""
    channels = sum(source.shape[2] for source in sources)
    if weight.shape[1] != channels or not all(source.is_contiguous() for source in sources):
        raise ValueError(f"weight {list(weight.shape)} and sources of {channels} channels do not fit")


def check_attention_conv(qkv: Tensor, weight: Tensor, residual: Tensor, heads: int) -> None:
    """Check the arguments of `attention_conv`."""
    channels = residual.shape[2]
    if qkv.shape[2] != 3 * channels or weight.shape != (channels, channels) or channels % heads:
        raise ValueError(f"{list(qkv.shape)}, {list(weight.shape)} and {heads} heads do not fit")
    if not (qkv.is_contiguous() and residual.is_contiguous() and weight.is_contiguous()):
        raise ValueError("attention_conv takes contiguous tensors")


def check_cross_attention(parts: Tensor, to_scores: Tensor, to_out: Tensor, heads: int) -> None:
    """Check the arguments of `cross_attention`."""
    slots, channels = to_scores.shape[1:]
    if to_out.shape != to_scores.shape or channels != parts.shape[-1] or slots % heads:
        raise ValueError(f"{list(to_scores.shape)}, {list(to_out.shape)} and {heads} heads do not fit")
    if slots < 16 or slots & (slots - 1):
        raise ValueError(f"{slots} scores a token, expected a power of two of at least 16")
