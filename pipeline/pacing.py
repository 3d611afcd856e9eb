"""The output's beat: when a tick is due, how the beat finds the phase of the arriving pictures, what a tick shows.

Time is an argument everywhere; nothing here waits, starts a thread or knows of engines and sinks.

Why a phase lock: a camera of 60 Hz behind an engine, read by an unrelated clock of 60 Hz, beats. Whenever
pictures arrive close to a tick, their jitter puts now none and now two of them between two ticks: up to a quarter
of the ticks repeat a picture, for as long as the two clocks stay in that phase. A cushion of one more picture
would absorb the jitter for 16.7 ms of latency, and still slip once per beat when the rates differ by a trace. The
lock costs only the jitter itself: it moves the ticks to just after the arrivals, by at most SLEW of a period per
tick, and so follows a camera of 59.94 Hz too.
"""

import cmath
import heapq
import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from instantvision.pipeline.frames import Frame, Origin

# Half a second late is no hiccup but a suspended machine: sending all that was missed would show it in fast motion.
RESYNC_S = 0.5

# A half percent is below what an eye or a reading application notices, and above the error of any camera's clock.
SLEW = 0.005


class Ticks:
    """Moments `period_s` apart: tick n is due at start + n * period, whenever the ticks before it were served.

    Args:
        fps: ticks a second.
        start_s: when tick 0 is due.
    """

    def __init__(self, fps: float, start_s: float) -> None:
        self.period_s = 1 / fps
        self._origin_s, self._number = start_s, 0

    @property
    def due_s(self) -> float:
        """When the next tick is due."""
        return self._origin_s + self._number * self.period_s

    def advance(self, now_s: float, shift_s: float = 0.0) -> int:
        """Go on to the next tick, and move it and all later ones by `shift_s`.

        Returns:
            How many ticks were left out, on the same grid, because the next one was over RESYNC_S ago.
        """
        self._number += 1
        self._origin_s += shift_s
        behind_s = now_s - self.due_s
        skipped = math.ceil(behind_s / self.period_s) if behind_s > RESYNC_S else 0
        self._number += skipped
        return skipped


class PhaseLock:
    """Where in the period pictures arrive, and how far to move the ticks for them.

    The mean phase is the angle of a running mean of unit vectors, whose length tells how much the arrivals agree:
    near 1 for a rate that divides the ticks' rate, near 0 for any other, where no phase is better than another
    and the ticks stay free.

    Source: circular statistics, Mardia & Jupp, Directional Statistics (2000), section 2.2.
    """

    # The first arrivals follow the end of loading, not the source's beat.
    SETTLE = 3
    # Arrivals averaged before the one jump; fewer repeat less, more find the phase better.
    ACQUIRE = 6
    # Arrivals that the running mean remembers: half a second.
    MEMORY = 32
    # Reached by rates within about SLEW of a divisor of the ticks' rate, and by a jitter of up to 2.7 ms at 60 Hz.
    COHERENT = 0.6
    # Latenesses remembered, 10 s at 60 Hz, and how many of them may be exceeded: one in 600, a third of the target.
    WINDOW, FORGIVEN = 600, 1
    # Between the last arrival that counts and its tick, as a share of the period: 1 ms at 60 Hz, a thread's wake-up.
    GUARD = 1 / 16
    # Lateness assumed, as a share of the period, until WINDOW arrivals have told better: too few are known to trust.
    CAREFUL = 1 / 4

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._late_s: deque[float] = deque(maxlen=self.WINDOW)
        self.reset()

    def reset(self) -> None:
        """Forget the phase: what arrives next need not be in beat with what came before."""
        self._mean, self._count, self._locked = 0j, 0, False
        self._late_s.clear()
        self._late_s.extend([self.CAREFUL * self._period_s] * (self.FORGIVEN + 1))

    def arrived(self, at_s: float) -> None:
        """Take note of a picture that was finished at `at_s`."""
        self._count += 1
        seen = self._count - self.SETTLE
        if seen <= 0:
            return
        vector = cmath.exp(2j * math.pi * at_s / self._period_s)
        self._mean += (vector - self._mean) / min(seen, self.MEMORY)
        self._late_s.append(self._seconds(vector / self._mean) if self._mean else 0.0)

    def missing(self, due_s: float) -> None:
        """Take note that a picture was expected by `due_s` and is not there: it is at least that late.

        A late picture is often replaced by its successor before any tick sees it; without this, just the latenesses
        that cause repeats would never be learnt.
        """
        if self._locked:
            self._late_s.append(self._lead_s(due_s) + self.GUARD * self._period_s)

    def shift_s(self, due_s: float) -> float:
        """How far to move the ticks after the one due at `due_s`; once a jump to the phase, then steps within SLEW."""
        if self._count < self.SETTLE + self.ACQUIRE or abs(self._mean) < self.COHERENT:
            return 0.0
        error_s = self._wrapped(self._margin_s() - self._lead_s(due_s))
        if not self._locked:
            self._locked = True
            return error_s
        limit_s = SLEW * self._period_s
        return max(-limit_s, min(limit_s, error_s))

    def _margin_s(self) -> float:
        """Wanted from the mean arrival to the tick: what almost no lateness exceeds; half a period at most."""
        worst_s = heapq.nlargest(self.FORGIVEN + 1, self._late_s)[-1]
        return min(max(worst_s, 0.0) + self.GUARD * self._period_s, self._period_s / 2)

    def _lead_s(self, due_s: float) -> float:
        """From the mean arrival to a tick, within half a period either way."""
        return self._seconds(cmath.exp(2j * math.pi * due_s / self._period_s) / self._mean)

    def _seconds(self, vector: complex) -> float:
        return cmath.phase(vector) / (2 * math.pi) * self._period_s

    def _wrapped(self, difference_s: float) -> float:
        return math.remainder(difference_s, self._period_s)


