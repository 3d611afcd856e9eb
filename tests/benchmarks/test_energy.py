"""The pace of a stream and what is counted of it, on a clock that the test moves."""

from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest

from energy import Figures, Turn, noisy, paced, table


class Time:
    """A clock that waiting and working move on."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def wait(self, seconds):
        self.now_s += seconds


class Stub:
    """An engine whose frames take some ms; the counter gives 100 W all the time."""

    def __init__(self, time, frame_ms):
        self.time, self.frame_ms = time, frame_ms

    def submit(self, picture):
        def result():
            self.time.now_s += self.frame_ms / 1e3

        return SimpleNamespace(result=result, steps=3, device_ms=self.frame_ms / 2)


def turn(frame_ms, ticks=60):
    time = Time()
    counter = SimpleNamespace(read_j=lambda: 100 * time.now_s)
    engine = None if frame_ms is None else Stub(time, frame_ms)
    return paced(engine, repeat(None), ticks, 60.0, counter, clock=time, wait=time.wait)


def test_frames_come_at_the_pace_of_the_camera():
    done = turn(4.0)
    assert (done.frames, done.steps, done.late) == (60, 180, 0)
    assert done.elapsed_s == pytest.approx(1)
    assert done.busy_s == pytest.approx(0.12)
    assert done.energy_j == pytest.approx(100)


def test_an_engine_that_is_too_slow_is_late_and_takes_longer():
    done = turn(20.0)
    assert done.late == 59
    assert done.elapsed_s == pytest.approx(1.2)


def test_nothing_to_do_takes_as_long():
    done = turn(None)
    assert (done.frames, done.busy_s, done.elapsed_s) == (0, 0, pytest.approx(1))


def test_turns_are_put_together():
    figures = Figures.of("warm", "moving", [turn(4.0), turn(8.0)])
    assert figures.watts == pytest.approx(100)
    assert figures.joules_per_frame == pytest.approx(100 / 60)
    assert figures.busy == pytest.approx(0.18)
    assert figures.mean_steps == 3
    assert "| warm | moving | 100.0 | 1.67 | 18.0% | 3.00 | 0.0% |" in table([figures])


def test_without_a_counter_there_is_no_power():
    silent = Turn(frames=6, steps=6, late=0, elapsed_s=0.1, busy_s=0.01, energy_j=None)
    figures = Figures.of("warm", "still", [silent])
    assert (figures.watts, figures.joules_per_frame) == (None, None)
    assert "| warm | still |  |  | 10.0% |" in table([figures])


def test_a_still_scene_has_a_cameras_noise():
    grey = np.full((32, 32, 3), 128, np.uint8)
    pictures = noisy(grey)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert np.std(pictures[0]) == pytest.approx(3, abs=0.3)
