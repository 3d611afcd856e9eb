"""Hours of output in virtual time: memory stays, latency stays, every tick has its picture."""

import gc
import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from instantvision.pipeline.config import LiveConfig, Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.frames import Frame, Latest, Origin
from instantvision.pipeline.meter import LiveStats, Meter, Surroundings
from instantvision.pipeline.pacing import Finished
from instantvision.pipeline.playout import Playout

SIZE = Size(64, 64)
WORK_S = 0.010


class World:
    """A camera of 59.94 Hz and an engine of 10 ms, both moved on by whoever waits for the next tick; also the sink."""

    def __init__(self) -> None:
        self.name = "world"
        self.time_s, self._number = 1000.0, 0
        self.finished: Latest[Finished] = Latest()
        self.meter = Meter()
        self.sent: Counter[Origin] = Counter()
        self.reasons = 0
        self.outage = range(0)
        self.slow_sends: dict[int, float] = {}

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        self.time_s += max(timeout_s, 0.0)
        while (captured_s := 1000.0 + self._number / 59.94) + WORK_S <= self.time_s:
            if self._number not in self.outage:
                self._finish(captured_s)
            self._number += 1
        return stop.is_set()

    def _finish(self, captured_s: float) -> None:
        pixels = np.empty((SIZE.height, SIZE.width, 3), np.uint8)
        frame = Frame(pixels=pixels, index=self._number, captured_s=captured_s, origin=Origin.STYLISED)
        self.meter.captured(captured_s)
        self.meter.finished(captured_s + WORK_S, call_ms=WORK_S * 1e3, device_ms=WORK_S * 1e3)
        self.finished.put(Finished(frame=frame, finished_s=captured_s + WORK_S))

    def open(self, size: Size, fps: float) -> None:
        """Always open."""

    def send(self, frame: Frame) -> None:
        assert frame.pixels.shape == (SIZE.height, SIZE.width, 3)
        self.sent[frame.origin] += 1
        self.time_s += self.slow_sends.get(self.sent.total(), 0.0)

    def close(self) -> None:
        """Never closed."""

    def why(self) -> str:
        self.reasons += 1
        # A new text each time, as from an error with a number in it.
        return f"Waiting, for the {self.reasons}th time"

    def stats(self) -> LiveStats:
        around = Surroundings(
            source="world",
            sink="world",
            size=SIZE,
            settings=None,
            status="",
            dropped_capture=0,
            dropped_engine=self.finished.dropped,
        )
        return self.meter.stats(self.time_s, around)

    def run(self, seconds: float, stale_s: float = 2.0) -> LiveStats:
        config = LiveConfig(fps=60.0, duration_s=seconds, stale_s=stale_s)
        playout = Playout(self, SIZE, config, self.meter, self, Control(Settings()))
        playout.run(self.finished, threading.Event(), self.why, self.stats)
        return self.stats()


def test_ten_minutes_repeat_next_to_nothing_and_do_not_lag() -> None:
    stats = World().run(600)
    # The camera's 59.94 Hz are followed: 36 of 36000 ticks fewer.
    assert stats.ticks == pytest.approx(600 * 59.94, abs=10)
    assert stats.repeated_fraction < 0.005
    assert (stats.missed, stats.held) == (0, 0)
    assert stats.recent.latency_ms.p99 <= stats.latency_ms.p50 * 1.02
    assert stats.latency_ms.p50 < WORK_S * 1e3 + 1e3 / 60 / 4


def test_memory_does_not_grow() -> None:
    world = World()
    gc.collect()
    tracemalloc.start()
    try:
        # Fills every window.
        world.run(30)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        world.run(120)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One float kept per tick would be 170 kB; a picture more in the slot, which either moment may have, is 12 kB.
    assert after - before < 24_000


def test_a_slow_sink_is_caught_up_with() -> None:
    world = World()
    world.outage = range(10_000)
    world.slow_sends = {100: 0.075}
    stats = world.run(5)
    # 75 ms are 4.5 periods: three of the four ticks they delay are served more than one period late, none is lost.
    assert (stats.ticks, stats.missed) == (300, 3)


def test_ticks_of_a_suspended_machine_are_left_out() -> None:
    world = World()
    world.outage = range(10_000)
    world.slow_sends = {100: 2.01}
    stats = world.run(5)
    # 2.01 s are 120.6 periods: 120 ticks fell due meanwhile.
    assert (stats.ticks, stats.missed) == (300 - 120, 120)


def test_outages_bring_the_slate_and_it_goes_again() -> None:
    world = World()
    world.outage = range(600, 1200)
    stats = world.run(30)
    # Ten seconds without pictures; the first two still show the last one.
    assert world.sent[Origin.SLATE] == stats.slate == pytest.approx(8 * 60, abs=10)
    assert world.sent.total() == stats.ticks
    assert stats.fresh == pytest.approx(1200, abs=12)
