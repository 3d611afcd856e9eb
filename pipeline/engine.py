"""Raw picture in, stylised picture out, with at most two frames on their way at once.

    engine = Engine(model, settings)
    pending = engine.submit(pixels)      # returns at once on a GPU
    stylised = pending.result()          # waits for the frame

On a GPU a frame is two CUDA graphs in a row (cuda_runner.py), on a CPU it is computed in `submit` (runner.py). Knows
nothing of cameras, pacing or threads: calls come from one thread at a time.
"""

from collections import deque

from instantvision.pipeline.config import Settings
from instantvision.pipeline.cuda_runner import CudaRunner
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.model import LatentModel
from instantvision.pipeline.runner import IN_FLIGHT_MAX, CpuRunner, EngineOptions, Pending, Runner

__all__ = ["Engine", "EngineOptions", "Pending"]


class Engine:
    """Stylises frames with the settings of the moment.

    Args:
        model: stays on its device; the engine neither moves nor changes it.
        settings: of the first frame.
        options: how to use the device.

    Raises:
        UnknownPreset: the model has no such preset.
        EngineError: the device cannot run this size.
    """

    def __init__(self, model: LatentModel, settings: Settings, options: EngineOptions | None = None) -> None:
        self._runner: Runner | None = make_runner(model, settings, options or EngineOptions())
        self._in_flight: deque[Pending] = deque()
        self._settings = settings

    @property
    def settings(self) -> Settings:
        """What the next frame is made with."""
        return self._settings

    def update(self, settings: Settings) -> None:
        """Change the settings from the next `submit` on; frames on their way keep theirs.

        Preset, strength and seed are changed by writing a few small buffers. A new size or number of steps records a
        new graph on a GPU: the call waits for it, or, with `options.in_background`, frames keep their size meanwhile.

        Raises:
            UnknownPreset, EngineError: as the constructor; the settings before stay in use.
        """
        runner = self._open_runner()
        if settings != self._settings:
            runner.use(settings)
            self._settings = settings

    def submit(self, pixels: Pixels) -> Pending:
        """Start a frame; waits for the oldest if two are on their way.

        With `pipeline` throughput the result is the picture of a frame submitted before, see Pending.delay.

        Args:
            pixels: RGB uint8 [H, W, 3] of any size, fitted to `settings.size`; may be reused after the call.

        Raises:
            ValueError: `pixels` is not of that form.
            EngineError: the device failed.
        """
        runner = self._open_runner()
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            self._in_flight.popleft().wait()
        pending = runner.submit(pixels)
        self._in_flight.append(pending)
        return pending

    def stylise(self, pixels: Pixels) -> Pixels:
        """Submit a frame and wait for it; with throughput it is submitted again until it comes out."""
        pending, submitted = self.submit(pixels), 1
        while pending.delay is None or pending.delay >= submitted:
            pending, submitted = self.submit(pixels), submitted + 1
        return pending.result()

    def close(self) -> None:
        """Finish the frames on their way and release the device's memory; may be called twice."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        try:
            while self._in_flight:
                self._in_flight.popleft().wait()
        finally:
            runner.close()

    def _open_runner(self) -> Runner:
        if self._runner is None:
            raise EngineError("the engine is closed: make a new one")
        return self._runner


def make_runner(model: LatentModel, settings: Settings, options: EngineOptions) -> Runner:
    """The runner for the model's device."""
    if model.device.type == "cpu":
        return CpuRunner(model, settings)
    return CudaRunner(model, settings, options)
