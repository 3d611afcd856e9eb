"""The shapes of the published Stable Diffusion models: numbers only, no weights.

What is left out has diffusers' defaults. Knows nothing of torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from instantvision.pipeline.autoencoder_tiny import AutoencoderTinyConfig
from instantvision.pipeline.unet_config import UNetConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Everything that tells one latent diffusion model from another, but its weights.

    Args:
        unet: of the denoiser.
        autoencoder: of TAESD's kind.
        prediction: what the denoiser returns.
        tokens: text tokens it is told at once.
        beta_start, beta_end: of the scaled-linear schedule.
    """

    unet: UNetConfig
    autoencoder: AutoencoderTinyConfig = field(default_factory=AutoencoderTinyConfig)
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    tokens: int = 77
    beta_start: float = 0.00085
    beta_end: float = 0.012


SD_15 = DiffusionConfig(unet=UNetConfig(cross_attention_dim=768))

_SD_2 = UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
SD_21 = DiffusionConfig(unet=_SD_2, prediction="v_prediction")
SD_TURBO = DiffusionConfig(unet=_SD_2)

SDXL = DiffusionConfig(
    unet=UNetConfig(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
)
