"""A port of this computer that somebody sends MJPEG to: pictures in the multipart format of FFmpeg's `mpjpeg`.

Knows nothing of OBS. No thread: what has arrived is read when a picture is asked for.
"""

import os
import socket
from typing import TYPE_CHECKING

import numpy as np

from instantvision.integrations.clock import Clock
from instantvision.pipeline.errors import SourceError
from instantvision.pipeline.frames import Pixels

if TYPE_CHECKING:
    import av

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
# Several pictures at once, so that a reader who was late catches up.
CHUNK_BYTES = 1 << 20
# Four of the largest pictures there are: more without a picture's end is no MJPEG.
BUFFER_BYTES_MAX = 1 << 26


class StreamEndedError(Exception):
    """The sender is gone, or sends something else; the message says which."""


class MjpegListener:
    """Listens on a free port of 127.0.0.1 for one sender.

    Args:
        clock: what waits are measured with.

    Raises:
        SourceError: no port can be had.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listener = socket.socket()
        self._sender: socket.socket | None = None
        self._buffer = bytearray()
        self._decoder: av.VideoCodecContext | None = None
        if os.name == "posix":
            # A port that a crashed run left closing may be used again; on Windows this would mean sharing it.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind(("127.0.0.1", 0))
            self._listener.listen(1)
        except OSError as error:
            self.close()
            raise SourceError(f"no port can be opened on this computer ({error.strerror})") from error
        self.port: int = self._listener.getsockname()[1]

    def frame(self, timeout_s: float) -> Pixels | None:
        """The newest picture that is complete, RGB uint8 [H, W, 3]; None if none came in time.

        Raises:
            StreamEndedError: nothing more will come.
        """
        deadline_s = self._clock.now_s() + timeout_s
        jpeg = None
        while jpeg is None:
            left_s = deadline_s - self._clock.now_s()
            if left_s <= 0 or not self._receive(left_s):
                return None
            jpeg = self._newest()
        return self._decoded(jpeg)

    def drain(self) -> None:
        """Take what has arrived and forget it."""
        try:
            while self._receive(0.0):
                self._buffer.clear()
        except StreamEndedError:
            return

    def close(self) -> None:
        """Hang up; may be called twice."""
        self._listener.close()
        if self._sender is not None:
            self._sender.close()

    def _receive(self, timeout_s: float) -> bool:
        """Wait for more bytes and take them; False if none came."""
        if self._sender is None:
            return self._accept(timeout_s)
        self._sender.settimeout(timeout_s)
        try:
            data = self._sender.recv(CHUNK_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise StreamEndedError(error.strerror or str(error)) from error
        if not data:
            raise StreamEndedError("it has hung up")
        self._buffer += data
        if len(self._buffer) > BUFFER_BYTES_MAX:
            raise StreamEndedError("it sends something else than pictures")
        return True

    def _accept(self, timeout_s: float) -> bool:
        self._listener.settimeout(timeout_s)
        try:
            self._sender, _ = self._listener.accept()
        except (TimeoutError, BlockingIOError):
            return False
        return True

    def _newest(self) -> bytes | None:
        """Cut the complete pictures off the buffer and return the last of them."""
        jpeg = None
        while (part := _first_part(self._buffer)) is not None:
            start, end = part
            if end > len(self._buffer):
                break
            jpeg = bytes(self._buffer[start:end])
            del self._buffer[:end]
        return jpeg

    def _decoded(self, jpeg: bytes) -> Pixels | None:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        if self._decoder is None:
            self._decoder = av.CodecContext.create("mjpeg", "r")
        try:
            pictures = self._decoder.decode(av.Packet(jpeg))
        except av.FFmpegError:
            # A damaged picture; the next one is complete in itself.
            return None
        for picture in pictures:
            # JPEG is by convention BT.601, but OBS puts its BT.709 into it unconverted.
            return picture.to_ndarray(
                format="rgb24", src_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.JPEG
            ).astype(np.uint8, copy=False)
        return None


def _first_part(buffer: bytearray) -> tuple[int, int] | None:
    """Where the first picture begins and ends; the end may be yet to come. None while its head is incomplete.

    Raises:
        StreamEndedError: the head names no length.
    """
    head_end = buffer.find(HEAD_END)
    if head_end < 0:
        return None
    head = bytes(buffer[:head_end])
    lengths = [line[len(LENGTH) :] for line in head.lower().splitlines() if line.startswith(LENGTH)]
    if len(lengths) != 1 or not lengths[0].strip().isdigit():
        raise StreamEndedError("it sends something else than pictures")
    start = head_end + len(HEAD_END)
    return start, start + int(lengths[0])
