"""The second half of a live run: at every tick, exactly one picture to the sink.

Knows nothing of torch, cameras or engines: finished pictures come through one slot, and where there are none, the slate
says why in words it is given. It could run in a process of its own.
"""

import math
import threading
from collections.abc import Callable

from instantvision.integrations.base import Sink
from instantvision.integrations.clock import Clock
from instantvision.pipeline.config import LiveConfig, Size
from instantvision.pipeline.frames import Closed, Frame, Latest
from instantvision.pipeline.meter import Meter
from instantvision.pipeline.pacing import Finished, Pacer
from instantvision.pipeline.slate import Slate

REPORT_S = 1.0

# A source is as fast as the output when its measured rate is, but for what jitter does to the measurement.
FULL_RATE = 0.98


class Playout:
    """Feeds a sink at a steady rate.

    Args:
        sink: open, for pictures of `size` at config.fps.
        size: of every picture sent.
        config: rate, end and patience.
        meter: is told of every picture sent, and asked for the source's rate.
        clock: what the ticks are measured with.
    """

    def __init__(self, sink: Sink, size: Size, config: LiveConfig, meter: Meter, clock: Clock) -> None:
        self._sink, self._config, self._meter, self._clock = sink, config, meter, clock
        self._slate = Slate(size)
        self._sent = 0

    def run(
        self,
        finished: Latest[Finished],
        stop: threading.Event,
        why: Callable[[], str],
        report: Callable[[], None],
    ) -> None:
        """Until `stop` is set, config.duration_s is over, or `finished` is closed and empty.

        Args:
            finished: pictures of the output's size and origin STYLISED.
            stop: ends the run within a tick.
            why: the reason a slate shows, asked at every tick that shows one.
            report: called about once a second.

        Raises:
            SinkError: of the sink.
            ValueError: a picture is not STYLISED, or not of the output's size.
        """
        # Draws the first slate before the clock starts: loading the font takes several ticks.
        self._slate.frame(why(), self._sent, self._clock.now_s())
        start_s = self._clock.now_s()
        end_s = start_s + (self._config.duration_s or math.inf)
        pacer = Pacer(self._config.fps, self._config.stale_s, start_s)
        next_report_s = start_s + REPORT_S
        while pacer.ticks.due_s < end_s and self._wait_until(pacer.ticks.due_s, stop):
            try:
                picture = finished.take(timeout_s=0)
            except Closed:
                return
            self._tick(pacer, picture, why)
            if pacer.ticks.due_s > next_report_s:
                report()
                next_report_s = pacer.ticks.due_s + REPORT_S

    def show_slate(self, reason: str) -> None:
        """Send one slate, in or out of a run."""
        self._send(self._slate.frame(reason, self._sent, self._clock.now_s()))

    def _wait_until(self, due_s: float, stop: threading.Event) -> bool:
        """False if `stop` was set."""
        # Again after an early return: the coarse clock of some systems wakes up before its time.
        while (left_s := due_s - self._clock.now_s()) > 0:
            if self._clock.wait(stop, left_s):
                return False
        return not stop.is_set()

    def _tick(self, pacer: Pacer, picture: Finished | None, why: Callable[[], str]) -> None:
        now_s = self._clock.now_s()
        late_s = now_s - pacer.ticks.due_s
        expected = picture is None and self._meter.source_fps(now_s) >= FULL_RATE * self._config.fps
        shown, frame = pacer.choose(now_s, picture, expected)
        frame = frame or self._slate.frame(why(), self._sent, now_s)
        self._send(frame)
        sent_s = self._clock.now_s()
        missed = int(late_s > pacer.ticks.period_s) + pacer.advance(sent_s)
        self._meter.sent(sent_s, shown, (sent_s - frame.captured_s) * 1e3, missed)

    def _send(self, frame: Frame) -> None:
        self._sink.send(frame)
        self._sent += 1
