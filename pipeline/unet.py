"""One UNet for mini, Stable Diffusion 1.5, 2.1 and Turbo, and SDXL: they differ in their table of blocks.

Parameter names and configuration keys are those of diffusers' UNet2DConditionModel, so its safetensors load
as they are. Knows nothing of schedules, samplers or devices.

Names: B batch, C channels, h w latent height and width, T tokens, D token width, E time embedding's width.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instantvision.pipeline.unet_blocks import DownBlock, MidBlock, TimestepEmbedding, UpBlock, norm_silu
from instantvision.pipeline.unet_config import UNetConfig

__all__ = ["UNet", "UNetConfig", "sinusoids"]

LONGEST_PERIOD = 10_000


def sinusoids(values: Tensor, channels: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Embed numbers as sines and cosines of falling frequency.

    Args:
        values: [N], any dtype.
        channels: of the result, even.
        flip_sin_to_cos: cosines first.
        freq_shift: taken from the number of frequencies in the exponent's denominator.

    Returns:
        [N, channels], float32.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, with the cosines apart.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * index / (half - freq_shift))
    angles = values.float()[:, None] * frequencies
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=-1)


class UNet(nn.Module):
    """Predicts noise, velocity or picture from a noisy latent, as it was trained to.

    `forward` is `embed` followed by `forward_embedded`. What `embed` gives depends on the timestep and the
    style only, so a live engine computes it once for all frames.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, emb_channels = config.block_out_channels, config.emb_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], emb_channels)
        projected = config.projection_class_embeddings_input_dim or 0
        if config.class_embed_type:
            self.class_embedding = TimestepEmbedding(projected, emb_channels)
        if config.addition_embed_type:
            self.add_embedding = TimestepEmbedding(projected, emb_channels)
        self.down_blocks, skips = _down_blocks(config)
        self.mid_block = MidBlock(config, config.mid_level)
        self.up_blocks = _up_blocks(config, skips)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            sample: noisy latent, [B, in_channels, h, w], any h and w.
            timestep: 0..999, [B] or [1].
            encoder_hidden_states: tokens, [B or 1, T, D].
            class_labels, text_embeds, time_ids: see `embed`.

        Returns:
            [B, out_channels, h, w].

        Raises:
            ValueError: see `embed`.
        """
        emb = self.embed(timestep, class_labels=class_labels, text_embeds=text_embeds, time_ids=time_ids)
        return self.forward_embedded(sample, emb, encoder_hidden_states)

    def embed(
        self,
        timestep: Tensor,
        *,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """Everything the residual blocks are told besides the picture.

        Args:
            timestep: 0..999, [B] or [1].
            class_labels: for class_embed_type 'projection': [B or 1, P].
            text_embeds: for addition_embed_type 'text_time': pooled text embedding, [B or 1, P'].
            time_ids: likewise: original size, crop and target size in pixels, [B or 1, 6].

        Returns:
            [B, E].

        Raises:
            ValueError: the configuration needs one that is missing, or has no use for one that is given.
        """
        _check_given("class_labels", class_labels, self.config.class_embed_type)
        _check_given("text_embeds", text_embeds, self.config.addition_embed_type)
        _check_given("time_ids", time_ids, self.config.addition_embed_type)
        emb = self.time_embedding(self._sinusoids(timestep, self.config.block_out_channels[0]))
        if class_labels is not None:
            emb = emb + self.class_embedding(class_labels)
        if text_embeds is not None and time_ids is not None:
            times = self._sinusoids(time_ids.flatten(), self.config.addition_time_embed_dim or 0)
            added = torch.cat([text_embeds, times.reshape(len(time_ids), -1)], dim=-1)
            emb = emb + self.add_embedding(added)
        return emb

    def forward_embedded(self, sample: Tensor, emb: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """The part of `forward` that depends on the frame.

        Args:
            sample: noisy latent, [B, in_channels, h, w], any h and w.
            emb: from `embed`, [B or 1, E].
            encoder_hidden_states: tokens, [B or 1, T, D].

        Returns:
            [B, out_channels, h, w].
        """
        return self.forward_keeping(sample, emb, encoder_hidden_states)[0]

    def forward_keeping(self, sample: Tensor, emb: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`forward_embedded`, and what it found below the outermost level: the last block's input, [B, C, h, w]."""
        # Every residual block starts with this SiLU; once is enough.
        emb = F.silu(emb)
        skips = self._enter(sample, emb, tokens)
        outer = len(skips)
        x = self._outermost.halve(skips[-1], skips)
        for block in self.down_blocks[1:]:
            x = block(x, emb, tokens, skips)
        deep = self.mid_block(x, emb, tokens)
        for block in self.up_blocks[:-1]:
            deep = block(deep, emb, tokens, skips)
        return self._leave(deep, emb, tokens, skips[:outer]), deep

    def forward_reusing(self, sample: Tensor, emb: Tensor, tokens: Tensor, deep: Tensor) -> Tensor:
        """The outermost level of `forward_embedded` alone, over what `forward_keeping` found below it.

        Source: Ma et al. 2023 (arXiv 2312.00858), section 3.2.
        """
        emb = F.silu(emb)
        return self._leave(deep, emb, tokens, self._enter(sample, emb, tokens))

    @property
    def _outermost(self) -> DownBlock:
        return cast(DownBlock, self.down_blocks[0])

    def _enter(self, sample: Tensor, emb: Tensor, tokens: Tensor) -> list[Tensor]:
        """Everything above the first halving, in the order in which the way up reads it backwards."""
        skips = [self.conv_in(sample)]
        self._outermost.layers(skips[0], emb, tokens, skips)
        return skips

    def _leave(self, deep: Tensor, emb: Tensor, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.up_blocks[-1](deep, emb, tokens, skips)
        return self.conv_out(norm_silu(x, self.conv_norm_out))

    def _sinusoids(self, values: Tensor, channels: int) -> Tensor:
        config = self.config
        embedded = sinusoids(
            values, channels, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        )
        return embedded.to(self.conv_in.weight.dtype)


def _down_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The blocks on the way down, and the channels of every feature map that the way up reads."""
    levels = config.down_levels
    blocks, channels = nn.ModuleList(), config.block_out_channels[0]
    skips = [channels]
    for i, level in enumerate(levels):
        last = i == len(levels) - 1
        blocks.append(DownBlock(config, level, channels, last))
        channels = level.channels
        skips += [channels] * (level.layers if last else level.layers + 1)
    return blocks, skips


def _up_blocks(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    levels = config.up_levels
    blocks, channels = nn.ModuleList(), config.block_out_channels[-1]
    for i, level in enumerate(levels):
        taken = [skips.pop() for _ in range(level.layers)]
        blocks.append(UpBlock(config, level, channels, taken, last=i == len(levels) - 1))
        channels = level.channels
    return blocks


def _check_given(name: str, value: Tensor | None, wanted: str | None) -> None:
    if (value is None) == (wanted is not None):
        state = "missing" if value is None else "given"
        raise ValueError(f"{name} is {state}, but the UNet's embedding of that kind is {wanted}")
