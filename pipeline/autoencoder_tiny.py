"""The tiny autoencoders of Stable Diffusion and SDXL (TAESD, TAESDXL): 8 pixels to one latent position.

Parameter names and configuration keys are those of diffusers' AutoencoderTiny, so its safetensors load as
they are. Knows nothing of files, devices or diffusion.

Names: B batch, C latent channels, H W pixels, h w latent height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from instantvision.pipeline.diffusers_config import implemented_values
from instantvision.pipeline.errors import WeightsError

# Keys with one value in every published checkpoint. A scaling_factor of 1 and a shift_factor of 0 mean that the
# UNet takes the latents as they come.
FIXED: Mapping[str, object] = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
# Keys about storing latents as bytes, which we never do, or that repeat another key.
UNUSED = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels", "sample_size")

# The decoder bends latents into -3..3; what the encoder gives is well inside.
LATENT_LIMIT = 3


@dataclass(frozen=True, kw_only=True)
class AutoencoderTinyConfig:
    """Shape of a tiny autoencoder, in diffusers' keys and with diffusers' defaults.

    Raises:
        WeightsError: stages of different widths, or more stages than widths.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Self:
        """Read the dictionary in a checkpoint's config.json.

        Raises:
            WeightsError: naming the first key whose value we do not implement.
        """
        config = {key: value for key, value in config.items() if key not in UNUSED}
        keys = {field.name for field in fields(cls)}
        return cls(**implemented_values(config, class_name="AutoencoderTiny", keys=keys, fixed=FIXED))

    def __post_init__(self) -> None:
        for half in ("encoder", "decoder"):
            widths = getattr(self, f"{half}_block_out_channels")
            stages = len(getattr(self, f"num_{half}_blocks"))
            if len(widths) != stages or len(set(widths)) != 1:
                raise WeightsError(
                    f"AutoencoderTiny has {half}_block_out_channels={list(widths)}, expected {stages} equal "
                    f"numbers as num_{half}_blocks has {stages}: use another checkpoint"
                )


class TinyBlock(nn.Module):
    """Three convolutions around a shortcut: [B, channels, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class AutoencoderTiny(nn.Module):
    """Turns pixels into latents and back, deterministically."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        # The inner dictionaries give the parameters diffusers' names, encoder.layers.0.weight and so on.
        self.encoder = nn.ModuleDict({"layers": _encoder(config)})
        self.decoder = nn.ModuleDict({"layers": _decoder(config)})

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in -1..1, [B, 3, H, W], to latents, [B, C, h, w], of about unit variance."""
        return self.encoder["layers"]((pixels + 1) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents, [B, C, h, w], to pixels, [B, 3, H, W], in about -1..1: not clamped."""
        bent = torch.tanh(latents / LATENT_LIMIT) * LATENT_LIMIT
        return self.decoder["layers"](bent) * 2 - 1


def _encoder(config: AutoencoderTinyConfig) -> nn.Sequential:
    """Stages of blocks, each but the first after a convolution that halves height and width."""
    width = config.encoder_block_out_channels[0]
    layers: list[nn.Module] = []
    for i, blocks in enumerate(config.num_encoder_blocks):
        layers.append(_conv(width, width, stride=2, bias=False) if i else _conv(config.in_channels, width))
        layers += [TinyBlock(width) for _ in range(blocks)]
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def _decoder(config: AutoencoderTinyConfig) -> nn.Sequential:
    """Stages of blocks, each but the last before a doubling of height and width."""
    width = config.decoder_block_out_channels[0]
    layers: list[nn.Module] = [_conv(config.latent_channels, width), nn.ReLU()]
    for i, blocks in enumerate(config.num_decoder_blocks):
        if i:
            layers += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
        layers += [TinyBlock(width) for _ in range(blocks)]
    return nn.Sequential(*layers, _conv(width, config.out_channels))


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)
