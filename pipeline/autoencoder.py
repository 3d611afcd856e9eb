"""mini's autoencoder: 16x16 pixels to one 32-channel latent position and back.

Pixels arrive folded by 4 (space-to-depth), so nothing ever convolves at full resolution: that is what makes
full-resolution tiny autoencoders slow. Normalisation is per position (RMSNorm over channels), not over the picture:
what happens in one corner cannot make another corner flicker, and a kernel can apply it while loading.

Source: residual down- and upsampling shortcuts follow Chen et al. 2024, Deep Compression Autoencoder (arXiv
2410.10733), section 3.1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Keeps flat black picture areas finite in bf16.
NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the network.

    Args:
        fold: space-to-depth factor of the pixels handed in.
        latent_channels: channels of a latent position.
        channels: width at each resolution, finest first; each next one is half the size.
        blocks: residual blocks at each resolution.
    """

    fold: int = 4
    latent_channels: int = 32
    channels: tuple[int, ...] = (128, 256, 256)
    blocks: tuple[int, ...] = (1, 1, 2)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position along one axis."""
        return int(self.fold * 2 ** (len(self.channels) - 1))


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of each position of [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + NORM_EPS)
        return (x * scale.to(x.dtype)) * self.weight.to(x.dtype)[:, None, None]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with pre-activation, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # The block starts as the identity: deep stacks without batch statistics then train at full rate.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class Downsample(nn.Module):
    """Halve the picture: space-to-depth of a convolution, plus channel means as a parameter-free shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after // 4, 3, padding=1)
        self.mean_of = 4 * before // after

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pixel_unshuffle(x, 2).unflatten(1, (-1, self.mean_of)).mean(2)
        return F.pixel_unshuffle(self.conv(x), 2) + shortcut


class Upsample(nn.Module):
    """Double the picture: depth-to-space of a convolution, plus repeated channels as a parameter-free shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        # 1x1: the residual blocks that follow mix positions; 3x3 here would be a quarter of all weights.
        self.conv = nn.Conv2d(before, after * 4, 1)
        self.repeat = 4 * after // before

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pixel_shuffle(x.repeat_interleave(self.repeat, 1), 2)
        return F.pixel_shuffle(self.conv(x), 2) + shortcut


class Encoder(nn.Sequential):
    """Folded pixels to latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3 * config.fold**2, config.channels[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(config.channels, config.blocks, strict=True)):
            if level:
                layers.append(Downsample(config.channels[level - 1], width))
            layers += [ResidualBlock(width) for _ in range(count)]
        layers.append(nn.Conv2d(config.channels[-1], config.latent_channels, 3, padding=1))
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Latents to folded pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        widths, counts = config.channels[::-1], config.blocks[::-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
            if level:
                layers.append(Upsample(widths[level - 1], width))
            layers += [ResidualBlock(width) for _ in range(count)]
        layers += [
            ChannelNorm(widths[-1]),
            nn.SiLU(),
            nn.Conv2d(widths[-1], 3 * config.fold**2, 3, padding=1),
        ]
        super().__init__(*layers)


class Autoencoder(nn.Module):
    """Encoder and decoder with latents of zero mean and unit variance per channel."""

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, folded: Tensor) -> Tensor:
        """Latents of folded pixels.

        Args:
            folded: [B, 3 * fold**2, H / fold, W / fold] in -1..1, channel order of torch's pixel_unshuffle.

        Returns:
            [B, latent_channels, H / downsampling, W / downsampling].
        """
        latents: Tensor = self.encoder(folded)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Folded pixels of latents: the inverse of encode, about -1..1, not clamped."""
        folded: Tensor = self.decoder(latents)
        return folded

    @torch.no_grad()
    def normalise_latents(self, mean: Tensor, std: Tensor) -> None:
        """Fold a per-channel shift and scale into the two convolutions that touch the latents.

        Args:
            mean: [latent_channels], of the latents this autoencoder makes now.
            std: [latent_channels], likewise.
        """
        weight, bias = self.encoder[-1].parameters()
        weight.div_(std[:, None, None, None])
        bias.sub_(mean).div_(std)
        weight, bias = self.decoder[0].parameters()
        bias.add_(torch.einsum("oikl,i->o", weight, mean))
        weight.mul_(std[None, :, None, None])
