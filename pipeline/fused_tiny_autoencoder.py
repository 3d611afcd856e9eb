"""A tiny autoencoder in fused layers; its parameters stay those of an `AutoencoderTiny`, which defines the network.

A stage's pictures keep their frame from one convolution to the next. What the network does to the range of pixels and
latents is part of the first and the last weights.

With fp8 the convolutions of blocks read and multiply e4m3. A block's sum keeps sixteen bits, and so do the layers that
halve and enlarge: the picture's way past all blocks is not rounded. Activations need no scale, since e4m3 is as exact
for numbers of 0.02 as of 400.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from instantvision.kernels import LayerOps
from instantvision.kernels.conv_reference import Activation, fold_doubling
from instantvision.pipeline.autoencoder_tiny import LATENT_LIMIT, AutoencoderTiny, TinyBlock
from instantvision.pipeline.eight_bit import CHANNELS_MULTIPLE as E4M3_MULTIPLE
from instantvision.pipeline.eight_bit import E4M3, scaled


class FusedTinyAutoencoder:
    """Encodes and decodes as an AutoencoderTiny does.

    Args:
        autoencoder: placed on its device, in channels_last.
        layers: `reference_layers`, or kernels of the same signatures.
        fp8: multiply in e4m3 within blocks, if their channels are a multiple of 64.
    """

    def __init__(self, autoencoder: AutoencoderTiny, layers: LayerOps, *, fp8: bool = False) -> None:
        self._layers = layers
        # The encoder wants (pixels + 1) / 2, and half of it is in the weights.
        self._encoder = _steps(autoencoder.encoder["layers"], fp8)
        self._encoder[0].take_in(0.5)
        # The decoder gives 0..1 and not -1..1.
        self._decoder = _steps(autoencoder.decoder["layers"], fp8)
        self._decoder[0].take_in(LATENT_LIMIT)
        self._decoder[-1].give_out(2.0, -1.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """See AutoencoderTiny.encode."""
        return self._run(self._encoder, pixels, offset=1.0)

    def decode(self, latents: Tensor) -> Tensor:
        """See AutoencoderTiny.decode."""
        return self._run(self._decoder, latents, limit=LATENT_LIMIT)

    def _run(self, steps: "list[Step]", x: Tensor, **entry: Any) -> Tensor:
        """Entry: what is done with the picture first, see `conv3x3_shallow`."""
        layers, (first, *steps) = self._layers, steps
        x, plain = layers.conv3x3_shallow(
            x, first.weight, first.bias, activation=first.activation, **entry, **steps[0].wants
        )
        framed, block_input = True, x
        for step, after in zip_longest(steps, steps[1:]):
            if not framed:
                plain, x = x, layers.frame((x,), dtype=step.dtype)
            if step.opens_block:
                block_input = x if plain is None else plain
            wanted = after.wants if after is not None and step.stride == 1 else {}
            framed = bool(wanted)
            if step.doubles:
                x, plain = layers.conv3x3_doubled(x, step.weight, step.bias, **wanted)
                continue
            x, plain = layers.conv3x3(
                x,
                step.weight,
                step.bias,
                stride=step.stride,
                residual=block_input if step.closes_block else None,
                activation=step.activation,
                scale=step.scale,
                **wanted,
            )
        return x


class Step:
    """A convolution and what happens right before and after it.

    Args:
        conv: the layer.
        activation: of its result.
        doubles: it reads the picture at twice its height and width.
        opens_block: what it reads is added to what the block's last convolution gives.
        closes_block: it is that last one.
        fp8: multiply in e4m3, if its channels are a multiple of 64.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        activation: Activation = None,
        *,
        doubles: bool = False,
        opens_block: bool = False,
        closes_block: bool = False,
        fp8: bool = False,
    ) -> None:
        self.weight = fold_doubling(conv.weight.data) if doubles else conv.weight.data
        self.scale: Tensor | None = None
        if fp8 and self.channels % E4M3_MULTIPLE == 0:
            self.weight, self.scale = scaled(self.weight)
        self.bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.data
        self.stride = int(conv.stride[0])
        self.activation = activation
        self.doubles, self.opens_block, self.closes_block = doubles, opens_block, closes_block

    @property
    def channels(self) -> int:
        """That it reads."""
        return self.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype | None:
        """Of what it reads; None is that of the network."""
        return None if self.scale is None else E4M3

    @property
    def wants(self) -> dict[str, Any]:
        """Options for the layer that writes what it reads."""
        return {
            "framed_out": True,
            "dtype": self.dtype,
            "also_plain": self.opens_block and self.dtype is not None,
        }

    def take_in(self, factor: float) -> None:
        """Be the first: the picture comes divided by a factor."""
        self.weight = self.weight * factor

    def give_out(self, factor: float, term: float) -> None:
        """Be the last: the result is multiplied, then shifted."""
        self.weight, self.bias = self.weight * factor, self.bias * factor + term


def _steps(layers: nn.Module, fp8: bool) -> list[Step]:
    return list(_walk(list(layers.children()), fp8))


def _walk(modules: list[nn.Module], fp8: bool) -> Iterator[Step]:
    for i, module in enumerate(modules):
        if isinstance(module, TinyBlock):
            first, second, third = (part for part in module.conv if isinstance(part, nn.Conv2d))
            yield Step(first, "relu", opens_block=True, fp8=fp8)
            yield Step(second, "relu", fp8=fp8)
            yield Step(third, "relu", closes_block=True, fp8=fp8)
        elif isinstance(module, nn.Conv2d):
            active = any(isinstance(after, nn.ReLU) for after in modules[i + 1 : i + 2])
            doubles = i > 0 and isinstance(modules[i - 1], nn.Upsample)
            yield Step(module, "relu" if active else None, doubles=doubles)
