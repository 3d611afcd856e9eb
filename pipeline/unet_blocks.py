"""What a UNet is made of: residual blocks, transformers, and the blocks of the table that hold them.

Attribute names are those of diffusers' checkpoints, which is why some read oddly (`net.2`, `to_out.0`). The
three functions at the top do the arithmetic that is worth kernels of its own.

Names: B batch, C channels, h w latent height and width, T tokens, D token width, E time embedding's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instantvision.pipeline.unet_config import Level, UNetConfig

# diffusers fixes this one in Transformer2DModel, whatever the configuration's norm_eps is.
TRANSFORMER_NORM_EPS = 1e-6


def norm_silu(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None) -> Tensor:
    """Group normalisation, then scale and shift by the time embedding, then SiLU.

    Args:
        x: [B, C, h, w].
        norm: over C.
        modulation: [B or 1, 2C], scale then shift; the picture is multiplied by 1 + scale.

    Returns:
        [B, C, h, w].
    """
    x = norm(x)
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        x = x * (1 + scale) + shift
    return F.silu(x)


def attend(x: Tensor, context: Tensor, layer: "Attention") -> Tensor:
    """Multi-head attention from x to context, with its four projections.

    Args:
        x: [B, T, C].
        context: [B or 1, S, D]; x itself for self-attention.
        layer: holds the projections and the number of heads.

    Returns:
        [B, T, C].

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.
    """
    query = layer.to_q(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    key = layer.to_k(context).unflatten(-1, (layer.heads, -1)).transpose(1, 2).expand(len(x), -1, -1, -1)
    value = layer.to_v(context).unflatten(-1, (layer.heads, -1)).transpose(1, 2).expand(len(x), -1, -1, -1)
    gathered = F.scaled_dot_product_attention(query, key, value)
    return layer.to_out(gathered.transpose(1, 2).flatten(-2))


def geglu(x: Tensor) -> Tensor:
    """Gate the first half of the last axis by GELU of the second: [B, T, 2D] -> [B, T, D].

    Source: Shazeer 2020 (arXiv 2002.05202), eq. 6.
    """
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


class TimestepEmbedding(nn.Module):
    """Two linear layers around a SiLU: [B, in_channels] -> [B, E]."""

    def __init__(self, in_channels: int, emb_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, emb_channels)
        self.linear_2 = nn.Linear(emb_channels, emb_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, told the timestep in between.

    [B, in_channels, h, w] and the embedding after its SiLU, [B or 1, E] -> [B, out_channels, h, w].
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.norm1 = nn.GroupNorm(config.norm_num_groups, in_channels, config.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.emb_channels, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(config.norm_num_groups, out_channels, config.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # An identity has no parameters, as diffusers' missing conv_shortcut has none.
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        time = self.time_emb_proj(emb)
        y = self.conv1(norm_silu(x, self.norm1))
        modulation = time if self.scale_shift else None
        if modulation is None:
            y = y + time[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(norm_silu(y, self.norm2, modulation))


class Attention(nn.Module):
    """Projections of one attention layer; the work is done by `attend`."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return attend(x, context, self)


class GatedLinear(nn.Module):
    """A linear layer whose output is gated by its own second half: [B, T, C] -> [B, T, out_channels]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))


class FeedForward(nn.Module):
    """The transformer's gated perceptron, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The identity keeps the place, and so the name of what follows, of diffusers' dropout.
        self.net = nn.Sequential(
            GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the tokens, feed-forward: [B, hw, C] and [B or 1, T, D] -> [B, hw, C]."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(level.channels)
        self.attn1 = Attention(level.channels, level.channels, level.heads)
        self.norm2 = nn.LayerNorm(level.channels)
        self.attn2 = Attention(level.channels, level.context, level.heads)
        self.norm3 = nn.LayerNorm(level.channels)
        self.ff = FeedForward(level.channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer layers over all positions of a feature map: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, config: UNetConfig, level: Level) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, level.channels, TRANSFORMER_NORM_EPS)
        # A 1x1 convolution and a linear layer do the same; checkpoints differ in the shape of the weight.
        linear = config.use_linear_projection
        self.proj_in = _pointwise(level.channels, linear)
        self.transformer_blocks = nn.ModuleList(TransformerLayer(level) for _ in range(level.depth))
        self.proj_out = _pointwise(level.channels, linear)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        y = _project(self.norm(x).flatten(2).transpose(1, 2), self.proj_in)
        for block in self.transformer_blocks:
            y = block(y, tokens)
        y = _project(y, self.proj_out)
        return x + y.transpose(1, 2).reshape(x.shape)


def _pointwise(channels: int, linear: bool) -> nn.Linear | nn.Conv2d:
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


def _project(x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    return F.linear(x, layer.weight.flatten(1), layer.bias)


class NoAttention(nn.Module):
    """Stands where a block of the table has no transformer."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # noqa: ARG002 (the signature of Transformer)
        return x


def _attention(config: UNetConfig, level: Level) -> nn.Module:
    return Transformer(config, level) if level.depth else NoAttention()


class Downsample(nn.Module):
    """Halve height and width, rounding up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Enlarge to the height and width of `like`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))


class DownBlock(nn.Module):
    """A row of the table on the way down: DownBlock2D and CrossAttnDownBlock2D."""

    def __init__(self, config: UNetConfig, level: Level, in_channels: int, last: bool) -> None:
        super().__init__()
        inputs = [in_channels] + [level.channels] * (level.layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, level.channels) for channels in inputs)
        self.attentions = nn.ModuleList(_attention(config, level) for _ in inputs)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(level.channels)])

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        """Append to `skips` every feature map that the way up will read."""
        return self.halve(self.layers(x, emb, tokens, skips), skips)

    def layers(self, x: Tensor, emb: Tensor, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        """The part of `forward` at the height and width of x."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, emb), tokens)
            skips.append(x)
        return x

    def halve(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """The rest of it."""
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """The row between: UNetMidBlock2DCrossAttn."""

    def __init__(self, config: UNetConfig, level: Level) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(config, level.channels, level.channels) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(config, level)])

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor) -> Tensor:
        before, after = self.resnets
        return after(self.attentions[0](before(x, emb), tokens), emb)


class UpBlock(nn.Module):
    """A row of the table on the way up: UpBlock2D and CrossAttnUpBlock2D."""

    def __init__(
        self, config: UNetConfig, level: Level, in_channels: int, skip_channels: list[int], last: bool
    ) -> None:
        super().__init__()
        before = [in_channels] + [level.channels] * (level.layers - 1)
        inputs = [channels + skip for channels, skip in zip(before, skip_channels, strict=True)]
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, level.channels) for channels in inputs)
        self.attentions = nn.ModuleList(_attention(config, level) for _ in inputs)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(level.channels)])

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        """Take from the end of `skips` one feature map for each residual block."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, skips.pop()], dim=1), emb), tokens)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1])
        return x
