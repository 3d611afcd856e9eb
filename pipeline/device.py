"""Where the model runs, chosen once, with the reason kept."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from instantvision.pipeline.errors import EngineError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceChoice:
    """A device, the number format of its arithmetic, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"device: {self.device} in {str(self.dtype).removeprefix('torch.')}, because {self.reason}"


def placed(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The same module as the frame path wants it: there, in that type, in channels_last, without gradients."""
    there = module.to(device, dtype).to(memory_format=torch.channels_last)
    return there.eval().requires_grad_(False)


def choose_device(wanted: str = "auto") -> DeviceChoice:
    """The device to run on; the choice is logged.

    Args:
        wanted: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        EngineError: a GPU is wanted and there is none, or no such device exists.
    """
    choice = _choose(wanted)
    log.info("%s", choice)
    return choice


def _choose(wanted: str) -> DeviceChoice:
    if wanted == "cpu":
        return _cpu("it was asked for")
    if missing := _why_no_gpu():
        if wanted == "auto":
            return _cpu(missing)
        raise EngineError(f"device {wanted} cannot be used, because {missing}: use --device cpu")
    return _gpu("cuda" if wanted == "auto" else wanted)


def _cpu(reason: str) -> DeviceChoice:
    return DeviceChoice(torch.device("cpu"), torch.float32, reason)


def _gpu(wanted: str) -> DeviceChoice:
    count = torch.cuda.device_count()
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal() or int(index or 0) >= count:
        raise EngineError(
            f"device {wanted} does not exist, there are cpu and cuda:0 to cuda:{count - 1}: use cuda"
        )
    device = torch.device("cuda", int(index or 0))
    # The first GPUs that calculate in bfloat16 have compute capability 8; float16 serves before.
    fast = torch.cuda.get_device_capability(device)[0] >= 8
    return DeviceChoice(
        device, torch.bfloat16 if fast else torch.float16, f"it is {torch.cuda.get_device_name(device)}"
    )


def _why_no_gpu() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU or driver was found"
    return None