class Shown(Enum):
    """What a tick showed.

    A tick without a fresh picture counts as REPEATED when the source gives pictures as fast as the output shows
    them, so that there should have been one, and as HELD when it does not: every second tick of a camera of 30 Hz.
    What stays because the user froze it counts as HELD too, the privacy slate as SLATE, and a new picture of the
    camera, while the user shows that, as FRESH.
    """

    FRESH = "fresh"
    REPEATED = "repeated"
    HELD = "held"
    SLATE = "slate"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A picture out of the engine, and time.perf_counter() at which it was."""

    frame: Frame
    finished_s: float


class Pacer:
    """Chooses each tick's picture: the fresh one, the last one again, or none, which asks for the slate.

    Args:
        fps: ticks a second.
        stale_s: the last picture is shown for that long, then the slate until a fresh one comes.
        start_s: when tick 0 is due.
    """

    def __init__(self, fps: float, stale_s: float, start_s: float) -> None:
        self.ticks = Ticks(fps, start_s)
        self._lock = PhaseLock(self.ticks.period_s)
        self._stale_s = stale_s
        self._last: Frame | None = None
        self._fresh_s = -math.inf

    def choose(self, now_s: float, finished: Finished | None, expected: bool) -> tuple[Shown, Frame | None]:
        """What the tick at `now_s` shows.

        Args:
            now_s: the present.
            finished: the newest picture that no tick has had, or None.
            expected: the source is fast enough for a fresh picture at every tick.

        Returns:
            SLATE and None, or another kind and its picture.

        Raises:
            ValueError: the picture is not of origin STYLISED.
        """
        if finished is not None:
            self._take(now_s, finished)
            return Shown.FRESH, self._last
        if self._last is None or now_s - self._fresh_s > self._stale_s:
            self._last = None
            return Shown.SLATE, None
        if expected:
            self._lock.missing(self.ticks.due_s)
        return (Shown.REPEATED if expected else Shown.HELD), self._last

    def forget(self) -> None:
        """Never show the last picture again; the slate until a fresh one comes."""
        self._last = None

    def advance(self, now_s: float) -> int:
        """Go on to the next tick, nearer to the phase of the arrivals; returns how many ticks were left out."""
        return self.ticks.advance(now_s, self._lock.shift_s(self.ticks.due_s))

    def _take(self, now_s: float, finished: Finished) -> None:
        if finished.frame.origin is not Origin.STYLISED:
            raise ValueError(
                f"the frame is {finished.frame.origin.value}, expected stylised: the engine's output only"
            )
        if self._last is None:
            self._lock.reset()
        self._lock.arrived(finished.finished_s)
        self._last, self._fresh_s = finished.frame, now_s
