"""What a latent diffusion model offers to the engine: the only thing that engine, sampler and bench know of models.

Names: B batch, S steps, C latent channels, h w latent height and width, H W picture height and width in pixels,
T tokens, D token width, P width of the pooled vector.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from instantvision.pipeline.config import Mix, Size

Prediction = Literal["epsilon", "v_prediction", "sample"]

# Everything the denoiser needs besides latents, one row a step: each tensor is [S, ...]. Opaque to the engine, which
# keeps them in static buffers and hands the rows of one step, each [1, ...], or of all, back to predict_prepared.
Prepared: TypeAlias = tuple[Tensor, ...]

# What an evaluation found in the deep part of its network, for evaluations that leave that part out. Opaque to the
# engine, which keeps it in static buffers; shapes depend on the latents' shape only.
Deep: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Conditioning:
    """What to paint; constant while preset mix, size and model stay the same.

    Args:
        tokens: style or text tokens for cross-attention, [1, T, D].
        pooled: vector added to the time embedding, [1, P].
    """

    tokens: Tensor
    pooled: Tensor


class LatentModel(Protocol):
    """An autoencoder and a denoiser that share a latent space, on one device.

    Calls come from one thread, in inference mode. `encode`, `decode` and `predict_prepared` are the frame path: they
    are recorded in a CUDA graph, so they must not wait for the device, depend on values of tensors, or
    allocate anything that outlives the call. Convolution weights are expected in channels_last.
    """

    fold: int
    """Pixels are handed over folded by this factor, in torch's pixel_unshuffle channel order (mini 4, TAESD 1)."""
    downsampling: int
    """Pixels per latent position along one axis, a multiple of `fold`."""
    latent_channels: int
    alphas_cumprod: Tensor
    """Cumulative signal power of the trained schedule, [1000], float64 on the CPU, falling."""
    prediction: Prediction
    """What predict_prepared returns: the noise, the velocity or the clean latents."""
    device: torch.device
    dtype: torch.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        """Folded pixels [B, 3 * fold**2, H / fold, W / fold] in -1..1 to unit-variance latents [B, C, h, w]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to folded pixels: the inverse of encode, about -1..1, not clamped."""

    def condition(self, mix: Mix, size: Size) -> Conditioning:
        """What to paint for a preset mix.

        Raises:
            UnknownPreset: with the nearest name.
        """

    def prepare(self, timesteps: Tensor, conditioning: Conditioning) -> Prepared:
        """Everything of a prediction that does not depend on the frame, for all steps at once.

        Args:
            timesteps: int64 [S] on the model's device, S at least 1.
            conditioning: from `condition`.

        Returns:
            Tensors of first dimension S on the model's device; shapes depend on S and the conditioning's shapes only.
        """

    def predict_prepared(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> Tensor:
        """One evaluation of the denoiser.

        Args:
            noisy: latents at this step's timestep, [1, C, h, w]; or of several frames, each at a step of its own,
                [B, C, h, w].
            source: latents of the camera picture, likewise.
            prepared: this step's rows of `prepare`, each [1, ...]; or each frame's, [B, ...].

        Returns:
            The prediction, like `noisy`.
        """


@runtime_checkable
class ReusableModel(LatentModel, Protocol):
    """A model that can evaluate the shallow part of its denoiser alone: the first and last layers, at full resolution.

    Source: Ma et al. 2023 (arXiv 2312.00858), section 3.2.
    """

    def predict_keeping(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> tuple[Tensor, Deep]:
        """`predict_prepared`, and what it found in the deep part."""

    def predict_reusing(self, noisy: Tensor, source: Tensor, prepared: Prepared, deep: Deep) -> Tensor:
        """`predict_prepared` without the deep part, for which `deep` stands in."""


def predict(
    model: LatentModel, noisy: Tensor, timestep: Tensor, source: Tensor, conditioning: Conditioning
) -> Tensor:
    """One evaluation without preparation, for training's evaluation and for tests.

    Args:
        noisy, source: [1, C, h, w].
        timestep: int64 [1].
        conditioning: from `condition`.

    Returns:
        The prediction, [1, C, h, w].
    """
    return model.predict_prepared(noisy, source, model.prepare(timestep, conditioning))
