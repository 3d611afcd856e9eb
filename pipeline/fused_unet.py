"""The UNet's frame path in fused layers: few, large passes over memory, nothing computed twice.

The parameters are those of a `UNet`, which stays the definition of the network and what training runs; here they are
packed once. What depends on the timestep and the style only is computed by `prepare`, for all steps at once.

Names: B batch, S steps, C channels, h w latent height and width, T context tokens, D token width, E time embedding's
width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instantvision.kernels import LayerOps
from instantvision.kernels.reference_layers import fold_context
from instantvision.pipeline.model import Deep, Prepared
from instantvision.pipeline.unet import UNet
from instantvision.pipeline.unet_blocks import NoAttention, ResnetBlock, Transformer

# Depth of a matrix product's step that every kernel can take: fewer input channels are filled up with zeros.
CHANNELS_MULTIPLE = 16


@dataclass(frozen=True)
class Features:
    """A picture of features, [B, C, h, w] in channels_last, and its moments for the next normalisation."""

    values: Tensor
    moments: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """This step's share of what was prepared: time embeddings of all blocks, contexts of all transformers.

    Args:
        time: [B or 1, all blocks' widths].
        to_scores, to_out: of `fold_context`, one after the other, [B or 1, layers, heads * T, C].
    """

    time: Tensor
    to_scores: Tensor
    to_out: Tensor


class FusedUNet:
    """Evaluates a UNet whose transformers are all of one width and read the same short context.

    Args:
        unet: placed on its device, in channels_last; its parameters are shared where no packing helps.
        layers: `reference_layers`, or kernels of the same signatures.
    """

    def __init__(self, unet: UNet, layers: LayerOps) -> None:
        self._layers = layers
        self._times: list[nn.Linear] = []
        self._folds: list[Any] = []
        weight, self._bias_in = parameters(unet.conv_in)
        self._weight_in = filled_up(weight, CHANNELS_MULTIPLE)
        self._down = [self._block(block, block.downsamplers) for block in unet.down_blocks]
        resnets: Any = unet.mid_block.resnets
        self._mid = self._pair(resnets[0], unet.mid_block.attentions[0])
        self._after_mid, _ = self._pair(resnets[1], NoAttention())
        self._up = [self._block(block, block.upsamplers) for block in unet.up_blocks]
        self._norm_out, self._conv_out = unet.conv_norm_out, unet.conv_out
        self._time_weight, self._time_bias = (
            torch.cat(parts) for parts in zip(*(parameters(layer) for layer in self._times), strict=True)
        )

    def prepare(self, emb: Tensor, tokens: Tensor) -> Prepared:
        """Everything of an evaluation that does not depend on the frame.

        Args:
            emb: of `UNet.embed`, [S, E].
            tokens: context, [1, T, D].

        Returns:
            Tensors of first dimension S for `__call__`.
        """
        time = F.linear(F.silu(emb), self._time_weight, self._time_bias)
        folded = [
            fold_context(a.to_q.weight, a.to_k.weight, a.to_v.weight, a.to_out[0].weight, tokens, a.heads)
            for a in self._folds
        ]
        to_scores, to_out = (torch.stack(parts, 1) for parts in zip(*folded, strict=True))
        return time, to_scores.expand(len(emb), -1, -1, -1), to_out.expand(len(emb), -1, -1, -1)

    def __call__(self, pictures: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        """One evaluation.

        Args:
            pictures: side by side the network's input, each [B, C', h, w].
            prepared: rows of `prepare`, each [B or 1, ...].

        Returns:
            [B, out_channels, h, w], channels_last.
        """
        return self.keeping(pictures, prepared)[0]

    def keeping(self, pictures: tuple[Tensor, ...], prepared: Prepared) -> tuple[Tensor, Deep]:
        """One evaluation, and what it found below the outermost level: what that level reads of it, and its moments."""
        context = Context(*prepared)
        skips = self._enter(pictures, context)
        deep = self._below(skips[-1], context)
        return self._leave(deep, skips, context), (
            (deep.values,) if deep.moments is None else (deep.values, deep.moments)
        )

    def reusing(self, pictures: tuple[Tensor, ...], prepared: Prepared, deep: Deep) -> Tensor:
        """One evaluation of the outermost level only, over what `keeping` found below it."""
        context = Context(*prepared)
        return self._leave(Features(*deep), self._enter(pictures, context), context)

    def _enter(self, pictures: tuple[Tensor, ...], context: Context) -> list[Features]:
        """Everything above the first halving, in the order in which the way up reads it backwards."""
        framed = self._layers.frame(pictures, channels=self._weight_in.shape[1])
        skips = [Features(*self._layers.conv3x3(framed, self._weight_in, self._bias_in, moments=True))]
        for pair in self._down[0][0]:
            skips.append(_run(pair, (skips[-1],), context))
        return skips

    def _below(self, above: Features, context: Context) -> Features:
        """From the first halving to the last doubling."""
        x, skips = above, list[Features]()
        for level, (pairs, convs) in enumerate(self._down):
            for pair in pairs if level else ():
                x = _run(pair, (x,), context)
                skips.append(x)
            for conv in convs:
                x = self._resample(x, conv, stride=2, size=None)
                skips.append(x)
        x = self._after_mid((_run(self._mid, (x,), context),), context)
        for pairs, convs in self._up[:-1]:
            for pair in pairs:
                x = _run(pair, (x, skips.pop()), context)
            for conv in convs:
                x = self._resample(x, conv, stride=1, size=(skips or [above])[-1].values.shape[2:])
        return x

    def _leave(self, deep: Features, skips: list[Features], context: Context) -> Tensor:
        """From the last doubling on."""
        x = deep
        for pair in self._up[-1][0]:
            x = _run(pair, (x, skips.pop()), context)
        framed = _norm_silu(self._layers, (x,), self._norm_out)
        return self._layers.conv3x3(framed, *parameters(self._conv_out))[0]

    def _resample(self, x: Features, conv: nn.Module, stride: int, size: tuple[int, ...] | None) -> Features:
        framed = self._layers.frame((x.values,), None if size is None else (size[0], size[1]))
        return Features(*self._layers.conv3x3(framed, *parameters(conv), stride=stride, moments=True))

    def _block(self, block: Any, samplers: Any) -> "tuple[list[Pair], list[nn.Module]]":
        pairs = zip(block.resnets, block.attentions, strict=True)
        return [self._pair(*pair) for pair in pairs], [sampler.conv for sampler in samplers]

    def _pair(self, resnet: ResnetBlock, attention: nn.Module) -> "Pair":
        start = sum(layer.out_features for layer in self._times)
        self._times.append(resnet.time_emb_proj)
        fused = FusedResnet(resnet, self._layers, slice(start, start + resnet.time_emb_proj.out_features))
        if not isinstance(attention, Transformer):
            return fused, None
        transformer = FusedTransformer(attention, self._layers, len(self._folds))
        self._folds += [layer.attn2 for layer in attention.transformer_blocks]
        return fused, transformer


class FusedResnet:
    """ResnetBlock over one or two pictures side by side, in four passes."""

    def __init__(self, block: ResnetBlock, layers: LayerOps, time: slice) -> None:
        self._block, self._layers, self._time = block, layers, time
        self._weight, self._bias = parameters(block.conv2)
        self._pointwise: Tensor | None = None
        if isinstance(block.conv_shortcut, nn.Conv2d):
            weight, bias = parameters(block.conv_shortcut)
            self._bias = self._bias + bias
            self._pointwise = weight.flatten(1).contiguous()

    def __call__(self, inputs: tuple[Features, ...], context: Context) -> Features:
        block, layers = self._block, self._layers
        pictures = tuple(x.values for x in inputs)
        time = context.time[:, self._time]
        modulation, embedding = (time, None) if block.scale_shift else (None, time)
        framed = _norm_silu(layers, inputs, block.norm1)
        y = Features(*layers.conv3x3(framed, *parameters(block.conv1), embedding=embedding, moments=True))
        framed = _norm_silu(layers, (y,), block.norm2, modulation)
        shortcut = None if self._pointwise is None else (pictures, self._pointwise)
        residual = None if shortcut else pictures[0]
        return Features(
            *layers.conv3x3(
                framed, self._weight, self._bias, shortcut=shortcut, residual=residual, moments=True
            )
        )


class FusedTransformer:
    """Transformer in one pass for its entrance and five for each layer; the exit is part of the last."""

    def __init__(self, block: Transformer, layers: LayerOps, start: int) -> None:
        self._layers, self._start = layers, start
        self._norm: Any = block.norm
        weight, self._bias_in = parameters(block.proj_in)
        self._weight_in = weight.flatten(1)
        self._blocks: list[Any] = list(block.transformer_blocks)
        self._qkv = [
            torch.cat([layer.attn1.to_q.weight, layer.attn1.to_k.weight, layer.attn1.to_v.weight])
            for layer in self._blocks
        ]
        self._exit = _exit(self._blocks[-1].ff.net[2], block.proj_out)

    def __call__(self, x: Features, context: Context) -> Features:
        layers, norm = self._layers, self._norm
        batch, channels, height, width = x.values.shape
        tokens = x.values.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        y = layers.norm_linear(
            tokens,
            norm.weight,
            norm.bias,
            self._weight_in,
            self._bias_in,
            eps=norm.eps,
            groups=norm.num_groups,
            moments=x.moments,
        )
        for i, layer in enumerate(self._blocks):
            y, inner = self._attend(y, layer, self._qkv[i], context, self._start + i)
            if i < len(self._blocks) - 1:
                y, _ = layers.linear((inner,), *parameters(layer.ff.net[2]), residual=y)
        y, moments = layers.linear((y, inner), *self._exit, residual=tokens, moments=True)
        return Features(y.view(batch, height, width, channels).permute(0, 3, 1, 2), moments)

    def _attend(
        self, y: Tensor, layer: Any, qkv: Tensor, context: Context, index: int
    ) -> tuple[Tensor, Tensor]:
        """One layer up to its gates: the residual stream, and the perceptron's inner features."""
        layers = self._layers
        rows = layers.norm_linear(y, layer.norm1.weight, layer.norm1.bias, qkv, eps=layer.norm1.eps)
        parts = layers.attention_conv(rows, *parameters(layer.attn1.to_out[0]), y, heads=layer.attn1.heads)
        y = layers.cross_attention(
            parts,
            layer.norm2.weight,
            layer.norm2.bias,
            context.to_scores[:, index],
            context.to_out[:, index],
            layer.attn2.to_out[0].bias,
            heads=layer.attn2.heads,
            eps=layer.norm2.eps,
        )
        norm, gate = layer.norm3, parameters(layer.ff.net[0].proj)
        return y, layers.norm_linear(y, norm.weight, norm.bias, *gate, eps=norm.eps, gated=True)


