"""What a live run measures, in constant memory: rates, times, counts.

Knows nothing of threads but one lock: capture, engine and output each report to the same Meter.
"""

import math
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

# numpy.percentile imports it in its first call: 50 ms in the output's thread, without a picture to the sink.
import numpy.ma

from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.pacing import Shown

# Values the "recent" figures are taken from: 10 s at 60 Hz.
WINDOW = 600


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a measured quantity was distributed, all but `count` in its unit; zeros if nothing was measured."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> "Summary":
        """Exactly, of a few values."""
        array = np.fromiter(values, np.float64)
        if not array.size:
            return cls()
        p50, p95, p99 = (float(value) for value in np.percentile(array, (50, 95, 99)))
        return cls(count=array.size, mean=float(array.mean()), p50=p50, p95=p95, p99=p99)


class Histogram:
    """Percentiles of any number of positive values in 6 kB.

    Buckets grow by 2 %, so a percentile is within 1 % of the value it stands for between LOW and HIGH; what
    lies outside counts as the nearest end. The mean is exact.
    """

    LOW, HIGH, GROWTH = 1e-2, 1e6, 1.02

    def __init__(self) -> None:
        self._buckets = np.zeros(self._bucket(self.HIGH) + 1, np.int64)
        self._count, self._sum = 0, 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._buckets[self._bucket(value)] += 1
        self._count += 1
        self._sum += value

    def summary(self) -> Summary:
        """Of everything so far."""
        if not self._count:
            return Summary()
        p50, p95, p99 = (self._percentile(share) for share in (0.50, 0.95, 0.99))
        return Summary(count=self._count, mean=self._sum / self._count, p50=p50, p95=p95, p99=p99)

    def _percentile(self, share: float) -> float:
        rank = max(1, math.ceil(share * self._count))
        bucket = int(np.searchsorted(np.cumsum(self._buckets), rank))
        return self.LOW * self.GROWTH ** (bucket + 0.5)

    @classmethod
    def _bucket(cls, value: float) -> int:
        clamped = min(max(value, cls.LOW), cls.HIGH)
        return int(math.log(clamped / cls.LOW) / math.log(cls.GROWTH))


class Distribution:
    """A quantity over the whole run and over its last WINDOW values."""

    def __init__(self) -> None:
        self._all = Histogram()
        self._last: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        """Count one value."""
        self._all.add(value)
        self._last.append(value)

    def summary(self) -> Summary:
        """Of the whole run."""
        return self._all.summary()

    def recent(self) -> Summary:
        """Of the last WINDOW values."""
        return Summary.of(self._last)


