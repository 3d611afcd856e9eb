"""diffusers' networks with the weights of one of our models, run the way most programs run them.

`DiffusersModel` offers them as a LatentModel, so that ours and theirs are given the same noise, steps and prompt;
`PeerFrame` makes a frame of them in plain torch: eagerly, or compiled and recorded in a CUDA graph. None of our kernels
is used here.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch._dynamo
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from instantvision.kernels import reference
from instantvision.pipeline.autoencoder_tiny import AutoencoderTinyConfig
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.frame_inputs import frame_inputs
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.graphs import Streams, capture
from instantvision.pipeline.latent_diffusion import TIME_IDS
from instantvision.pipeline.model import Conditioning, LatentModel, Prepared
from instantvision.pipeline.unet_config import UNetConfig

# Several sizes of several models are compiled in one process; torch's own limit of 8 would fall back to eager then.
COMPILATIONS_MAX = 64


class Codec(Protocol):
    """An autoencoder without wrappings around its results."""

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class TinyCodec(nn.Module):
    """diffusers' AutoencoderTiny with given weights."""

    def __init__(self, config: AutoencoderTinyConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module = AutoencoderTiny(**asdict(config))
        self.module.load_state_dict(weights)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 to latents."""
        return self.module.encode(pixels, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to [B, 3, H, W]."""
        return self.module.decode(latents, return_dict=False)[0]


@dataclass(frozen=True)
class Weights:
    """What both sides are made of, float32.

    Args:
        config: of the UNet.
        unet: its parameters by name; ours have diffusers' names.
        codec: makes an autoencoder in plain torch with the weights; a new one at every call.
    """

    config: UNetConfig
    unet: Mapping[str, Tensor]
    codec: Callable[[], nn.Module]


class DiffusersModel:
    """diffusers' classes as a LatentModel; embeds the timestep at every evaluation, as they do.

    Args:
        ours: gives schedule, prompt and shapes.
        weights: the same as those of `ours`.
        dtype: of all arithmetic.
    """

    def __init__(self, ours: LatentModel, weights: Weights, dtype: torch.dtype) -> None:
        self.fold, self.downsampling, self.latent_channels = (
            ours.fold,
            ours.downsampling,
            ours.latent_channels,
        )
        self.alphas_cumprod, self.prediction = ours.alphas_cumprod, ours.prediction
        self.device, self.dtype = ours.device, dtype
        self._condition, self._config = ours.condition, weights.config
        with self.device:
            unet = UNet2DConditionModel(**asdict(weights.config))
        unet.load_state_dict(weights.unet)
        self.unet = _place(unet, self.device, dtype)
        self.codec = _place(weights.codec(), self.device, dtype)

    def encode(self, pixels: Tensor) -> Tensor:
        """See LatentModel."""
        return self.codec.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """See LatentModel."""
        return self.codec.decode(latents)

    def condition(self, mix: Mix, size: Size) -> Conditioning:
        """Our model's, in this one's dtype; SDXL's sizes in pixels stay float32."""
        given = self._condition(mix, size)
        pooled = given.pooled if self._config.addition_embed_type else given.pooled.to(self.dtype)
        return Conditioning(given.tokens.to(self.dtype), pooled)

    def prepare(self, timesteps: Tensor, conditioning: Conditioning) -> Prepared:
        """Nothing is computed ahead."""
        count = len(timesteps)
        return (timesteps, conditioning.tokens.expand(count, -1, -1), conditioning.pooled.expand(count, -1))

    def predict_prepared(self, noisy: Tensor, source: Tensor, prepared: Prepared) -> Tensor:
        """See LatentModel."""
        timestep, tokens, pooled = prepared
        extras: dict[str, Any] = {}
        if self._config.class_embed_type:
            extras["class_labels"] = pooled
        if self._config.addition_embed_type:
            added = {"text_embeds": pooled[:, :-TIME_IDS].to(self.dtype), "time_ids": pooled[:, -TIME_IDS:]}
            extras["added_cond_kwargs"] = added
        # Only mini's network sees the source beside the noise, and so takes twice the channels.
        beside = self._config.in_channels > self.latent_channels
        sample = torch.cat([noisy, source], 1) if beside else noisy
        return self.unet(sample, timestep, tokens, return_dict=False, **extras)[0]


class PeerParts:
    """The stages of a frame in plain torch, eager or compiled; compiled once for each shape.

    Args:
        model: the networks.
        compile_mode: of torch.compile; None: eager.
    """

    def __init__(self, model: LatentModel, compile_mode: str | None) -> None:
        self.model = model
        self.encode = _compiled(self._encode, compile_mode)
        self.predict = _compiled(model.predict_prepared, compile_mode)
        self.step = _compiled(reference.denoise_step, compile_mode)
        self.decode = _compiled(self._decode, compile_mode)

    def _encode(self, pixels: Tensor, noise: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        folded = reference.pixels_to_input(
            pixels, fold=model.fold, mirror=False, bgr=False, dtype=model.dtype
        )
        source = model.encode(folded).contiguous(memory_format=torch.channels_last)
        return source, reference.add_noise(source, noise, start)

    def _decode(self, latents: Tensor) -> Tensor:
        return reference.output_to_pixels(self.model.decode(latents), fold=self.model.fold, bgr=False)


class PeerFrame:
    """Raw picture on the host in, stylised picture on the host out, one at a time.

    Args:
        parts: of the model.
        settings: of all frames.
        graphed: record everything between the two copies in a CUDA graph.
    """

    def __init__(self, parts: PeerParts, settings: Settings, *, graphed: bool) -> None:
        self._parts, self._inputs = parts, frame_inputs(parts.model, settings)
        # In memory of their own: compiled code takes an extra copy of what is not aligned.
        self._rows = [
            tuple(tensor[step : step + 1].clone() for tensor in self._inputs.prepared)
            for step in range(self._inputs.steps)
        ]
        device = parts.model.device
        gpu = device.type == "cuda"
        shape = (settings.size.height, settings.size.width, 3)
        self._host_in = torch.empty(shape, dtype=torch.uint8, pin_memory=gpu)
        self._host_out = torch.empty(shape, dtype=torch.uint8, pin_memory=gpu)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.work = DeviceWork(self._compute, device, graphed=graphed)

    def stylise(self, pixels: Pixels) -> Pixels:
        """One frame, uint8 [H, W, 3] of the settings' size."""
        self._host_in.numpy()[:] = pixels
        with self.work.on_stream():
            self._pixels.copy_(self._host_in, non_blocking=True)
            stylised = self.work.queue()
            self._host_out.copy_(stylised, non_blocking=True)
        self.work.wait()
        return self._host_out.numpy().copy()

    def _compute(self) -> Tensor:
        parts, inputs = self._parts, self._inputs
        source, latents = parts.encode(self._pixels, inputs.noise, inputs.start)
        for rows, coefficients in zip(self._rows, inputs.coefficients, strict=True):
            latents = parts.step(parts.predict(latents, source, rows), latents, coefficients)
        return parts.decode(latents)


class DeviceWork:
    """A function on the device, called as it is or recorded in a CUDA graph, with its time.

    Args:
        call: reads and writes tensors that outlive this object.
        device: where it runs.
        graphed: record it; on a CPU it never is.
    """

    def __init__(self, call: Callable[[], Tensor], device: torch.device, *, graphed: bool) -> None:
        self._device, self._call, self._graph = device, call, None
        if device.type == "cpu":
            return
        self.stream = Streams(device).compute
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        if graphed:
            self._graph = capture(self._keep, self.stream)

    def on_stream(self) -> Any:
        """A context in which what is queued goes before or after this work."""
        return contextlib.nullcontext() if self._device.type == "cpu" else torch.cuda.stream(self.stream)

    def queue(self) -> Tensor:
        """Start the work; its result is overwritten by the next call."""
        with self.on_stream():
            self._mark(0)
            if self._graph is None:
                self._keep()
            else:
                self._graph.replay()
            self._mark(1)
        return self._result

    def wait(self) -> None:
        """Until all that was queued on the stream is done."""
        if self._device.type != "cpu":
            self.stream.synchronize()

    def device_ms(self) -> float | None:
        """Time of the last finished call; None on a CPU, where the host's clock tells it."""
        return None if self._device.type == "cpu" else self._marks[0].elapsed_time(self._marks[1])

    def _keep(self) -> None:
        self._result = self._call()

    def _mark(self, index: int) -> None:
        if self._device.type != "cpu":
            self._marks[index].record()


def evaluation(
    model: LatentModel, predict: Callable[..., Tensor], settings: Settings, *, graphed: bool
) -> DeviceWork:
    """One evaluation of a model's denoiser at the first step of a frame, on latents of noise.

    Args:
        model: ours or theirs.
        predict: its `predict_prepared`, or that compiled.
        settings: size and step.
        graphed: record it in a CUDA graph.
    """
    inputs = frame_inputs(model, settings)
    rows = tuple(tensor[:1].contiguous() for tensor in inputs.prepared)
    # Two different fields: mini's network is given both.
    noisy, source = inputs.noise, inputs.noise.flip(-1).contiguous(memory_format=torch.channels_last)
    return DeviceWork(partial(predict, noisy, source, rows), model.device, graphed=graphed)


def _compiled(function: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    if mode is None:
        return function
    torch._dynamo.config.recompile_limit = COMPILATIONS_MAX
    return torch.compile(function, mode=mode, dynamic=False)


def _place(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    placed = module.to(device, dtype).to(memory_format=torch.channels_last)
    return placed.eval().requires_grad_(False)