Pair = tuple[FusedResnet, FusedTransformer | None]


def _run(pair: Pair, inputs: tuple[Features, ...], context: Context) -> Features:
    resnet, transformer = pair
    x = resnet(inputs, context)
    return x if transformer is None else transformer(x, context)


def _norm_silu(
    layers: LayerOps, inputs: tuple[Features, ...], norm: nn.GroupNorm, modulation: Tensor | None = None
) -> Tensor:
    """Normalise, modulate, SiLU and frame pictures side by side."""
    return layers.group_norm(
        tuple(x.values for x in inputs),
        tuple(x.moments for x in inputs),
        norm.weight,
        norm.bias,
        groups=norm.num_groups,
        eps=norm.eps,
        modulation=modulation,
        silu=True,
        framed_out=True,
    )


def parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear or convolutional layer that has both."""
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight or no bias")
    return weight.data, bias.data


def filled_up(weight: Tensor, multiple: int) -> Tensor:
    """A convolution's weight with as many more input channels of zeros as make a multiple."""
    missing = -weight.shape[1] % multiple
    return F.pad(weight, (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)


def _exit(inner: nn.Module, projection: nn.Module) -> tuple[Tensor, Tensor]:
    """Output of the last perceptron, residual and projection out as one linear layer over [tokens, inner features].

    P(y + W g + b) + p = P y + P W g + (P b + p): the product P W is made once, in float32.
    """
    (weight, bias), (out, out_bias) = parameters(inner), parameters(projection)
    out = out.flatten(1).float()
    joined = torch.cat([out, out @ weight.float()], 1)
    return joined.to(weight.dtype), (out @ bias.float() + out_bias.float()).to(bias.dtype)
