"""What the fused layers replace: the same results from torch's own operations in the model's 16-bit type.

Pictures have no frame here, since convolutions pad by themselves; nobody counts moments. Where there is nothing better
than the reference that a kernel is tested against, that is used. Arguments are those of the reference, but for the
frame, and for what `adapted` says.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.kernels.token_reference import apart
from instantvision.pipeline.eight_bit import E4M3
from recorded_calls import mapped, tensors


def adapted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without frames, and with the parts of an attention added up."""
    changed = dict(arguments)
    if "framed" in changed:
        changed["framed"] = inside(changed["framed"])
    if "parts" in changed:
        changed["parts"] = changed["parts"].sum(1)
    return changed


def in_sixteen_bits(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without e4m3: its numbers in the type of the others, weights multiplied by their scale."""
    types = {tensor.dtype for tensor in tensors(dict(arguments))}
    if E4M3 not in {*types, arguments.get("dtype")}:
        return dict(arguments)
    dtype = next(each for each in (torch.bfloat16, torch.float16, torch.float32) if each in types)
    changed = {
        key: mapped(value, lambda tensor: tensor.to(dtype) if tensor.dtype == E4M3 else tensor)
        for key, value in arguments.items()
    }
    if "dtype" in changed:
        changed["dtype"] = dtype
    if isinstance(changed.get("scale"), Tensor):
        weight = changed["weight"].float() * changed.pop("scale")[:, None, None, None]
        changed["weight"] = weight.to(dtype, memory_format=torch.channels_last)
    return changed


def inside(framed: Tensor) -> Tensor:
    """A framed picture without its frame, in memory of its own."""
    return framed[..., 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)


def conv3x3(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    embedding: Tensor | None = None,
    shortcut: tuple[tuple[Tensor, ...], Tensor] | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """Convolution, then each of what follows by itself."""
    y = F.conv2d(framed, weight, bias, stride, 1)
    if embedding is not None:
        y = y + embedding[:, :, None, None]
    if shortcut is not None:
        pictures, pointwise = shortcut
        y = y + F.conv2d(torch.cat(pictures, 1), pointwise[:, :, None, None])
    if residual is not None:
        y = y + (residual if residual.shape == y.shape else residual[..., 1:-1, 1:-1])
    if activation == "silu":
        return F.silu(y)
    return F.relu(y) if activation == "relu" else y


def conv3x3_shallow(
    picture: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    limit: float | None = None,
    offset: float = 0.0,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """What is done with the picture, convolution, activation."""
    if limit is not None:
        picture = torch.tanh(picture / limit)
    return conv3x3(picture + offset if offset else picture, weight, bias, activation=activation)


def conv3x3_doubled(
    framed: Tensor, weight: Tensor, bias: Tensor, *, activation: str | None, **_: Any
) -> Tensor:
    """Repeat positions, convolve, activation."""
    return conv3x3(F.interpolate(framed, scale_factor=2.0), weight, bias, activation=activation)


def group_norm(
    pictures: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    modulation: Tensor | None = None,
    silu: bool = False,
    **_: Any,
) -> Tensor:
    """Join, normalise, modulate, SiLU."""
    y = F.group_norm(torch.cat(pictures, 1), groups, weight, bias, eps)
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        y = y * (1 + scale) + shift
    return F.silu(y) if silu else y


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float,
    groups: int = 0,
    gated: bool = False,
    **_: Any,
) -> Tensor:
    """Normalise, multiply, gate."""
    if groups:
        normal = F.group_norm(x.transpose(1, 2), groups, norm_weight, norm_bias, eps).transpose(1, 2)
    else:
        normal = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    y = F.linear(normal, weight, bias)
    if not gated:
        return y
    value, gate = y.chunk(2, -1)
    return value * F.gelu(gate)


def linear(
    sources: tuple[Tensor, ...], weight: Tensor, bias: Tensor, *, residual: Tensor | None = None, **_: Any
) -> Tensor:
    """Join, multiply, add."""
    y = F.linear(torch.cat(sources, -1) if len(sources) > 1 else sources[0], weight, bias)
    return y if residual is None else y + residual


def attention_conv(qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, heads: int) -> Tensor:
    """Attention, projection and bias, residual."""
    gathered = F.scaled_dot_product_attention(*apart(qkv, None, heads)).transpose(1, 2).flatten(2)
    return F.linear(gathered, weight, bias) + residual


def cross_attention(
    parts: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query: Tensor,
    keys_values: Tensor,
    out: Tensor,
    bias: Tensor,
    *,
    heads: int,
    eps: float,
) -> Tensor:
    """Normalise, queries, attention to keys and values that are there already, projection and bias, residual."""
    queries = F.linear(F.layer_norm(parts, parts.shape[-1:], norm_weight, norm_bias, eps), query)
    gathered = F.scaled_dot_product_attention(*apart(queries, keys_values, heads)).transpose(1, 2).flatten(2)
    return F.linear(gathered, out, bias) + parts


def rms_norm_silu(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Normalise, SiLU."""
    normal = F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, eps)
    return F.silu(normal).permute(0, 3, 1, 2)


def conv3x3_rms(
    framed: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor,
    *,
    eps: float,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolution, residual, `rms_norm_silu`."""
    y = conv3x3(framed, weight, bias, residual=residual)
    return y, rms_norm_silu(y, norm, eps=eps)


def space_to_depth_add(
    convolved: Tensor, framed: Tensor, norm: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Space-to-depth of both, means, sum, `rms_norm_silu`."""
    folded = F.pixel_unshuffle(convolved, 2)
    y = folded + F.pixel_unshuffle(framed, 2).unflatten(1, (folded.shape[1], -1)).mean(2)
    return y, rms_norm_silu(y, norm, eps=eps)


def depth_to_space_add(projected: Tensor, x: Tensor, norm: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Repeat, sum, depth-to-space, `rms_norm_silu`."""
    repeated = x.repeat_interleave(projected.shape[1] // x.shape[1], 1)
    y = F.pixel_shuffle(projected.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2) + repeated, 2)
    return y, rms_norm_silu(y, norm, eps=eps)


def geglu(x: Tensor, bias: Tensor, *, dtype: torch.dtype, paired: bool = False, **_: Any) -> Tensor:
    """Bias, GELU, product."""
    both = x + bias
    value, gate = both.unflatten(-1, (-1, 2)).unbind(-1) if paired else both.chunk(2, -1)
    return (value * F.gelu(gate)).to(dtype)


def gated_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scales: tuple[Tensor, Tensor],
    *,
    dtype: torch.dtype,
    gate_scale: float,
) -> Tensor:
    """Product, scale, then `geglu`."""
    y = F.linear(x, weight) * (scales[0] * scales[1] / gate_scale).to(x.dtype)
    return geglu(y, bias, dtype=dtype, paired=True)


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
    """Sum, bias, normalise."""
    if update is not None:
        x = x + update if update_bias is None else x + (update + update_bias)
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps).to(dtype)
