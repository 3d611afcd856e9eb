"""The arithmetic of one frame, from bytes to bytes, and all that it needs besides the frame.

The same on every device. Knows nothing of streams, graphs or threads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instantvision import kernels
from instantvision.pipeline.config import Settings
from instantvision.pipeline.model import LatentModel, Prepared
from instantvision.pipeline.sampler import denoise
from instantvision.pipeline.schedule import equal_log_snr_timesteps, noise_coefficients, step_coefficients


@dataclass(frozen=True)
class FrameInputs:
    """What a frame is made with besides its pixels; constant while the settings are.

    Args:
        prepared: of the model, one row a step.
        noise: unit normal field, [1, C, h, w].
        coefficients: one row a step, [S, 4], float32.
        start: shares of picture and noise at the first timestep, [2], float32.
    """

    prepared: Prepared
    noise: Tensor
    coefficients: Tensor
    start: Tensor

    @property
    def steps(self) -> int:
        """Evaluations of the denoiser; 0 at strength 0."""
        return len(self.coefficients)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of all tensors: inputs of equal shapes can be written over each other."""
        return tuple(tensor.shape for tensor in self._tensors())

    def clone(self) -> "FrameInputs":
        """The same values in memory of their own."""
        copy = tuple(tensor.contiguous().clone() for tensor in self.prepared)
        return FrameInputs(copy, self.noise.clone(), self.coefficients.clone(), self.start.clone())

    def copy_(self, other: "FrameInputs") -> None:
        """Take over the values of inputs of equal shapes."""
        for mine, new in zip(self._tensors(), other._tensors(), strict=True):
            mine.copy_(new)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.prepared, self.noise, self.coefficients, self.start)


def frame_inputs(model: LatentModel, settings: Settings) -> FrameInputs:
    """Compute everything that does not depend on the frame, on the model's device.

    Raises:
        UnknownPreset: the model has no such preset.
    """
    conditioning = model.condition(settings.mix, settings.size)
    timesteps = equal_log_snr_timesteps(model.alphas_cumprod, settings.steps, settings.strength)
    coefficients = step_coefficients(model.alphas_cumprod, timesteps, model.prediction)
    prepared: Prepared = ()
    start = torch.zeros(2)
    if timesteps:
        prepared = model.prepare(torch.tensor(timesteps, device=model.device), conditioning)
        start = noise_coefficients(model.alphas_cumprod, timesteps[0])
    noise = noise_field(model, settings).to(model.device, model.dtype, memory_format=torch.channels_last)
    return FrameInputs(prepared, noise, coefficients.to(model.device), start.to(model.device))


def noise_field(model: LatentModel, settings: Settings) -> Tensor:
    """The frozen noise of a seed and size, [1, C, h, w], float32 on the CPU.

    Drawn on the CPU: generators of different devices give different numbers for one seed.
    """
    size, pixels = settings.size, model.downsampling
    shape = (1, model.latent_channels, size.height // pixels, size.width // pixels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))


class FramePass:
    """One frame as five stages, each of which can be measured by itself.

    Args:
        model: on any device.
    """

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        backend = kernels.choose(model.device.type)
        self._frame_ops, self._step_ops = backend.frame_ops, backend.step_ops
        self.encode, self.decode = model.encode, model.decode

    def __call__(
        self, pixels: Tensor, inputs: FrameInputs, *, mirror: bool, out: Tensor | None = None
    ) -> Tensor:
        """Stylise a picture.

        Args:
            pixels: uint8 RGB [H, W, 3] on the model's device.
            inputs: for its size.
            mirror: flip left and right.
            out: where to write, like `pixels`.

        Returns:
            uint8 RGB [H, W, 3].
        """
        source = self.encode(self.unpack(pixels, mirror=mirror))
        return self.pack(self.decode(self.denoise(source, inputs)), out=out)

    def unpack(self, pixels: Tensor, *, mirror: bool) -> Tensor:
        """Bytes to the encoder's input, [1, 3 * fold**2, H / fold, W / fold]."""
        model = self.model
        return self._frame_ops.pixels_to_input(
            pixels, fold=model.fold, mirror=mirror, bgr=False, dtype=model.dtype
        )

    def denoise(self, source: Tensor, inputs: FrameInputs) -> Tensor:
        """Add the frozen noise to the picture's latents and follow the denoiser back; [1, C, h, w]."""
        if not inputs.steps:
            return source
        # One memory order for all latents of the frame, whatever the encoder returned.
        source = source.contiguous(memory_format=torch.channels_last)

        def predict(noisy: Tensor, step: int) -> Tensor:
            rows = tuple(tensor[step : step + 1] for tensor in inputs.prepared)
            return self.model.predict_prepared(noisy, source, rows)

        noisy = self._step_ops.add_noise(source, inputs.noise, inputs.start)
        return denoise(predict, noisy, inputs.coefficients, self._step_ops)

    def pack(self, output: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The decoder's output to bytes, [H, W, 3]."""
        return self._frame_ops.output_to_pixels(output, fold=self.model.fold, bgr=False, out=out)
