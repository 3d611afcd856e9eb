"""What the engine does on each kind of device: the contract, and the plain way of a CPU.

Knows nothing of how many frames are on their way: the engine sees to that.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from instantvision.pipeline.config import Settings
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frame_pass import FramePass, frame_inputs
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.model import LatentModel

# One frame is computed while its neighbours are uploaded and downloaded; more would only add delay.
IN_FLIGHT_MAX = 2


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the engine uses its device; no setting of the picture.

    Args:
        graphs_kept: recorded CUDA graphs, each with its memory, kept for a return to their size when another is
            recorded; at least 1, the one in use.
        in_background: record a graph for a new size while the one in use goes on serving; until it is ready, frames
            keep the size they had. Otherwise the change of settings waits for it.
    """

    graphs_kept: int = 2
    in_background: bool = False


class Pending:
    """A frame on its way.

    Args:
        finish: waits for the frame and gives its pixels and device time in ms.
    """

    def __init__(self, finish: Callable[[], tuple[Pixels, float]]) -> None:
        self._finish = finish
        self._pixels: Pixels | None = None
        self.device_ms: float | None = None
        """Time the device spent on this frame, after `result`; on a CPU the time `submit` took."""

    def result(self) -> Pixels:
        """Wait for the frame; the same array at every call.

        Returns:
            RGB uint8 [size.height, size.width, 3], the caller's own.

        Raises:
            EngineError: the device failed.
        """
        if self._pixels is None:
            self._pixels, self.device_ms = self._finish()
            # Lets go of the buffers.
            del self._finish
        return self._pixels


class Runner(Protocol):
    """What the engine does differently from device to device."""

    def use(self, settings: Settings) -> None:
        """Make the following frames with these settings; what it needs is made now.

        Raises:
            UnknownPreset, EngineError: and the settings before stay in use.
        """

    def submit(self, pixels: Pixels) -> Pending:
        """Start a frame; at most IN_FLIGHT_MAX are unfinished at any time."""

    def close(self) -> None:
        """Release the device's memory; no frame is on its way."""


class CpuRunner:
    """Computes each frame while it is submitted."""

    def __init__(self, model: LatentModel, settings: Settings) -> None:
        self._model, self._frame_pass = model, FramePass(model)
        self.use(settings)

    @torch.inference_mode()
    def use(self, settings: Settings) -> None:
        self._inputs = frame_inputs(self._model, settings)
        self._settings = settings

    @torch.inference_mode()
    def submit(self, pixels: Pixels) -> Pending:
        started_s = time.perf_counter()
        size = self._settings.size
        # Always into memory of our own: the camera's may be read-only, which torch warns of.
        fitted = fit(pixels, size, self._settings.fit, out=np.empty((size.height, size.width, 3), np.uint8))
        stylised = self._frame_pass(torch.from_numpy(fitted), self._inputs, mirror=self._settings.mirror)
        device_ms = (time.perf_counter() - started_s) * 1e3
        return Pending(lambda: (stylised.numpy(), device_ms))

    def close(self) -> None:
        """There is nothing to release: memory goes with the runner."""
