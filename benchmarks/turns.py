"""Several ways to do the same work, timed in turns so that heat, clocks and caches treat them all alike.

    figures = take_turns([ours, eager, compiled], Plan(), counter)

Knows nothing of what the work is.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instantvision.pipeline.bench import Spread, energy_used
from instantvision.pipeline.machine import EnergyCounter, GpuState

Clock = Callable[[], float]


@dataclass(frozen=True)
class Entrant:
    """One way to do the work.

    Args:
        name: of the method.
        once: does the work once and waits for it; the time the device took, in ms.
        burst: does it so many times as fast as it can and waits for the last.
    """

    name: str
    once: Callable[[], float]
    burst: Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Args:
        calls: timed in a turn, after one that is not.
        samples: of each entrant, at most; fewer when `seconds` have passed, but never less than ROUNDS_MIN turns.
        seconds: for all turns of all entrants together.
        burst_s: of each of the PASSES bursts of each entrant, as long as its calls one by one would take: frames that
            overlap are done sooner.
    """

    calls: int = 5
    samples: int = 200
    seconds: float = 20.0
    burst_s: float = 2.5


ROUNDS_MIN = 3
# Bursts go round twice, so that a GPU that grows hot or slow is seen, and shared out.
PASSES = 2


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one entrant did.

    Args:
        host_ms: from the call to its result, by the host's clock.
        device_ms: of those calls, by the device's clock.
        samples: behind these two.
        fps: of the bursts.
        power_w, joules_per_frame: of the whole GPU in the bursts; None with the reason in `no_power_because`.
        gpu: its state at the end of the last burst.
    """

    host_ms: Spread
    device_ms: Spread
    samples: int
    fps: float
    power_w: float | None
    joules_per_frame: float | None
    no_power_because: str | None
    gpu: GpuState | None


@dataclass(frozen=True)
class Burst:
    """One run at full speed."""

    frames: int
    elapsed_s: float
    energy_j: float | None
    no_energy_because: str | None
    gpu: GpuState | None


def take_turns(
    entrants: Sequence[Entrant], plan: Plan, counter: EnergyCounter, now_s: Clock = time.perf_counter
) -> dict[str, Figures]:
    """Measure all entrants, each in its turn, by their names.

    Args:
        entrants: built and warmed up, of different names.
        plan: how long.
        counter: of the device that they all run on.
        now_s: the host's clock.
    """
    host_ms: dict[str, list[float]] = {entrant.name: [] for entrant in entrants}
    device_ms: dict[str, list[float]] = {entrant.name: [] for entrant in entrants}
    end_s = now_s() + plan.seconds
    for turn in range(math.ceil(plan.samples / plan.calls)):
        if turn >= ROUNDS_MIN and now_s() > end_s:
            break
        for entrant in entrants:
            # The caches still hold another's data.
            entrant.once()
            for _ in range(plan.calls):
                started_s = now_s()
                device_ms[entrant.name].append(entrant.once())
                host_ms[entrant.name].append((now_s() - started_s) * 1e3)
    bursts: dict[str, list[Burst]] = {entrant.name: [] for entrant in entrants}
    for _, entrant in itertools.product(range(PASSES), entrants):
        period_s = Spread.of(host_ms[entrant.name]).median / 1e3
        bursts[entrant.name].append(_burst(entrant, plan.burst_s, period_s, counter, now_s))
    return {name: _figures(host_ms[name], device_ms[name], bursts[name]) for name in host_ms}


def _burst(entrant: Entrant, seconds: float, period_s: float, counter: EnergyCounter, now_s: Clock) -> Burst:
    frames = max(2, math.ceil(seconds / period_s))
    before_j, started_s = counter.read_j(), now_s()
    entrant.burst(frames)
    elapsed_s, after_j = now_s() - started_s, counter.read_j()
    energy_j, reason = energy_used(before_j, after_j, elapsed_s)
    return Burst(frames, elapsed_s, energy_j, counter.reason or reason, counter.state())


def _figures(host_ms: list[float], device_ms: list[float], bursts: list[Burst]) -> Figures:
    frames, elapsed_s = sum(burst.frames for burst in bursts), sum(burst.elapsed_s for burst in bursts)
    energies = [burst.energy_j for burst in bursts if burst.energy_j is not None]
    known = len(energies) == len(bursts)
    return Figures(
        host_ms=Spread.of(host_ms),
        device_ms=Spread.of(device_ms),
        samples=len(host_ms),
        fps=frames / elapsed_s,
        power_w=sum(energies) / elapsed_s if known else None,
        joules_per_frame=sum(energies) / frames if known else None,
        no_power_because=None if known else bursts[-1].no_energy_because or bursts[0].no_energy_because,
        gpu=bursts[-1].gpu,
    )
