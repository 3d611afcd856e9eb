"""The second half of a live run: at every tick, exactly one picture to the sink.

Knows nothing of torch, cameras or engines: finished pictures come through one slot, and where there are none, the slate
says why in words it is given. What the user wants shown is read at every tick, so panic is effective in the next
picture sent. It could run in a process of its own.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from instantvision.integrations.base import Sink
from instantvision.integrations.clock import Clock
from instantvision.pipeline.config import LiveConfig, Size
from instantvision.pipeline.control import Control, Show
from instantvision.pipeline.frames import Closed, Frame, Latest, Origin
from instantvision.pipeline.meter import Meter
from instantvision.pipeline.pacing import Finished, Pacer, Shown
from instantvision.pipeline.slate import Slate

REPORT_S = 1.0

# A source is as fast as the output when its measured rate is, but for what jitter does to the measurement.
FULL_RATE = 0.98

PRIVATE = "Private"


class Playout:
    """Feeds a sink at a steady rate.

    Args:
        sink: open, for pictures of `size` at config.fps.
        size: of every picture sent.
        config: rate, end and patience.
        meter: is told of every picture sent, and asked for the source's rate.
        clock: what the ticks are measured with.
        control: says at every tick what is shown.
    """

    def __init__(
        self, sink: Sink, size: Size, config: LiveConfig, meter: Meter, clock: Clock, control: Control
    ) -> None:
        self._sink, self._config, self._meter, self._clock = sink, config, meter, clock
        self._slate, self._control = Slate(size), control
        self._director = Director(config.stale_s)
        self._sent = 0
        self.camera: Latest[Frame] = Latest()
        """Pictures of origin CAMERA, looked at while the user shows the camera, thrown away otherwise."""

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
        arrived = Arrived(stylised=picture, camera=self._take_camera(), expected=expected)
        shown, frame = self._director.choose(now_s, self._control.state.show, pacer, arrived)
        if frame is None:
            reason = PRIVATE if self._director.private else why()
            frame = self._slate.frame(reason, self._sent, now_s)
        self._send(frame)
        self._director.sent(frame)
        sent_s = self._clock.now_s()
        missed = int(late_s > pacer.ticks.period_s) + pacer.advance(sent_s)
        self._meter.sent(sent_s, shown, (sent_s - frame.captured_s) * 1e3, missed)

    def _take_camera(self) -> Frame | None:
        # Taken at every tick: none may lie here until the camera is shown the next time.
        try:
            return self.camera.take(timeout_s=0)
        except Closed:
            return None

    def _send(self, frame: Frame) -> None:
        self._sink.send(frame)
        self._sent += 1


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What came since the last tick.

    Args:
        stylised: newest picture out of the engine, or None.
        camera: newest picture of origin CAMERA, or None.
        expected: a stylised picture should have come, see Pacer.choose.
    """

    stylised: Finished | None = None
    camera: Frame | None = None
    expected: bool = False


class Director:
    """Decides what a tick shows from what the user wants; Pacer decides among stylised pictures.

    After any other show, the effect begins with the first picture captured since: what was captured before, when the
    user did not want to be seen, is never shown as live. Until then the held picture stays, or the slate.

    Args:
        stale_s: as of Pacer.
    """

    def __init__(self, stale_s: float) -> None:
        self._stale_s = stale_s
        self._show = Show.EFFECT
        self._since_s = -math.inf
        self._held: Frame | None = None
        self._last_sent: Frame | None = None
        self._last_look: Frame | None = None
        self._camera: Frame | None = None

    @property
    def private(self) -> bool:
        """Whether an empty choice is the user's wish, and not for want of a picture."""
        return self._show in (Show.SLATE, Show.FREEZE, Show.LAST_LOOK)

    def choose(self, now_s: float, show: Show, pacer: Pacer, arrived: Arrived) -> tuple[Shown, Frame | None]:
        """What the tick at `now_s` shows; SLATE and None, or another kind and its picture."""
        if show is not self._show:
            self._change(now_s, show, pacer)
        if show is Show.EFFECT:
            return self._effect(now_s, pacer, arrived)
        if show is Show.CAMERA:
            return self._show_camera(now_s, arrived.camera)
        if show is Show.SLATE or self._held is None:
            return Shown.SLATE, None
        return Shown.HELD, self._held

    def sent(self, frame: Frame) -> None:
        """Take note of the picture that the sink took."""
        self._last_sent = frame
        if frame.origin is Origin.STYLISED:
            self._last_look = frame

    def _change(self, now_s: float, show: Show, pacer: Pacer) -> None:
        if show is Show.FREEZE:
            # Frozen, the camera would go on being shown after the user has left it.
            raw = self._last_sent is not None and self._last_sent.origin is Origin.CAMERA
            self._held = None if raw else self._last_sent
        elif show is Show.LAST_LOOK:
            self._held = self._last_look
        elif show is not Show.EFFECT:
            self._held = None
        self._show, self._since_s, self._camera = show, now_s, None
        pacer.forget()

    def _effect(self, now_s: float, pacer: Pacer, arrived: Arrived) -> tuple[Shown, Frame | None]:
        picture = arrived.stylised
        if picture is not None and picture.frame.captured_s < self._since_s:
            picture = None
        shown, frame = pacer.choose(now_s, picture, arrived.expected)
        if frame is not None:
            self._held = None
        elif self._held is not None and now_s - self._since_s <= self._stale_s:
            return Shown.HELD, self._held
        return shown, frame

    def _show_camera(self, now_s: float, picture: Frame | None) -> tuple[Shown, Frame | None]:
        if picture is not None:
            if picture.origin is not Origin.CAMERA:
                raise ValueError(f"the frame is {picture.origin.value}, expected one of origin camera")
            self._camera = picture
            return Shown.FRESH, picture
        if self._camera is None or now_s - self._camera.captured_s > self._stale_s:
            return Shown.SLATE, None
        return Shown.HELD, self._camera
