"""Taking turns: who is called when, what is counted. No test looks at speed."""

import itertools

import pytest
import torch

from instantvision.pipeline.machine import EnergyCounter, GpuState
from turns import PASSES, ROUNDS_MIN, Entrant, Plan, take_turns

NO_COUNTER = EnergyCounter(torch.device("cpu"))


class Bystander:
    """Two entrants that write down every call on a clock of their own: `slow` takes 4 s and `fast` 1 s."""

    def __init__(self):
        self.time_s, self.calls = 0.0, []

    def entrant(self, name, seconds):
        def once():
            self.time_s += seconds
            self.calls.append(name)
            return seconds * 500

        def burst(frames):
            self.time_s += frames * seconds / 2
            self.calls.append(f"{name} x{frames}")

        return Entrant(name, once, burst)

    def run(self, plan, counter=NO_COUNTER):
        entrants = [self.entrant("slow", 4.0), self.entrant("fast", 1.0)]
        return take_turns(entrants, plan, counter, lambda: self.time_s)


def test_every_turn_comes_after_all_others():
    seen = Bystander()
    figures = seen.run(Plan(calls=2, samples=6, seconds=1000, burst_s=0))
    single = [name for name, _ in itertools.groupby(call for call in seen.calls if "x" not in call)]
    assert single == ["slow", "fast"] * 3
    # The first call of each turn is not counted.
    assert seen.calls.count("slow") == 3 * (1 + 2)
    assert [figures[name].samples for name in ("slow", "fast")] == [6, 6]


def test_times_are_in_ms_and_of_both_clocks():
    figures = Bystander().run(Plan(calls=2, samples=4, seconds=1000, burst_s=0))
    assert (figures["slow"].host_ms.median, figures["slow"].device_ms.median) == (4000, 2000)
    assert figures["fast"].fps == 2


def test_ends_in_time_but_not_before_the_fewest_rounds():
    seen = Bystander()
    figures = seen.run(Plan(calls=1, samples=1000, seconds=1, burst_s=0))
    assert figures["fast"].samples == ROUNDS_MIN


def test_bursts_are_as_long_as_asked_for_and_go_round():
    seen = Bystander()
    seen.run(Plan(calls=1, samples=1, seconds=1000, burst_s=10))
    assert [call for call in seen.calls if "x" in call] == ["slow x3", "fast x10"] * PASSES


def test_energy_is_shared_among_the_frames():
    seen = Bystander()

    class Counter:
        reason = None

        def read_j(self):
            return 300.0 * seen.time_s

        def state(self):
            return GpuState(sm_clock_mhz=1980, memory_clock_mhz=2619, temperature_c=50, power_limit_w=700)

    figures = seen.run(Plan(calls=1, samples=1, seconds=1000, burst_s=8), Counter())
    assert figures["slow"].power_w == pytest.approx(300)
    assert figures["slow"].joules_per_frame == pytest.approx(600)
    assert figures["fast"].gpu.temperature_c == 50


def test_a_reason_stands_for_energy_that_is_not_known():
    figures = Bystander().run(Plan(calls=1, samples=1, seconds=1000, burst_s=8))
    assert figures["slow"].power_w is None
    assert figures["slow"].no_power_because == "the device is no NVIDIA GPU"
