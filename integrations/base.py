"""The two contracts at the ends of the pipeline: where frames come from and where they go.

Knows nothing of torch or of the engine. Implementations are named <Tech>Source and <Tech>Sink.
"""

from typing import Protocol

from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame, Origin


class EndOfSource(Exception):
    """The source has given its last frame: not an error."""


class Source(Protocol):
    """Gives raw frames, one reader thread.

    Called in this order: `open` exactly once, `read` many times, `close` exactly once, also after an error in
    either of the others and from whichever thread ends the run. `read` returns within `timeout_s`.
    """

    name: str
    """How the user would name it: `webcam:Logitech C920`, `file:talk.mkv`, `test-pattern`."""
    status: str
    """Why there are no frames at the moment; "" while they flow. Read from any thread."""

    def open(self) -> None:
        """Acquire the device or file.

        Raises:
            SourceError: with the name, the reason, and what exists instead.
        """

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame with origin RAW, at the source's own rate; None if none came within `timeout_s`.

        Frames are RGB uint8 [H, W, 3], freshly allocated or never written again; `captured_s` is time.perf_counter().

        Raises:
            EndOfSource: a source with an end has reached it.
            SourceError: the device is gone and did not come back.
        """

    def close(self) -> None:
        """Release everything; never raises; may be called twice."""


class Sink(Protocol):
    """Takes finished frames at a constant size and rate, from one thread.

    `open` exactly once with the final size and rate, then `send` once a tick, then `close` exactly once. A sink
    refuses origin RAW: it is the last guard against showing the raw camera by accident. Origin CAMERA is the user's
    own wish, and is shown.
    """

    name: str

    def open(self, size: Size, fps: float) -> None:
        """Acquire the device or file for pictures of `size` at `fps`.

        Raises:
            SinkError: with the reason and how to mend it on this system.
        """

    def send(self, frame: Frame) -> None:
        """Show one frame of exactly the opened size; returns without waiting for the clock.

        Raises:
            SinkError: the device is gone or the disk is full.
            ValueError: the frame is RAW, or of another size.
        """

    def close(self) -> None:
        """Finish and release everything; never raises; may be called twice."""


def require_sendable(frame: Frame, size: Size | None) -> None:
    """The guard at the head of every Sink.send; `size` is what the sink was opened with, None while it is closed.

    Raises:
        ValueError: the sink is not open, or the frame is RAW or of another size.
    """
    if size is None:
        raise ValueError("the sink is not open: call open(size, fps) before send")
    if frame.origin is Origin.RAW:
        raise ValueError(
            "the frame is the raw camera picture, expected a stylised one, the slate, or one of origin CAMERA"
        )
    height, width = frame.pixels.shape[:2]
    if (width, height) != (size.width, size.height):
        raise ValueError(f"frame is {width}x{height}, expected {size}: a sink's size stays as it was opened")
