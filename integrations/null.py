"""A sink that shows nothing and counts: for measuring, and for trying a source."""

from instantvision.integrations.base import require_sendable
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame


class NullSink:
    """Counts the frames it is sent in `sent` and keeps the newest in `last`."""

    def __init__(self) -> None:
        self.name = "null"
        self.sent = 0
        self.last: Frame | None = None
        self._size: Size | None = None

    # Counting needs no rate.
    def open(self, size: Size, fps: float) -> None:  # noqa: ARG002
        self._size = size

    def send(self, frame: Frame) -> None:
        require_sendable(frame, self._size)
        self.sent += 1
        self.last = frame

    def close(self) -> None:
        self._size = None
