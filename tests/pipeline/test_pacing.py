"""The beat of the output, in virtual time only."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instantvision.pipeline.frames import Frame, Origin
from instantvision.pipeline.pacing import RESYNC_S, SLEW, Finished, Pacer, PhaseLock, Shown, Ticks

START_S = 100.0
FPS = 60.0
PERIOD_S = 1 / FPS
PIXELS = np.zeros((2, 2, 3), np.uint8)


def finished(at_s: float, origin: Origin = Origin.STYLISED, captured_s: float = 0.0) -> Finished:
    return Finished(
        frame=Frame(pixels=PIXELS, index=0, captured_s=captured_s, origin=origin), finished_s=at_s
    )


# Ticks


@given(st.lists(st.floats(0, RESYNC_S), max_size=50))
def test_late_ticks_do_not_move_the_later_ones(lateness_s: list[float]) -> None:
    ticks = Ticks(FPS, START_S)
    now_s = START_S
    for number, late_s in enumerate(lateness_s):
        assert ticks.due_s == pytest.approx(START_S + number / FPS, abs=1e-9)
        # At most half a second behind the tick that follows, so that none is left out.
        now_s = max(now_s, min(ticks.due_s + late_s, ticks.due_s + PERIOD_S + RESYNC_S))
        assert ticks.advance(now_s) == 0


def test_a_long_stop_leaves_ticks_out_and_stays_on_the_grid() -> None:
    ticks = Ticks(FPS, START_S)
    now_s = START_S + 10.001

    skipped = ticks.advance(now_s)

    assert skipped == 600
    assert now_s <= ticks.due_s < now_s + PERIOD_S
    assert math.remainder(ticks.due_s - START_S, PERIOD_S) == pytest.approx(0, abs=1e-9)


def test_a_shift_moves_all_later_ticks() -> None:
    ticks = Ticks(FPS, START_S)

    ticks.advance(START_S, shift_s=0.002)
    assert ticks.due_s == pytest.approx(START_S + PERIOD_S + 0.002)

    ticks.advance(START_S + PERIOD_S)
    assert ticks.due_s == pytest.approx(START_S + 2 * PERIOD_S + 0.002)


# The lock in a simulated run: a source, one engine, ticks


@dataclass(frozen=True)
class Outcome:
    shown: Counter[Shown]
    latency_s: list[float]
    intervals_s: list[float]

    @property
    def repeated(self) -> float:
        return self.shown[Shown.REPEATED] / max(self.shown.total() - self.shown[Shown.SLATE], 1)


def arrivals(source_fps: float, phase_s: float, work_s: Callable[[], float]) -> Iterator[tuple[float, float]]:
    """When each picture is captured and when it is finished, by an engine that makes one after the other."""
    free_s, number = 0.0, 0
    while True:
        captured_s = START_S + phase_s + number / source_fps
        free_s = max(captured_s, free_s) + work_s()
        yield captured_s, free_s
        number += 1


def simulate(
    source_fps: float, phase_s: float, work_s: Callable[[], float], seconds: float = 30, *, lock: bool = True
) -> Outcome:
    noise = np.random.default_rng(1)
    pacer = Pacer(FPS, 2.0, START_S)
    if not lock:
        pacer._lock.COHERENT = 2.0
    pictures = arrivals(source_fps, phase_s, work_s)
    coming = next(pictures)
    outcome = Outcome(Counter(), [], [])
    while (due_s := pacer.ticks.due_s) < START_S + seconds:
        # A thread wakes up a little late.
        now_s, newest = due_s + abs(noise.normal(0, 2e-4)), None
        while coming[1] <= now_s:
            newest, coming = coming, next(pictures)
        if newest is not None:
            outcome.latency_s.append(now_s - newest[0])
        picture = finished(newest[1], captured_s=newest[0]) if newest else None
        shown, _ = pacer.choose(now_s, picture, expected=source_fps > 59)
        outcome.shown[shown] += 1
        pacer.advance(now_s)
        outcome.intervals_s.append(pacer.ticks.due_s - due_s)
    return outcome


def gaussian(mean_s: float, spread_s: float, seed: int = 0) -> Callable[[], float]:
    dice = np.random.default_rng(seed)
    return lambda: max(0.001, dice.normal(mean_s, spread_s))


def with_hiccups(mean_s: float, share: float, extra_s: float) -> Callable[[], float]:
    dice = np.random.default_rng(0)
    return lambda: dice.normal(mean_s, 5e-4) + (extra_s if dice.random() < share else 0)


PHASES_S = [PERIOD_S * eighth / 8 for eighth in range(8)]


@pytest.mark.parametrize("source_fps", [60.0, 59.94, 60.06, 59.8, 60.2])
@pytest.mark.parametrize("spread_s", [3e-4, 1.5e-3])
def test_fewer_than_half_a_percent_repeat_from_any_phase(source_fps: float, spread_s: float) -> None:
    for phase_s in PHASES_S:
        outcome = simulate(source_fps, phase_s, gaussian(0.010, spread_s))
        assert outcome.repeated < 0.005, f"phase {phase_s * 1e3:.1f} ms"


@pytest.mark.parametrize("phase_s", PHASES_S)
def test_rare_hiccups_are_learnt(phase_s: float) -> None:
    assert simulate(FPS, phase_s, with_hiccups(0.010, share=0.01, extra_s=0.006)).repeated < 0.005


def test_the_free_clock_would_not_do() -> None:
    """What the lock is for: without it the same runs fail, so the tests above can."""
    worst = max(simulate(FPS, phase, gaussian(0.010, 1.5e-3), lock=False).repeated for phase in PHASES_S)
    assert worst > 0.05


@pytest.mark.parametrize("source_fps", [30.0, 50.0, 59.94, 60.0, 60.06, 120.0])
def test_latency_does_not_grow(source_fps: float) -> None:
    outcome = simulate(source_fps, 0.004, gaussian(0.008, 5e-4), seconds=120)
    early, late = np.mean(outcome.latency_s[120:1200]), np.mean(outcome.latency_s[-1200:])
    assert late <= early + 1e-3
    assert max(outcome.latency_s[600:]) < 0.008 + 2 * PERIOD_S


def test_a_locked_output_has_less_latency_than_half_a_period() -> None:
    outcome = simulate(FPS, 0.003, gaussian(0.010, 3e-4))
    assert np.median(outcome.latency_s[-600:]) < 0.010 + PERIOD_S / 4


@pytest.mark.parametrize("source_fps", [24.0, 45.0, 59.94, 60.0, 61.0, 120.0])
def test_after_one_jump_the_rate_stays_within_the_slew(source_fps: float) -> None:
    outcome = simulate(source_fps, 0.005, gaussian(0.009, 1e-3))
    beyond = [
        interval for interval in outcome.intervals_s if abs(interval - PERIOD_S) > SLEW * PERIOD_S + 1e-9
    ]
    assert len(beyond) <= 1
    assert all(PERIOD_S / 2 - 1e-9 <= interval <= 1.5 * PERIOD_S + 1e-9 for interval in beyond)


@pytest.mark.parametrize("source_fps", [24.0, 43.7, 45.0, 50.0])
def test_rates_without_a_common_phase_leave_the_clock_free(source_fps: float) -> None:
    outcome = simulate(source_fps, 0.005, gaussian(0.009, 3e-4))
    assert sum(outcome.intervals_s) / len(outcome.intervals_s) == pytest.approx(PERIOD_S, rel=1e-4)


def test_a_camera_of_half_the_rate_is_held_not_repeated() -> None:
    shown = simulate(30.0, 0.0, gaussian(0.010, 5e-4)).shown
    assert shown[Shown.REPEATED] == 0
    assert shown[Shown.HELD] == pytest.approx(shown[Shown.FRESH], abs=3)


def test_a_slow_engine_holds_the_rate_and_repeats() -> None:
    shown = simulate(FPS, 0.0, gaussian(0.050, 1e-3), seconds=10).shown
    assert shown.total() == pytest.approx(600, abs=3)
    assert shown[Shown.FRESH] == pytest.approx(200, abs=5)


def test_the_lock_knows_nothing_before_pictures_arrive() -> None:
    lock = PhaseLock(PERIOD_S)
    lock.missing(START_S)
    assert lock.shift_s(START_S) == 0.0


def test_after_a_slate_the_phase_is_found_by_another_jump() -> None:
    """A camera that comes back is in no beat with itself before."""
    pacer, jumps = Pacer(FPS, 2.0, START_S), 0
    for phase in (0.2, 0.6):
        # Far enough apart for the slate.
        pacer.ticks.advance(pacer.ticks.due_s, shift_s=180 * PERIOD_S)
        pacer.choose(pacer.ticks.due_s, None, expected=True)
        for _ in range(20):
            due_s = pacer.ticks.due_s
            at_s = (math.floor(due_s / PERIOD_S) + phase) * PERIOD_S
            pacer.choose(due_s, finished(at_s), expected=True)
            pacer.advance(due_s)
            jumps += abs(pacer.ticks.due_s - due_s - PERIOD_S) > SLEW * PERIOD_S + 1e-9
    assert jumps == 2


# What a tick shows


def pacer_at(start_s: float = 0.0) -> Pacer:
    return Pacer(FPS, stale_s=2.0, start_s=start_s)


def test_slate_until_the_first_picture() -> None:
    assert pacer_at().choose(0.0, None, expected=True) == (Shown.SLATE, None)


def test_the_last_picture_is_repeated_then_stale() -> None:
    pacer, first = pacer_at(), finished(0.0)

    assert pacer.choose(0.0, first, expected=True) == (Shown.FRESH, first.frame)
    assert pacer.choose(1.0, None, expected=True) == (Shown.REPEATED, first.frame)
    assert pacer.choose(2.0, None, expected=False) == (Shown.HELD, first.frame)
    assert pacer.choose(2.01, None, expected=True) == (Shown.SLATE, None)
    # Stale for good: an older clock reading does not bring it back.
    assert pacer.choose(1.9, None, expected=True) == (Shown.SLATE, None)


@pytest.mark.parametrize("origin", [Origin.RAW, Origin.SLATE])
def test_only_stylised_pictures_are_taken(origin: Origin) -> None:
    pacer = pacer_at()
    with pytest.raises(ValueError, match="expected stylised"):
        pacer.choose(0.0, finished(0.0, origin), expected=True)
    assert pacer.choose(0.0, None, expected=True) == (Shown.SLATE, None)
