"""The bench of the live loop: what it counts, and that a change of size goes through. No test looks at speed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import live
from instantvision.pipeline.config import LiveConfig, Settings, Size
from instantvision.pipeline.frames import Frame, Origin
from instantvision.pipeline.machine import EnergyCounter
from live import EnergyWatch, ScriptedSink, Sent, change_sizes, judge

SQUARE, WIDE = (64, 64, 3), (64, 96, 3)


def sent(*times_s, origin=Origin.STYLISED, shape=SQUARE):
    return [Sent(time_s, shape, origin) for time_s in times_s]


def test_late_pictures_are_those_over_one_and_a_half_ticks_after_the_one_before():
    pictures = [*sent(0.0, 0.5, origin=Origin.SLATE), *sent(1.0, 1.1, 1.24, 1.40, 1.5)]
    changes = judge(pictures, Size(64, 64), 10.0, [], [])
    assert (changes.pictures, changes.late, changes.slates, changes.wrong_sized) == (5, 1, 0, 0)
    assert changes.longest_ms == pytest.approx(160.0)


def test_slates_and_other_sizes_are_counted_once_the_effect_has_begun():
    pictures = [*sent(1.0), *sent(1.1, origin=Origin.SLATE), *sent(1.2, shape=WIDE), *sent(1.3)]
    changes = judge(pictures, Size(64, 64), 10.0, [], [])
    assert (changes.late, changes.slates, changes.wrong_sized) == (0, 1, 1)


def test_nothing_sent_is_nothing_wrong():
    assert judge(sent(1.0, origin=Origin.SLATE), Size(64, 64), 10.0, [], []).pictures == 0


def test_a_size_is_there_when_the_engine_gives_it_after_it_was_asked_for():
    seen = [(0.0, Size(64, 64)), (2.5, Size(96, 64)), (4.0, Size(64, 64))]
    changes = judge([], Size(64, 64), 10.0, [(2.0, "96x64"), (3.0, "64"), (5.0, "128")], seen)
    assert changes.seconds_to_size == [("96x64", 0.5), ("64", 1.0), ("128", None)]


def test_a_script_goes_by_stylised_pictures():
    done: list[int] = []
    sink = ScriptedSink({0: lambda: done.append(0), 2: lambda: done.append(2)}, now_s=lambda: 5.0)
    sink.open(Size(64, 64), 60.0)
    pixels = np.zeros(SQUARE, np.uint8)
    slate = Frame(pixels=pixels, index=0, captured_s=0.0, origin=Origin.SLATE)
    for frame, expected in [
        (slate, []),
        (replace(slate, origin=Origin.STYLISED), [0]),
        (slate, [0]),
        (replace(slate, origin=Origin.STYLISED), [0]),
        (replace(slate, origin=Origin.STYLISED), [0, 2]),
    ]:
        sink.send(frame)
        assert done == expected
    assert [picture.at_s for picture in sink.pictures] == [5.0] * 5


class Pending:
    device_ms, steps, delay = 1.0, 1, 0

    def __init__(self, size):
        self._size = size

    def wait(self):
        """There is nothing to wait for."""

    def result(self):
        return np.zeros((self._size.height, self._size.width, 3), np.uint8)


class Engine:
    """Paints black of the size that is asked for."""

    def __init__(self, settings):
        self.settings = settings

    def update(self, settings):
        self.settings = settings

    def submit(self, pixels):
        return Pending(self.settings.size)

    def close(self):
        """Nothing to do."""


def test_sizes_change_through_the_controls_while_the_output_keeps_its_own():
    config = LiveConfig(fps=100.0, duration_s=20.0)
    changes = change_sizes(Engine, Settings(), ("64", "96", "64x112", "64"), 8, config)
    assert changes.output == "64x64"
    assert changes.wrong_sized == 0
    assert [text for text, _ in changes.seconds_to_size] == ["96", "64x112", "64"]
    assert all(seconds is not None for _, seconds in changes.seconds_to_size)
    assert changes.pictures >= 32


def test_energy_is_of_the_time_with_pictures():
    watch = EnergyWatch(EnergyCounter(torch.device("cpu")))
    watch.readings += [(10.0, 100.0, 60), (11.0, 140.0, 120), (20.0, 500.0, 660)]
    assert watch.to_json() == {"power_w": 40.0, "joules_per_frame": pytest.approx(400 / 600)}
    watch.readings[-1] = (20.0, None, 660)
    assert watch.to_json()["no_power_because"] == "the device is no NVIDIA GPU"
    assert live.EnergyWatch(watch.counter).to_json()["power_w"] is None
