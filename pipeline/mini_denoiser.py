"""mini's denoiser: the UNet's smallest configuration, told what to paint by a table of learned styles.

A style is eight tokens for cross-attention and one vector for the residual blocks; styles are mixed by mixing these.
The size of strokes follows the picture's height, so a look is the same at 256 and at 1024 pixels.
"""

import math

import torch
from torch import Tensor, nn

from instantvision.pipeline.unet import UNet
from instantvision.pipeline.unet_config import UNetConfig

STYLE_TOKENS = 8
STYLE_WIDTH = 256
# Heights the scale input was trained for, relative to 512 pixels.
SCALE_MIN, SCALE_MAX = 0.5, 2.0

# Two levels of 256 channels: few, wide layers. A live frame is bound by the number of launches, and 4096x256 matrices
# fill a large GPU where 128 or 224 channels do not.
MINI_UNET = UNetConfig(
    in_channels=64,
    out_channels=32,
    block_out_channels=(256, 256),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=4,
    cross_attention_dim=STYLE_WIDTH,
    use_linear_projection=True,
    resnet_time_scale_shift="scale_shift",
    class_embed_type="projection",
    projection_class_embeddings_input_dim=STYLE_WIDTH,
    time_embedding_dim=512,
)


def stroke_scale(height_px: int) -> float:
    """Size of strokes for a picture of that height, relative to 512 pixels, within the trained range."""
    return min(SCALE_MAX, max(SCALE_MIN, height_px / 512))


class StyleTable(nn.Module):
    """Learned styles, one row each."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(styles, STYLE_TOKENS, STYLE_WIDTH))
        self.pooled = nn.Parameter(torch.randn(styles, STYLE_WIDTH))
        self.scale = nn.Parameter(torch.randn(STYLE_WIDTH))

    def forward(self, weights: Tensor, log2_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Mix styles.

        Args:
            weights: of every style, [B, styles], rows adding up to 1.
            log2_scale: size of strokes, [B], 0 for a picture of 512 pixels height.

        Returns:
            Tokens [B, 8, 256] and the pooled vector [B, 256].
        """
        tokens = torch.einsum("bs,std->btd", weights, self.tokens)
        return tokens, weights @ self.pooled + log2_scale[:, None] * self.scale


class MiniDenoiser(nn.Module):
    """UNet and style table; predicts velocity (v) from a noisy latent beside the camera's latent."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.unet = UNet(MINI_UNET)
        self.styles = StyleTable(styles)

    def forward(
        self, noisy: Tensor, timestep: Tensor, source: Tensor, weights: Tensor, log2_scale: Tensor
    ) -> Tensor:
        """One evaluation, as training calls it.

        Args:
            noisy: [B, 32, h, w].
            timestep: 0..999, [B].
            source: the camera's latent, shape of noisy.
            weights: of every style, [B, styles].
            log2_scale: see StyleTable.

        Returns:
            v prediction, [B, 32, h, w]. Source: Salimans & Ho 2022 (arXiv 2202.00512), section 4.
        """
        tokens, pooled = self.styles(weights, log2_scale)
        v: Tensor = self.unet(torch.cat([noisy, source], 1), timestep, tokens, class_labels=pooled)
        return v


def log2_stroke_scale(height_px: int) -> float:
    """The scale input of StyleTable for a picture of that height."""
    return math.log2(stroke_scale(height_px))
