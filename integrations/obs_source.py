"""Pictures out of OBS: its program, or one of its sources.

Two ways. `stream`: OBS's own FFmpeg output sends its program to a port of ours; every picture comes, but OBS can record
and stream nothing else meanwhile. `screenshots`: asked for one by one over the websocket; slower, for any source, and
disturbs nothing. A lost OBS is no error once the source is open: it is looked for until it is back.
"""

import logging
import threading
from collections.abc import Callable
from typing import Literal

from instantvision.integrations.backoff import Backoff
from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.integrations.obs_capture import Capture, CaptureLostError, ScreenshotCapture, StreamCapture
from instantvision.integrations.obs_journal import PROFILE, Journal, journal
from instantvision.integrations.obs_link import ObsLink
from instantvision.integrations.obs_profile import put_back_after_a_crash
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import ConfigError, InstantVisionError, SourceError
from instantvision.pipeline.frames import Frame, Origin, Pixels

log = logging.getLogger(__name__)

Way = Literal["stream", "screenshots"]
WAYS: tuple[Way, ...] = ("stream", "screenshots")
# OBS sends every picture of its canvas, whether it moves or not.
STALE_S = 5.0


class ObsSource:
    """OBS as a camera.

    Args:
        of: name of a source or scene of OBS; None for the program.
        via: how; None for the faster one: `stream` for the program, `screenshots` for a source, which has no other.
        size: the engine's picture: screenshots are not asked for larger than covers it.
        make_link: connects to OBS; None for the one that the user's settings name.
        changes: the journal of the temporary profile.
        clock: what frames are stamped and waits are measured with.

    Raises:
        ConfigError: a stream of a source was asked for.
    """

    def __init__(
        self,
        of: str | None = None,
        *,
        via: Way | None = None,
        size: Size | None = None,
        make_link: Callable[[], ObsLink] | None = None,
        changes: Journal | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if of is not None and via == "stream":
            raise ConfigError(f"OBS streams its program only, not {of!r}: use --source obs, or obs:{of}")
        self.name = "obs" if of is None else f"obs:{of}"
        self.status = "not open yet"
        self.way: Way = via or ("screenshots" if of else "stream")
        self._of, self._size, self._make_link, self._clock = of, size, make_link or _connect, clock
        self._changes = changes
        self._link: ObsLink | None = None
        self._capture: Capture | None = None
        self._backoff = Backoff()
        self._since_s = 0.0
        self._index = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        self._changes = self._changes or journal(PROFILE)
        self._link = self._make_link()
        try:
            self._start(self._link, self._changes)
        except InstantVisionError:
            self.close()
            raise
        self.status = "starting"

    def read(self, timeout_s: float) -> Frame | None:
        deadline_s = self._clock.now_s() + timeout_s
        with self._lock:
            while not self._stop.is_set():
                pixels = self._step(max(deadline_s - self._clock.now_s(), 0.0))
                if pixels is not None:
                    return self._framed(pixels)
                if self._clock.now_s() >= deadline_s:
                    return None
        return None

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            self._release()
            link, self._link = self._link, None
            if link is not None:
                link.close()
        self.status = "closed"

    def _step(self, left_s: float) -> Pixels | None:
        """Wait at most `left_s` for a picture, or for the time to look for OBS again."""
        if self._capture is None:
            self._reconnect(left_s)
            return None
        try:
            pixels = self._capture.frame(left_s)
            if pixels is None and self._clock.now_s() - self._since_s > STALE_S:
                raise CaptureLostError(f"no picture for {STALE_S:g} s")
        except CaptureLostError as error:
            self._lose(str(error))
            return None
        return pixels

    def _framed(self, pixels: Pixels) -> Frame:
        self._since_s, self.status = self._clock.now_s(), ""
        frame = Frame(pixels=pixels, index=self._index, captured_s=self._since_s, origin=Origin.RAW)
        self._index += 1
        return frame

    def _start(self, link: ObsLink, changes: Journal) -> None:
        """Begin the chosen way, or screenshots where OBS must not be disturbed."""
        if self.way == "stream":
            try:
                put_back_after_a_crash(link, changes)
                self._capture = StreamCapture(link, changes, self._clock)
            except SourceError as error:
                log.warning("%s; going on with screenshots, which are slower", error)
                self.way = "screenshots"
        if self.way == "screenshots":
            self._capture = ScreenshotCapture(link, self._of, self._size, self._clock)
        self._since_s = self._clock.now_s()

    def _lose(self, reason: str) -> None:
        self._since_s = self._clock.now_s()
        self.status = f"lost ({reason}), looking for OBS"
        if self._release() and self.way == "stream":
            # OBS lives: its user has stopped the output. A second start in one OBS process may hang or crash it.
            log.warning("OBS has ended its output; going on with screenshots, which are slower")
            self.way = "screenshots"

    def _reconnect(self, left_s: float) -> None:
        now_s = self._clock.now_s()
        due_s = self._since_s + self._backoff.delay_s(now_s)
        if self._clock.wait(self._stop, min(left_s, due_s - now_s)) or now_s + left_s < due_s:
            return
        self._since_s = self._clock.now_s()
        self._backoff.record(self._since_s)
        try:
            if self._link is not None and self._changes is not None:
                self._start(self._link, self._changes)
        except InstantVisionError as error:
            self.status = str(error)

    def _release(self) -> bool:
        """End the capture; False if OBS could not be told."""
        capture, self._capture = self._capture, None
        try:
            if capture is not None:
                capture.release()
        except InstantVisionError as error:
            log.warning(
                "OBS's profile is put back at the next start, or by instantvision obs undo: %s", error
            )
            return False
        return True


def _connect() -> ObsLink:
    # Not at the top: the websocket's libraries are for those who use OBS.
    from instantvision.integrations.obs_client import connect

    return connect()
