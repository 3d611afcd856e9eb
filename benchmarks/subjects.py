"""The models that are compared, each as ours and as the weights that make theirs, and the work they are given."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.checkpoint import load_into, load_tensors, unpack
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.latent_diffusion import LatentDiffusion, random_networks, random_prompt
from instantvision.pipeline.mini import (
    AUTOENCODER_FILE,
    DENOISER_FILE,
    MANIFEST_FILE,
    WEIGHTS_FOLDER,
    Mini,
)
from instantvision.pipeline.mini_denoiser import MINI_UNET, MiniDenoiser
from instantvision.pipeline.model import LatentModel
from instantvision.pipeline.published import SD_TURBO, SDXL, DiffusionConfig
from peer_models import TinyCodec, Weights

# Of all random weights; any number would do.
SEED = 7


@dataclass(frozen=True)
class Subject:
    """One model on both sides.

    Args:
        ours: with our kernels.
        weights: of theirs.
        fp8: makes ours once more, multiplying in e4m3 what it can.
    """

    ours: LatentModel
    weights: Weights
    fp8: Callable[[], LatentModel]


@dataclass(frozen=True)
class Work:
    """What is measured.

    Args:
        subject: name in SUBJECTS.
        kind: a whole frame from bytes to bytes on the host, or one evaluation of the denoiser on the device.
        side: of the square picture in pixels.
        steps: evaluations a frame.
        methods: which are timed; all that are needed for the comparison of results run in any case.
    """

    subject: str
    kind: Literal["frame", "evaluation"]
    side: int
    steps: int = 1
    methods: tuple[str, ...] = ("ours", "ours fp8", "eager", "compiled")

    def __str__(self) -> str:
        what = f"frame, {self.steps} step{'s' * (self.steps > 1)}" if self.kind == "frame" else "evaluation"
        return f"{self.subject} {what}, {self.side}x{self.side}"

    @property
    def settings(self) -> Settings:
        """The engine's."""
        return Settings(size=Size(self.side, self.side), steps=self.steps, strength=1.0, temporal="noise")


Make = Callable[[torch.device, torch.dtype], Subject]


def mini(device: torch.device, dtype: torch.dtype) -> Subject:
    """The embedded model with its trained weights."""
    manifest = json.loads((WEIGHTS_FOLDER / MANIFEST_FILE).read_text(encoding="utf-8"))
    styles, hashes = tuple(manifest["styles"]), manifest["sha256"]

    def codec() -> Autoencoder:
        autoencoder = Autoencoder()
        load_into(
            autoencoder, unpack(load_tensors(WEIGHTS_FOLDER / AUTOENCODER_FILE, hashes[AUTOENCODER_FILE]))
        )
        return autoencoder

    denoiser = MiniDenoiser(len(styles))
    load_into(denoiser, unpack(load_tensors(WEIGHTS_FOLDER / DENOISER_FILE, hashes[DENOISER_FILE])))
    weights = Weights(MINI_UNET, _copies(denoiser.unet), codec)
    ours = Mini(codec(), denoiser, styles, device, dtype)
    return Subject(ours, weights, lambda: Mini(codec(), denoiser, styles, device, dtype, fp8=True))


def diffusion(config: DiffusionConfig) -> Make:
    """A model of a published shape with random weights."""

    def make(device: torch.device, dtype: torch.dtype) -> Subject:
        unet, autoencoder = random_networks(config, SEED, device)
        unet_weights, codec_weights = _copies(unet), _copies(autoencoder)
        weights = Weights(config.unet, unet_weights, lambda: TinyCodec(config.autoencoder, codec_weights))
        prompt = random_prompt(config, SEED)
        parts = config, unet, autoencoder, prompt, device, dtype
        return Subject(LatentDiffusion(*parts), weights, lambda: LatentDiffusion(*parts, fp8=True))

    return make


def _copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters on the host, out of the way of every figure about device memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


SUBJECTS: Mapping[str, Make] = {"mini": mini, "sd-turbo": diffusion(SD_TURBO), "sdxl": diffusion(SDXL)}

SWEEP_SIDES = (512, 768, 1024, 1280, 1536)
GROUPS: Mapping[str, tuple[Work, ...]] = {
    "mini": (Work("mini", "frame", 1024, 8), Work("mini", "evaluation", 1024)),
    "sd-turbo": (Work("sd-turbo", "frame", 512, 1), Work("sd-turbo", "evaluation", 512)),
    "sdxl": (Work("sdxl", "evaluation", 1024),),
    "sweep": tuple(Work("mini", "frame", side, 8, ("ours",)) for side in SWEEP_SIDES),
    "sweep-compiled": tuple(Work("mini", "frame", side, 8, ("ours", "compiled")) for side in SWEEP_SIDES),
}
