"""What the engine does on each kind of device: the contract, and the plain way of a CPU.

Knows nothing of how many frames are on their way: the engine sees to that.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from instantvision.pipeline.config import Settings
from instantvision.pipeline.errors import ConfigError, EngineError
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frame_inputs import Belt, Course, FrameInputs, LatentMemory
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.model import LatentModel, ReusableModel
from instantvision.pipeline.temporal import Plan, Planner, Work
from instantvision.pipeline.transition import Look, apart

# Looks further apart than this share are a cut, which gets all steps at once.
LOOK_CUT = 0.5
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
        steps: evaluations of the denoiser.
        delay: how many frames ago the picture went in; None if no picture comes out.
    """

    def __init__(
        self, finish: Callable[[], tuple[Pixels, float]], steps: int = 0, delay: int | None = 0
    ) -> None:
        self._finish: Callable[[], tuple[Pixels, float]] | None = finish
        self.delay = delay
        """The result shows what was submitted so many frames before this: 0 but with throughput, where it is one less
        than the steps, or None while the first frames are on their way and there is no result."""
        self.steps = steps
        """Evaluations of the denoiser for this frame; 0 for one that shows the picture before again."""
        self._pixels: Pixels | None = None
        self.device_ms: float | None = None
        """Time the device spent on this frame, after `result`; on a CPU the time `submit` took."""

    def wait(self) -> None:
        """Wait until the device is done, whether or not a picture comes out.

        Raises:
            EngineError: the device failed.
        """
        if self._finish is not None:
            pixels, self.device_ms = self._finish()
            self._pixels = None if self.delay is None else pixels
            # Lets go of the buffers.
            self._finish = None

    def result(self) -> Pixels:
        """Wait for the frame; the same array at every call.

        Returns:
            RGB uint8 [size.height, size.width, 3], the caller's own.

        Raises:
            EngineError: the device failed, or `delay` is None.
        """
        self.wait()
        if self._pixels is None:
            raise EngineError("no picture is finished yet: submit as many frames as there are steps")
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


class Desk:
    """Which frames are painted with what under the present settings; the part of a runner that is the same everywhere.

    Raises:
        UnknownPreset: the model has no such preset.
        ConfigError: the settings want deep features reused, and the model cannot leave out its deep part.
    """

    def __init__(self, model: LatentModel, settings: Settings) -> None:
        if settings.temporal == "full" and not isinstance(model, ReusableModel):
            raise ConfigError(
                f"temporal is full, but {type(model).__name__} has no shallow part to evaluate alone: "
                "pass --temporal warm"
            )
        self.course = Course(model, settings)
        self.fresh_noise = settings.temporal == "off"
        remembers = settings.temporal in ("warm", "full")
        self._planner = Planner(settings, self.course.steps) if remembers else None
        self._settings = settings
        self._painted: Pending | None = None
        self.throughput = settings.pipeline == "throughput" and self.course.steps > 0
        """Whether several frames are on their way at once, each at another step."""

    @property
    def remembers(self) -> bool:
        """Whether frames take over latents from the one before."""
        return self._planner is not None and bool(self.course.steps)

    def fade_to(self, settings: Settings) -> bool:
        """Go on with a look that is not far from the present one, as the next moment's in a cross-fade.

        What the frames before have left stays of use, and the next frame paints all of the picture in a few steps.

        Returns:
            Whether that is what the settings ask for; otherwise nothing is changed, and they need a new desk.

        Raises:
            UnknownPreset: the model has no such preset.
        """
        before = self._settings
        same = replace(before, mix=settings.mix, strength=settings.strength) == settings
        if self._planner is None or not self.remembers or not same or not settings.strength:
            return False
        if apart(_look(before), _look(settings)) > LOOK_CUT:
            return False
        self.course, self._settings = self.course.with_look(settings), settings
        self._planner.change_look()
        return True

    def plan(self, pixels: Pixels) -> Plan:
        """The work for a picture of the model's size."""
        return self._planner.plan(pixels) if self._planner else Plan(Work.FULL)

    def painted(self, pending: Pending) -> Pending:
        """Remember the frame painted last."""
        self._painted = pending
        return pending

    def repeat(self) -> Pending:
        """The frame painted last once more, without any work."""
        painted = self._painted
        assert painted is not None, "the first frame is always painted"  # noqa: S101
        return Pending(lambda: (painted.result().copy(), 0.0))

    def measured(self, plan: Plan, numbers: Sequence[float]) -> None:
        """Hand the numbers of a finished frame on to the planning of those to come."""
        if self._planner:
            self._planner.measured(plan, numbers)


def _look(settings: Settings) -> Look:
    return Look(mix=settings.mix, strength=settings.strength)


class CpuRunner:
    """Computes each frame while it is submitted."""

    def __init__(self, model: LatentModel, settings: Settings) -> None:
        self._model, self._frame_pass = model, FramePass(model)
        self._belt: Belt | None = None
        self._static: FrameInputs | None = None
        self._begin(settings)

    @torch.inference_mode()
    def use(self, settings: Settings) -> None:
        if self._desk.fade_to(settings):
            self._settings = settings
        else:
            self._begin(settings)

    @torch.inference_mode()
    def _begin(self, settings: Settings) -> None:
        self._desk = Desk(self._model, settings)
        self._memory = LatentMemory.empty(self._model, settings) if self._desk.remembers else None
        self._load_belt(settings)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._settings = settings

    @torch.inference_mode()
    def submit(self, pixels: Pixels) -> Pending:
        started_s = time.perf_counter()
        size = self._settings.size
        # Always into memory of our own: the camera's may be read-only, which torch warns of.
        fitted = fit(pixels, size, self._settings.fit, out=np.empty((size.height, size.width, 3), np.uint8))
        desk, plan = self._desk, self._desk.plan(fitted)
        if plan.work is Work.REPEAT:
            return desk.repeat()
        inputs = desk.course.inputs(plan)
        delay: int | None = 0
        if self._belt and self._static:
            delay, inputs = self._belt.enter(inputs, self._static), self._static
        if desk.fresh_noise:
            inputs.freshen(self._generator)
        stylised = self._frame_pass(
            torch.from_numpy(fitted),
            inputs,
            mirror=self._settings.mirror,
            memory=self._memory,
            warm=plan.warm,
            belt=self._belt,
        )
        if self._memory:
            desk.measured(plan, self._memory.numbers.tolist())
        device_ms = (time.perf_counter() - started_s) * 1e3
        return desk.painted(Pending(lambda: (stylised.numpy(), device_ms), inputs.steps, delay))

    def _load_belt(self, settings: Settings) -> None:
        """Let the frames on their way go on, if those to come are of their form."""
        full, shapes = self._desk.course.full, self._static.shapes if self._static else None
        if not self._desk.throughput:
            self._belt, self._static = None, None
        elif full.shapes != shapes:
            self._belt, self._static = Belt(self._model, settings, full.steps), full.clone()

    def close(self) -> None:
        """There is nothing to release: memory goes with the runner."""
