"""mini's autoencoder in fused layers; its parameters stay those of an `Autoencoder`, which defines the network.

Every picture is written in the form that its reader wants: framed for a convolution, normalised and framed for a
residual block, which also wants it as it is.
"""

from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn

from instantvision.kernels import LayerOps
from instantvision.pipeline.autoencoder import (
    NORM_EPS,
    Autoencoder,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
)
from instantvision.pipeline.packing import filled_up, parameters

# Depth of the step that convolutions are fastest with: fewer channels of pixels are filled up with zeros.
PIXEL_CHANNELS_MULTIPLE = 64

# A picture as it is, and framed: normalised, too, where a normalisation follows. Twice the same where only one is read.
Forms: TypeAlias = tuple[Tensor, Tensor]


class FusedAutoencoder:
    """Encodes and decodes as an Autoencoder does.

    Args:
        autoencoder: placed on its device, in channels_last.
        layers: `reference_layers`, or kernels of the same signatures.
    """

    def __init__(self, autoencoder: Autoencoder, layers: LayerOps) -> None:
        self._layers = layers
        self._encoder, self._decoder = (
            [module for module in half if not isinstance(module, nn.SiLU)]
            for half in (autoencoder.encoder, autoencoder.decoder)
        )
        weight, self._stem_bias = parameters(self._encoder[0])
        self._stem = filled_up(weight, PIXEL_CHANNELS_MULTIPLE)
        self._projections = {
            module: tuple(_by_position(features) for features in parameters(module.conv))
            for module in self._decoder
            if isinstance(module, Upsample)
        }

    def encode(self, folded: Tensor) -> Tensor:
        """See Autoencoder.encode."""
        layers, (_, first, *rest) = self._layers, self._encoder
        framed = layers.frame((folded,), channels=self._stem.shape[1])
        forms = self._finish(framed, self._stem, self._stem_bias, first)
        return self._run([first, *rest], forms)

    def decode(self, latents: Tensor) -> Tensor:
        """See Autoencoder.decode."""
        framed = self._layers.frame((latents,))
        return self._run(self._decoder, (framed, framed))

    def _run(self, modules: list[nn.Module], forms: Forms) -> Tensor:
        for module, reader in pairwise(modules):
            # Whoever wrote the picture normalised it already.
            if not isinstance(module, ChannelNorm):
                forms = self._step(module, reader, forms)
        return self._layers.conv3x3(forms[1], *parameters(modules[-1]))[0]

    def _step(self, module: nn.Module, reader: nn.Module, forms: Forms) -> Forms:
        layers, (x, framed) = self._layers, forms
        if isinstance(module, Upsample):
            projected = self._project(x, *self._projections[module])
            return layers.depth_to_space_add(projected, x, norm_of(reader), eps=NORM_EPS)
        if isinstance(module, Downsample):
            convolved, _ = layers.conv3x3(framed, *parameters(module.conv))
            return layers.space_to_depth_add(convolved, framed, norm_of(reader), eps=NORM_EPS)
        if isinstance(module, ResidualBlock):
            framed, _ = layers.conv3x3(framed, *parameters(module.conv1), activation="silu", framed_out=True)
            return self._finish(framed, *parameters(module.conv2), reader, residual=x)
        return self._finish(framed, *parameters(module), reader)

    def _finish(
        self,
        framed: Tensor,
        weight: Tensor,
        bias: Tensor,
        reader: nn.Module,
        residual: Tensor | None = None,
    ) -> Forms:
        """Convolve, and write the result in the forms that `reader` reads."""
        layers = self._layers
        if isinstance(reader, ResidualBlock | ChannelNorm):
            return layers.conv3x3_rms(framed, weight, bias, norm_of(reader), eps=NORM_EPS, residual=residual)
        framed_out = not isinstance(reader, Upsample)
        out, _ = layers.conv3x3(framed, weight, bias, residual=residual, framed_out=framed_out)
        return out, out

    def _project(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        y, _ = self._layers.linear((tokens,), weight, bias)
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _by_position(features: Tensor) -> Tensor:
    """Rows ordered channel by channel of four positions each, reordered position by position."""
    by_channel = features.squeeze().unflatten(0, (-1, 4))
    return by_channel.transpose(0, 1).flatten(0, 1).contiguous()


def norm_of(reader: nn.Module) -> Tensor:
    """The weight of the normalisation that a module starts with."""
    norm = reader.norm if isinstance(reader, ResidualBlock) else reader
    if not isinstance(norm, ChannelNorm):
        raise TypeError(f"{type(reader).__name__} does not start with a normalisation")
    return norm.weight
