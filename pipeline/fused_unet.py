"""The UNet's frame path in fused layers: few, large passes over memory, nothing computed twice.

The parameters are those of a `UNet`, which stays the definition of the network and what training runs; here they are
packed once. What depends on the timestep and the style only is computed by `prepare`, for all steps at once. The
transformers of this file read a few style tokens; those that read a text are in wide_transformer.py.

Names: B batch, S steps, C channels, h w latent height and width, T context tokens, D token width, E time embedding's
width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instantvision.kernels import LayerOps, TokenOps
from instantvision.kernels.conv_reference import SHALLOW, fold_doubling
from instantvision.kernels.reference_layers import fold_context
from instantvision.pipeline.eight_bit import Convolution
from instantvision.pipeline.model import Deep, Prepared
from instantvision.pipeline.packing import CHANNELS_MULTIPLE, filled_up, parameters
from instantvision.pipeline.unet import UNet
from instantvision.pipeline.unet_blocks import NoAttention, ResnetBlock, Transformer
from instantvision.pipeline.wide_transformer import WideTransformer

# Heads times style tokens up to which a context is multiplied into the projections.
FOLDED_MAX = 64
# Positions times features from which on an enlarging convolution is faster with four times four taps than with nine:
# with fewer the time goes into reading weights, or programs are too few.
DOUBLED_MIN = 256 * 1280


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
        rows: of a folded context two, of `fold_context`, one after the other, [B or 1, layers, heads * T, C]; otherwise
            keys and values for each layer, [B or 1, T, 2C].
    """

    time: Tensor
    rows: Prepared


class FusedUNet:
    """Evaluates a UNet.

    Args:
        unet: placed on its device, in channels_last; its parameters are shared where no packing helps.
        layers, tokens: the reference, or kernels of the same signatures.
        context: tokens that it reads.
        fp8: multiply what is normalised in e4m3, where that is faster.
    """

    def __init__(
        self, unet: UNet, layers: LayerOps, tokens: TokenOps, *, context: int, fp8: bool = False
    ) -> None:
        self._layers, self._tokens, self._fp8 = layers, tokens, fp8
        self._folding = all(_folds(level.heads * context) for level in unet.config.down_levels if level.depth)
        self._times: list[nn.Linear] = []
        self._folds: list[Any] = []
        self._wide: list[WideTransformer] = []
        weight, self._bias_in = parameters(unet.conv_in)
        self._weight_in = weight if weight.shape[1] <= SHALLOW else filled_up(weight, CHANNELS_MULTIPLE)
        self._down = [self._block(block, block.downsamplers) for block in unet.down_blocks]
        resnets: Any = unet.mid_block.resnets
        self._mid = self._pair(resnets[0], unet.mid_block.attentions[0])
        self._after_mid, _ = self._pair(resnets[1], NoAttention())
        self._up = [self._block(block, block.upsamplers) for block in unet.up_blocks]
        self._doublings = {
            conv: fold_doubling(parameters(conv)[0]) for _, convs in self._up for conv in convs
        }
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
        if not self._folding:
            each = [rows for transformer in self._wide for rows in transformer.keys_values(tokens)]
            return time, *(rows.expand(len(emb), -1, -1) for rows in each)
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
        context = Context(prepared[0], prepared[1:])
        skips = self._enter(pictures, context)
        deep = self._below(skips[-1], context)
        return self._leave(deep, skips, context), (
            (deep.values,) if deep.moments is None else (deep.values, deep.moments)
        )

    def reusing(self, pictures: tuple[Tensor, ...], prepared: Prepared, deep: Deep) -> Tensor:
        """One evaluation of the outermost level only, over what `keeping` found below it."""
        context = Context(prepared[0], prepared[1:])
        return self._leave(Features(*deep), self._enter(pictures, context), context)

    def _enter(self, pictures: tuple[Tensor, ...], context: Context) -> list[Features]:
        """Everything above the first halving, in the order in which the way up reads it backwards."""
        skips = [Features(*self._first(pictures))]
        for pair in self._down[0][0]:
            skips.append(_run(pair, (skips[-1],), context))
        return skips

    def _first(self, pictures: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._weight_in, self._bias_in
        if weight.shape[1] <= SHALLOW:
            picture = pictures[0] if len(pictures) == 1 else torch.cat(pictures, 1)
            return self._layers.conv3x3_shallow(picture, weight, bias, moments=True)
        framed = self._layers.frame(pictures, channels=weight.shape[1])
        return self._layers.conv3x3(framed, weight, bias, moments=True)

    def _below(self, above: Features, context: Context) -> Features:
        """From the first halving to the last doubling."""
        x, skips = above, list[Features]()
        for level, (pairs, convs) in enumerate(self._down):
            for pair in pairs if level else ():
                x = _run(pair, (x,), context)
                skips.append(x)
            for conv in convs:
                x = self._convolve(self._layers.frame((x.values,)), conv, stride=2)
                skips.append(x)
        x = self._after_mid((_run(self._mid, (x,), context),), context)
        for pairs, convs in self._up[:-1]:
            for pair in pairs:
                x = _run(pair, (x, skips.pop()), context)
            for conv in convs:
                x = self._enlarge(x, conv, (skips or [above])[-1].values)
        return x

    def _leave(self, deep: Features, skips: list[Features], context: Context) -> Tensor:
        """From the last doubling on."""
        x = deep
        for pair in self._up[-1][0]:
            x = _run(pair, (x, skips.pop()), context)
        framed = _norm_silu(self._layers, (x,), self._norm_out)
        return self._layers.conv3x3(framed, *parameters(self._conv_out))[0]

    def _enlarge(self, x: Features, conv: nn.Module, like: Tensor) -> Features:
        height, width = x.values.shape[2:]
        rows, columns = like.shape[2:]
        bias = parameters(conv)[1]
        if height * width * len(bias) < DOUBLED_MIN or (rows, columns) != (2 * height, 2 * width):
            return self._convolve(self._layers.frame((x.values,), (rows, columns)), conv)
        framed = self._layers.frame((x.values,))
        return Features(*self._layers.conv3x3_doubled(framed, self._doublings[conv], bias, moments=True))

    def _convolve(self, framed: Tensor, conv: nn.Module, stride: int = 1) -> Features:
        return Features(*self._layers.conv3x3(framed, *parameters(conv), stride=stride, moments=True))

    def _block(self, block: Any, samplers: Any) -> "tuple[list[Pair], list[nn.Module]]":
        pairs = zip(block.resnets, block.attentions, strict=True)
        return [self._pair(*pair) for pair in pairs], [sampler.conv for sampler in samplers]

    def _pair(self, resnet: ResnetBlock, attention: nn.Module) -> "Pair":
        start = sum(layer.out_features for layer in self._times)
        self._times.append(resnet.time_emb_proj)
        time = slice(start, start + resnet.time_emb_proj.out_features)
        fused = FusedResnet(resnet, self._layers, time, fp8=self._fp8)
        if not isinstance(attention, Transformer):
            return fused, None
        if not self._folding:
            wide = WideTransformer(attention, self._layers, self._tokens, fp8=self._fp8)
            first = sum(len(each) for each in self._wide)
            self._wide.append(wide)
            return fused, Reading(wide, slice(first, first + len(wide)))
        transformer = FusedTransformer(attention, self._layers, len(self._folds))
        self._folds += [layer.attn2 for layer in attention.transformer_blocks]
        return fused, transformer


class FusedResnet:
    """ResnetBlock over one or two pictures side by side, in four passes."""

    def __init__(self, block: ResnetBlock, layers: LayerOps, time: slice, *, fp8: bool) -> None:
        self._block, self._layers, self._time = block, layers, time
        weight, bias = parameters(block.conv2)
        self._pointwise: Tensor | None = None
        if isinstance(block.conv_shortcut, nn.Conv2d):
            shortcut, shortcut_bias = parameters(block.conv_shortcut)
            bias = bias + shortcut_bias
            self._pointwise = shortcut.flatten(1).contiguous()
        self._conv1 = Convolution(layers, *parameters(block.conv1), fp8)
        self._conv2 = Convolution(layers, weight, bias, fp8)

    def __call__(self, inputs: tuple[Features, ...], context: Context) -> Features:
        block, layers = self._block, self._layers
        pictures = tuple(x.values for x in inputs)
        time = context.time[:, self._time]
        modulation, embedding = (time, None) if block.scale_shift else (None, time)
        framed = _norm_silu(layers, inputs, block.norm1, dtype=self._conv1.dtype)
        y = Features(*self._conv1(framed, embedding=embedding, moments=True))
        framed = _norm_silu(layers, (y,), block.norm2, modulation, dtype=self._conv2.dtype)
        shortcut = None if self._pointwise is None else (pictures, self._pointwise)
        residual = None if shortcut else pictures[0]
        return Features(*self._conv2(framed, shortcut=shortcut, residual=residual, moments=True))


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
            context.rows[0][:, index],
            context.rows[1][:, index],
            layer.attn2.to_out[0].bias,
            heads=layer.attn2.heads,
            eps=layer.norm2.eps,
        )
        norm, gate = layer.norm3, parameters(layer.ff.net[0].proj)
        return y, layers.norm_linear(y, norm.weight, norm.bias, *gate, eps=norm.eps, gated=True)