class Rate:
    """Events per second, over the whole run and lately."""

    # Four seconds at 60 Hz: long enough that a jitter of some milliseconds does not show, short enough to follow.
    EVENTS = 240

    def __init__(self) -> None:
        self.count = 0
        self._first_s = 0.0
        self._times_s: deque[float] = deque(maxlen=self.EVENTS)

    def add(self, at_s: float) -> None:
        """Count an event."""
        if not self.count:
            self._first_s = at_s
        self.count += 1
        self._times_s.append(at_s)

    def overall(self) -> float:
        """From the first event to the last; 0 with fewer than two."""
        if self.count < 2:
            return 0.0
        return (self.count - 1) / max(self._times_s[-1] - self._first_s, 1e-9)

    def recent(self, now_s: float) -> float:
        """Of the last EVENTS; falls as soon as an event is over an interval late. 0 with fewer than two."""
        intervals = len(self._times_s) - 1
        if intervals < 1:
            return 0.0
        first_s, last_s = self._times_s[0], self._times_s[-1]
        usual_s = (last_s - first_s) / intervals
        end_s = now_s if now_s - last_s > 2 * usual_s else last_s
        return intervals / max(end_s - first_s, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Recent:
    """The last seconds of a run: rates of the last 240 events, times of the last 600 pictures.

    Args:
        fps_out, fps_engine, fps_source: pictures sent, finished and captured a second.
        latency_ms: from capture to the end of Sink.send, of fresh pictures.
        device_ms: of the engine's device, per picture.
        mean_steps: evaluations of the denoiser, per picture.
        repeated_fraction: as LiveStats.repeated_fraction, of the last 600 ticks that showed no slate.
    """

    fps_out: float
    fps_engine: float
    fps_source: float
    latency_ms: Summary
    device_ms: Summary
    mean_steps: float
    repeated_fraction: float


@dataclass(frozen=True, kw_only=True)
class LiveStats:
    """A live run so far, or when it has ended, all of it.

    ticks = fresh + repeated + held + slate; see pacing.Shown for what tells them apart.

    Args:
        source, sink: their names.
        size: of the output.
        settings: what the engine uses; None while it is being built.
        status: why the source gives nothing, or "".
        duration_s: from the first tick to the last.
        ticks: pictures sent.
        fresh, repeated, held, slate: what they were.
        missed: ticks served more than a period late, or left out after half a second without any.
        engine_frames: pictures the engine finished.
        dropped_capture: raw pictures replaced before the engine took them, since it was ready.
        dropped_engine: finished pictures replaced before a tick took them.
        fps_out, fps_engine, fps_source: of the whole run, each from its first picture to its last.
        latency_ms: from capture to the end of Sink.send, of fresh pictures. Percentiles to 1 %, like the next two.
        engine_device_ms: of the engine's device per picture, as far as it tells.
        engine_call_ms: from a picture's Engine.submit to its result, waiting included.
        mean_steps: evaluations of the denoiser per picture the engine finished.
        recent: the last seconds.
        threads_left: threads that had not ended when run_live returned.
    """

    source: str
    sink: str
    size: Size
    settings: Settings | None
    status: str
    duration_s: float
    ticks: int
    fresh: int
    repeated: int
    held: int
    slate: int
    missed: int
    engine_frames: int
    dropped_capture: int
    dropped_engine: int
    fps_out: float
    fps_engine: float
    fps_source: float
    latency_ms: Summary
    engine_device_ms: Summary
    engine_call_ms: Summary
    mean_steps: float
    recent: Recent
    threads_left: int = 0

    @property
    def repeated_fraction(self) -> float:
        """Share of REPEATED among the ticks that showed no slate; 0 if there were none."""
        return self.repeated / max(self.fresh + self.repeated + self.held, 1)

    def to_json(self) -> dict[str, object]:
        """The fields, `repeated_fraction` and `steps` for json.dumps; sizes and mixes as the user writes them."""
        plain: dict[str, object] = asdict(self)
        plain["size"] = str(self.size)
        plain["repeated_fraction"] = self.repeated_fraction
        if self.settings is not None:
            own = {"mix": str(self.settings.mix), "size": str(self.settings.size)}
            plain["settings"] = asdict(self.settings) | own
            plain["steps"] = self.settings.steps
        return plain


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a Meter does not measure but a LiveStats tells; the fields are those of LiveStats."""

    source: str
    sink: str
    size: Size
    settings: Settings | None
    status: str
    dropped_capture: int
    dropped_engine: int
    threads_left: int = 0


class Meter:
    """Collects what the stages report; safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source, self._engine, self._out = Rate(), Rate(), Rate()
        self._latency_ms, self._device_ms, self._call_ms = Distribution(), Distribution(), Distribution()
        self._shown = dict.fromkeys(Shown, 0)
        self._last_repeated: deque[bool] = deque(maxlen=WINDOW)
        self._last_steps: deque[int] = deque(maxlen=WINDOW)
        self._missed, self._steps = 0, 0

    def captured(self, at_s: float) -> None:
        """The source gave a picture."""
        with self._lock:
            self._source.add(at_s)

    def finished(self, at_s: float, call_ms: float, device_ms: float | None, steps: int = 0) -> None:
        """The engine finished a picture, with so many evaluations of the denoiser."""
        with self._lock:
            self._engine.add(at_s)
            self._steps += steps
            self._last_steps.append(steps)
            self._call_ms.add(call_ms)
            if device_ms is not None:
                self._device_ms.add(device_ms)

    def sent(self, at_s: float, shown: Shown, latency_ms: float, missed: int) -> None:
        """The sink took a picture.

        Args:
            at_s: when it had.
            shown: what the picture was.
            latency_ms: since its capture; counts if it is fresh.
            missed: ticks late or left out since the picture before.
        """
        with self._lock:
            self._out.add(at_s)
            self._shown[shown] += 1
            self._missed += missed
            if shown is Shown.FRESH:
                self._latency_ms.add(latency_ms)
            if shown is not Shown.SLATE:
                self._last_repeated.append(shown is Shown.REPEATED)

    def source_fps(self, now_s: float) -> float:
        """The source's rate lately."""
        with self._lock:
            return self._source.recent(now_s)

    def stats(self, now_s: float, around: Surroundings) -> LiveStats:
        """Everything so far."""
        with self._lock:
            ticks = self._out.count
            return LiveStats(
                **vars(around),
                duration_s=(ticks - 1) / self._out.overall() if ticks > 1 else 0.0,
                ticks=ticks,
                fresh=self._shown[Shown.FRESH],
                repeated=self._shown[Shown.REPEATED],
                held=self._shown[Shown.HELD],
                slate=self._shown[Shown.SLATE],
                missed=self._missed,
                engine_frames=self._engine.count,
                fps_out=self._out.overall(),
                fps_engine=self._engine.overall(),
                fps_source=self._source.overall(),
                latency_ms=self._latency_ms.summary(),
                engine_device_ms=self._device_ms.summary(),
                engine_call_ms=self._call_ms.summary(),
                mean_steps=self._steps / max(self._engine.count, 1),
                recent=self._recent(now_s),
            )

    def _recent(self, now_s: float) -> Recent:
        return Recent(
            fps_out=self._out.recent(now_s),
            fps_engine=self._engine.recent(now_s),
            fps_source=self._source.recent(now_s),
            latency_ms=self._latency_ms.recent(),
            device_ms=self._device_ms.recent(),
            mean_steps=sum(self._last_steps) / max(len(self._last_steps), 1),
            repeated_fraction=sum(self._last_repeated) / max(len(self._last_repeated), 1),
        )
