"""Video files in a live run: as a source that keeps the file's own pace, and as a recording of what the viewers see."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from instantvision.integrations.base import EndOfSource, require_sendable
from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.integrations.video_reader import ClipFrame, VideoReader
from instantvision.integrations.video_writer import VideoWriter
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Frame, Origin

# Behind by more than that, the file plays on from where it is instead of rushing through what was missed.
LATE_S = 0.5


class VideoFileSource:
    """A video file played at its own pace.

    Args:
        path: of the file.
        loop: begin again at its end; otherwise `read` then raises EndOfSource.
        clock: what the pace is measured with.
    """

    def __init__(self, path: str | Path, *, loop: bool = True, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = Path(path)
        self.name = f"file:{path}"
        self.status = ""
        self._loop, self._clock = loop, clock
        self._reader: VideoReader | None = None
        self._pictures: Iterator[ClipFrame] = iter(())
        self._held: ClipFrame | None = None
        # Clock time of the file's first picture, in this round.
        self._start_s: float | None = None
        self._end_s = Fraction(0)
        self._index = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        self._rewind()

    def read(self, timeout_s: float) -> Frame | None:
        with self._lock:
            if self._stop.is_set():
                return None
            if self._held is None:
                self._held = self._next()
            due_s = self._due_s(self._held)
            wait_s = max(due_s - self._clock.now_s(), 0.0)
            if self._clock.wait(self._stop, min(wait_s, timeout_s)) or wait_s > timeout_s:
                return None
            picture, self._held = self._held, None
        frame = Frame(
            pixels=picture.pixels, index=self._index, captured_s=self._clock.now_s(), origin=Origin.RAW
        )
        self._index += 1
        return frame

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            if self._reader is not None:
                self._reader.close()
            self._reader, self._held = None, None

    def _rewind(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = VideoReader(self.path)
        self._pictures = iter(self._reader)

    def _next(self) -> ClipFrame:
        picture = next(self._pictures, None)
        if picture is not None:
            self._end_s = picture.pts_s
            return picture
        if not self._loop or self._reader is None:
            raise EndOfSource
        if self._start_s is not None:
            self._start_s += float(self._end_s + 1 / self._reader.fps)
        self._rewind()
        return next(self._pictures)

    def _due_s(self, picture: ClipFrame) -> float:
        """Clock time at which the picture is shown; the first one is shown at once."""
        now_s, offset_s = self._clock.now_s(), float(picture.pts_s)
        if self._start_s is None or now_s - (self._start_s + offset_s) > LATE_S:
            self._start_s = now_s - offset_s
        return self._start_s + offset_s


class VideoFileSink:
    """A recording at a constant rate, complete as far as it goes whenever it is closed.

    Args:
        path: of the file; its ending chooses the container.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = f"file:{path}"
        self._size: Size | None = None
        self._writer: VideoWriter | None = None

    def open(self, size: Size, fps: float) -> None:
        self._writer = VideoWriter(self.path, size, Fraction(fps), effort="live")
        self._size = size

    def send(self, frame: Frame) -> None:
        require_sendable(frame, self._size)
        if self._writer is not None:
            self._writer.write(frame.pixels)

    def close(self) -> None:
        writer, self._writer, self._size = self._writer, None, None
        if writer is not None:
            # Nothing was sent, or the disk is full, which `send` has reported: what is of no use has been removed.
            with suppress(SinkError):
                writer.finish()
