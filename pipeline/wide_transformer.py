"""Transformers of Stable Diffusion's widths in few passes: a library's matrix products, and one pass between each two.

The parameters are those of a `Transformer`, packed once. Keys and values of the text are computed once a prompt.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.kernels import LayerOps, TokenOps
from instantvision.pipeline.eight_bit import GatedProduct, Product
from instantvision.pipeline.packing import parameters
from instantvision.pipeline.unet_blocks import Transformer, TransformerLayer

# In e4m3 what is gathered, averages of values, and a gate's product come multiplied by powers of two: of a signal of
# root mean square 1/8 little is below e4m3's normal numbers then, and 56 is the largest that it holds.
GATHERED_SCALE, GATE_SCALE = 8.0, 8.0


class WideTransformer:
    """Transformer over all positions of a picture.

    Args:
        block: placed on its device.
        layers, tokens: the reference, or kernels of the same signatures.
        fp8: multiply normalised, gathered and gated tokens in e4m3.
    """

    def __init__(self, block: Transformer, layers: LayerOps, tokens: TokenOps, *, fp8: bool) -> None:
        self._layers = layers
        self._norm: Any = block.norm
        enter, leave = block.proj_in, block.proj_out
        weight, self._bias_in = parameters(enter)
        self._weight_in = weight.flatten(1)
        *blocks, last = list[Any](block.transformer_blocks)
        weight, bias = parameters(leave)
        self._weight_out = weight.flatten(1).contiguous()
        self._blocks = [WideLayer(each, tokens, fp8=fp8) for each in blocks]
        self._blocks.append(WideLayer(last, tokens, fp8=fp8, leave=self._weight_out))
        # P(y + W g + b) + p = P y + (P W) g + (P b + p) for the last layer's W g + b, so that no pass adds to y.
        last_bias: Tensor = last.ff.net[2].bias
        self._bias_out = (self._weight_out.float() @ last_bias.float() + bias.float()).to(bias.dtype)

    def __len__(self) -> int:
        """Layers, each of which reads a context of its own."""
        return len(self._blocks)

    def keys_values(self, context: Tensor) -> list[Tensor]:
        """What each layer attends to, [1, S, 2C], for a context [1, S, D]."""
        return [layer.keys_values(context) for layer in self._blocks]

    def __call__(
        self, x: Tensor, moments: Tensor | None, contexts: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """A picture, [B, C, h, w] in channels_last, and its moments, to the next; contexts of `keys_values`."""
        norm = self._norm
        normal = self._layers.group_norm(
            (x,), (moments,), norm.weight, norm.bias, groups=norm.num_groups, eps=norm.eps
        )
        y: Tensor = F.linear(_tokens(normal), self._weight_in, self._bias_in)
        update: Tensor | None = None
        bias: Tensor | None = None
        for layer, context in zip(self._blocks, contexts, strict=True):
            y, update, bias = layer(y, update, bias, context)
        assert update is not None, "a transformer has a layer"  # noqa: S101
        sums = update.flatten(0, 1).addmm_(y.flatten(0, 1), self._weight_out.T)
        batch, channels, height, width = x.shape
        parts = sums.view(batch, 1, height, width, channels).permute(0, 1, 4, 2, 3)
        return self._layers.finish(parts, self._bias_out, None, x, moments=True)


class WideLayer:
    """Self-attention, attention to the context and feed-forward, around one residual stream.

    What a part adds to the stream is taken in by the pass that normalises the sum for the next part.

    Args:
        layer: placed on its device.
        tokens, fp8: as WideTransformer's.
        leave: weight of a projection behind this layer, [N, C]; its update then comes projected, without bias.
    """

    def __init__(
        self, layer: TransformerLayer, tokens: TokenOps, *, fp8: bool, leave: Tensor | None = None
    ) -> None:
        self._ops = tokens
        self._norms: list[Any] = [layer.norm1, layer.norm2, layer.norm3]
        own, other = layer.attn1, layer.attn2
        self._heads = own.heads
        self._qkv = Product(torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]), fp8)
        weight, self._out_bias = parameters(own.to_out[0])
        self._out = Product(weight, fp8, scale=GATHERED_SCALE)
        self._q = Product(other.to_q.weight, fp8)
        self._kv = torch.cat([other.to_k.weight, other.to_v.weight])
        weight, self._other_bias = parameters(other.to_out[0])
        self._other_out = Product(weight, fp8, scale=GATHERED_SCALE)
        gate: Any = layer.ff.net[0]
        self._gate = GatedProduct(tokens, *parameters(gate.proj), fp8, gate_scale=GATE_SCALE)
        weight, self._inner_bias = parameters(layer.ff.net[2])
        if leave is not None:
            weight = (leave.float() @ weight.float()).to(weight.dtype)
        self._inner = Product(weight, fp8)

    def keys_values(self, context: Tensor) -> Tensor:
        """Keys and values of a context [1, S, D] side by side, [1, S, 2C]."""
        return F.linear(context, self._kv)

    def __call__(
        self, x: Tensor, update: Tensor | None, bias: Tensor | None, context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream and what it has yet to take in, an update and its bias, to the same after this layer."""
        x, normal = self._normalised(0, x, update, bias, self._qkv)
        gathered = self._gathered(self._qkv(normal), None, self._out)
        x, normal = self._normalised(1, x, self._out(gathered), self._out_bias, self._q)
        gathered = self._gathered(self._q(normal), context, self._other_out)
        x, normal = self._normalised(2, x, self._other_out(gathered), self._other_bias, self._gate)
        inner = self._gate.gated(normal, self._inner.dtype)
        return x, self._inner(inner), self._inner_bias

    def _normalised(
        self, i: int, x: Tensor, update: Tensor | None, bias: Tensor | None, reader: Product
    ) -> tuple[Tensor, Tensor]:
        norm = self._norms[i]
        return self._ops.add_layer_norm(
            x, update, bias, norm.weight, norm.bias, eps=norm.eps, dtype=reader.dtype
        )

    def _gathered(self, queries: Tensor, context: Tensor | None, reader: Product) -> Tensor:
        return self._ops.attention(
            queries, context, heads=self._heads, dtype=reader.dtype, scale=reader.scale
        )


def _tokens(picture: Tensor) -> Tensor:
    """The same memory as [B, hw, C]."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)
