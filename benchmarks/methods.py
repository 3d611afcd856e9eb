"""Ours and theirs, built for one work: how each is called, what it gives, and what that took to build."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instantvision.pipeline.bench import WARM_UPS, random_pictures
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.model import LatentModel
from peer_models import DeviceWork, PeerFrame, PeerParts, evaluation
from subjects import Work
from turns import Entrant

# An alarm that comes while Python cleans up is lost; the next one is not.
ALARM_AGAIN_S = 10.0


@dataclass(frozen=True)
class Method:
    """One way to do a work, ready to be timed.

    Args:
        entrant: for `take_turns`.
        output: the result that is compared, float32 on the host: the prediction, or a frame's bytes less 127.5.
        close: gives the memory back.
    """

    entrant: Entrant
    output: Callable[[], Tensor]
    close: Callable[[], None]


def ours(model: LatentModel, work: Work, name: str = "ours") -> Method:
    """The engine for a frame; for an evaluation the model's own function in a CUDA graph."""
    if work.kind == "frame":
        return _engine_method(name, Engine(model, work.settings), work)
    return _work_method(name, evaluation(model, model.predict_prepared, work.settings, graphed=True))


def theirs(name: str, parts: PeerParts, work: Work) -> Method:
    """diffusers' classes: `eager` as they are, any other name in a CUDA graph."""
    graphed = name != "eager"
    if work.kind == "frame":
        return _frame_method(name, PeerFrame(parts, work.settings, graphed=graphed), work)
    return _work_method(name, evaluation(parts.model, parts.predict, work.settings, graphed=graphed))


def _engine_method(name: str, engine: Engine, work: Work) -> Method:
    pictures = random_pictures(work.side, work.side)

    def once() -> float:
        pending = engine.submit(pictures[0])
        pending.result()
        return pending.device_ms or 0.0

    def burst(frames: int) -> None:
        pending = engine.submit(pictures[0])
        for index in range(1, frames):
            following = engine.submit(pictures[index % len(pictures)])
            pending.result()
            pending = following
        pending.result()

    for _ in range(WARM_UPS):
        once()
    return Method(Entrant(name, once, burst), lambda: _centred(engine.stylise(pictures[0])), engine.close)


def _frame_method(name: str, frame: PeerFrame, work: Work) -> Method:
    pictures = random_pictures(work.side, work.side)

    def once() -> float:
        started_s = time.perf_counter()
        frame.stylise(pictures[0])
        host_ms = (time.perf_counter() - started_s) * 1e3
        device_ms = frame.work.device_ms()
        return host_ms if device_ms is None else device_ms

    def burst(frames: int) -> None:
        for index in range(frames):
            frame.stylise(pictures[index % len(pictures)])

    for _ in range(WARM_UPS):
        once()
    return Method(Entrant(name, once, burst), lambda: _centred(frame.stylise(pictures[0])), _nothing)


def _work_method(name: str, work: DeviceWork) -> Method:
    def once() -> float:
        started_s = time.perf_counter()
        work.queue()
        work.wait()
        host_ms = (time.perf_counter() - started_s) * 1e3
        device_ms = work.device_ms()
        return host_ms if device_ms is None else device_ms

    def burst(frames: int) -> None:
        for _ in range(frames):
            work.queue()
        work.wait()

    def output() -> Tensor:
        result = work.queue()
        work.wait()
        return result.float().cpu()

    for _ in range(WARM_UPS):
        once()
    return Method(Entrant(name, once, burst), output, _nothing)


def _centred(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).float() - 127.5


def _nothing() -> None:
    """Memory goes with the object."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what varies in the expected result."""
    return float((found - expected).norm() / (expected - expected.mean()).norm())


class OutOfTime(BaseException):
    """Raised by `time_limit`; no Exception, so that a compiler's own handlers let it through."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds. In the main thread of a POSIX system only."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), ALARM_AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class MemoryMeter:
    """How much device memory something takes from the driver, in MiB; on a CPU nothing is known.

    Args:
        device: of torch. What is there when the meter is made does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._reserved()

    def held_mb(self) -> float | None:
        """Taken since the beginning and not given back."""
        return None if self._before is None else ((self._reserved() or 0) - self._before) / 2**20

    def peak_mb(self, call: Callable[[], object]) -> float | None:
        """Taken since the beginning at the highest point of one call: what building took for a while is left out."""
        if self._before is None:
            return None
        self._reserved()
        torch.cuda.reset_peak_memory_stats(self._device)
        call()
        return (torch.cuda.max_memory_reserved(self._device) - self._before) / 2**20

    def _reserved(self) -> int | None:
        if self._device.type == "cpu":
            return None
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self._device)