@dataclass(frozen=True)
class Reading:
    """A wide transformer and which of the prepared rows it reads."""

    transformer: WideTransformer
    rows: slice

    def __call__(self, x: Features, context: Context) -> Features:
        return Features(*self.transformer(x.values, x.moments, context.rows[self.rows]))


Pair = tuple[FusedResnet, FusedTransformer | Reading | None]


def _run(pair: Pair, inputs: tuple[Features, ...], context: Context) -> Features:
    resnet, transformer = pair
    x = resnet(inputs, context)
    return x if transformer is None else transformer(x, context)


def _folds(slots: int) -> bool:
    """Whether `cross_attention` takes so many scores a token."""
    return 16 <= slots <= FOLDED_MAX and slots & (slots - 1) == 0


def _norm_silu(
    layers: LayerOps,
    inputs: tuple[Features, ...],
    norm: nn.GroupNorm,
    modulation: Tensor | None = None,
    dtype: torch.dtype | None = None,
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
        dtype=dtype,
    )


def _exit(inner: nn.Module, projection: nn.Module) -> tuple[Tensor, Tensor]:
    """Output of the last perceptron, residual and projection out as one linear layer over [tokens, inner features].

    P(y + W g + b) + p = P y + P W g + (P b + p): the product P W is made once, in float32.
    """
    (weight, bias), (out, out_bias) = parameters(inner), parameters(projection)
    out = out.flatten(1).float()
    joined = torch.cat([out, out @ weight.float()], 1)
    return joined.to(weight.dtype), (out @ bias.float() + out_bias.float()).to(bias.dtype)
