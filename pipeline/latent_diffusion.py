"""Stable Diffusion and SDXL as a live effect: our UNet with a tiny autoencoder, image to image.

Implements LatentModel. The text arrives as the tensors that a text encoder gives. The camera's picture is what the
denoising starts from and nothing more, so `predict_prepared` does not look at it. Knows nothing of frames or graphs.
"""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from instantvision import kernels
from instantvision.pipeline.autoencoder_tiny import AutoencoderTiny
from instantvision.pipeline.config import Mix, Size
from instantvision.pipeline.device import placed
from instantvision.pipeline.eight_bit import check_device
from instantvision.pipeline.fused_tiny_autoencoder import FusedTinyAutoencoder
from instantvision.pipeline.fused_unet import FusedUNet
from instantvision.pipeline.model import Conditioning, Prediction, Prepared
from instantvision.pipeline.published import DiffusionConfig
from instantvision.pipeline.schedule import scaled_linear_alphas_cumprod
from instantvision.pipeline.unet import UNet

# SDXL is told the picture's original size, the corner it was cut from and its size, each as two numbers.
TIME_IDS = 6


class LatentDiffusion:
    """A text-conditioned model with the prompt that it paints.

    Args:
        config: which model it is.
        unet: with trained weights, of `config.unet`.
        autoencoder: with trained weights, of `config.autoencoder`.
        prompt: from the model's text encoders; `pooled` is [1, 0] but for models such as SDXL, which want one.
        device: where to run.
        dtype: of all arithmetic that is not a sum.
        fp8: multiply in e4m3 where that is faster.

    Raises:
        EngineError: the GPU has no arithmetic in e4m3.
        ValueError: the prompt is of another width than the UNet wants.
    """

    fold = 1

    def __init__(
        self,
        config: DiffusionConfig,
        unet: UNet,
        autoencoder: AutoencoderTiny,
        prompt: Conditioning,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8: bool = False,
    ) -> None:
        _check_prompt(config, prompt)
        if fp8:
            check_device(device)
        self.config, self.device, self.dtype = config, device, dtype
        self.prediction: Prediction = config.prediction
        self.latent_channels = config.autoencoder.latent_channels
        # Each stage of the encoder but the first halves height and width.
        self.downsampling = 2 ** (len(config.autoencoder.num_encoder_blocks) - 1)
        self.alphas_cumprod = scaled_linear_alphas_cumprod(config.beta_start, config.beta_end)
        backend = kernels.choose(device.type)
        self._unet = placed(unet, device, dtype)
        self._fused = FusedUNet(
            self._unet, backend.layer_ops, backend.token_ops, context=prompt.tokens.shape[1], fp8=fp8
        )
        self._autoencoder = FusedTinyAutoencoder(
            placed(autoencoder, device, dtype), backend.layer_ops, fp8=fp8
        )
        self._prompt = prompt

    @classmethod
    def with_random_weights(
        cls,
        config: DiffusionConfig,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        fp8: bool = False,
    ) -> Self:
        """A model that paints nothing sensible at its true speed, for measurements and tests."""
        unet, autoencoder = random_networks(config, seed, device)
        return cls(config, unet, autoencoder, random_prompt(config, seed), device, dtype, fp8=fp8)

    def encode(self, pixels: Tensor) -> Tensor:
        """See LatentModel."""
        return self._autoencoder.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """See LatentModel."""
        return self._autoencoder.decode(latents)

    def condition(self, mix: Mix, size: Size) -> Conditioning:  # noqa: ARG002 (the signature of LatentModel)
        """The prompt, whatever the mix: looks are mini's. For SDXL the size is joined to `pooled`, in pixels."""
        tokens = self._prompt.tokens.to(self.device, self.dtype)
        pooled = self._prompt.pooled.to(self.device, torch.float32)
        if self.config.unet.addition_embed_type:
            # In float32: a half-precision number has too few digits for some sizes.
            sizes = [size.height, size.width, 0, 0, size.height, size.width]
            pooled = torch.cat(
                [pooled, torch.tensor([sizes], device=self.device, dtype=torch.float32)], dim=1
            )
        return Conditioning(tokens=tokens, pooled=pooled)

    def prepare(self, timesteps: Tensor, conditioning: Conditioning) -> Prepared:
        """See LatentModel."""
        count, added = len(timesteps), {}
        if self.config.unet.addition_embed_type:
            pooled = conditioning.pooled.expand(count, -1)
            added = {"text_embeds": pooled[:, :-TIME_IDS].to(self.dtype), "time_ids": pooled[:, -TIME_IDS:]}
        return self._fused.prepare(self._unet.embed(timesteps, **added), conditioning.tokens)

    def predict_prepared(
        self,
        noisy: Tensor,
        source: Tensor,  # noqa: ARG002 (the picture is where the denoising starts, no more)
        prepared: Prepared,
    ) -> Tensor:
        """See LatentModel."""
        return self._fused((noisy,), prepared)


def pooled_width(config: DiffusionConfig) -> int:
    """Numbers of the pooled text embedding that the UNet wants; 0: none."""
    unet = config.unet
    if not unet.addition_embed_type:
        return 0
    return (unet.projection_class_embeddings_input_dim or 0) - TIME_IDS * (unet.addition_time_embed_dim or 0)


def token_width(config: DiffusionConfig) -> int:
    """Numbers of one text token."""
    width = config.unet.cross_attention_dim
    return width[0] if isinstance(width, tuple) else width


def random_prompt(config: DiffusionConfig, seed: int) -> Conditioning:
    """Unit normal tokens and pooled embedding of the model's widths, float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, config.tokens, token_width(config), generator=generator)
    return Conditioning(tokens, torch.randn(1, pooled_width(config), generator=generator))


def random_networks(config: DiffusionConfig, seed: int, device: torch.device) -> tuple[UNet, AutoencoderTiny]:
    """Both networks with random weights, float32 on the device; the random numbers of others are left alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        unet, autoencoder = UNet(config.unet), AutoencoderTiny(config.autoencoder)
        _scale(autoencoder)
    return unet, autoencoder


@torch.no_grad()
def _scale(autoencoder: AutoencoderTiny) -> None:
    """Give pictures of noise latents of unit variance, and these pictures of some contrast.

    torch's own starting values let a signal fade by a third of its power with every layer: all pictures would end as
    the same grey, and no comparison of two networks would find a difference.
    """
    for layer in autoencoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    x = torch.rand(1, autoencoder.config.in_channels, 64, 64) * 2 - 1
    encoder, decoder = cast(Any, autoencoder.encoder), cast(Any, autoencoder.decoder)
    # The decoder's own range is 0..1, so its middle is a half.
    halves = ((encoder, autoencoder.encode, 1.0, 0.0), (decoder, autoencoder.decode, 0.5, 0.5))
    for half, run, spread, middle in halves:
        last = half["layers"][-1]
        last.weight.mul_(spread / run(x).std())
        nn.init.constant_(last.bias, middle)
        x = run(x)


def _check_prompt(config: DiffusionConfig, prompt: Conditioning) -> None:
    found = (prompt.tokens.shape[-1], prompt.pooled.shape[-1])
    wanted = (token_width(config), pooled_width(config))
    if found != wanted:
        raise ValueError(
            f"the prompt's tokens and pooled embedding are {found[0]} and {found[1]} wide, expected {wanted[0]} and "
            f"{wanted[1]}: use the text encoders of this model"
        )
