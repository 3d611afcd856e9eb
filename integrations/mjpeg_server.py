"""Our pictures for OBS on a computer without a virtual camera: MJPEG over HTTP, for an OBS media source.

OBS opens http://127.0.0.1:PORT/v.mjpg. Only this computer is served, and no web page: a request must name exactly our
host, and must not come out of a page of another site. Knows nothing of how the media source is set up (obs_setup.py).
"""

import logging
import socket
import sys
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from instantvision.integrations.base import require_sendable
from instantvision.integrations.mjpeg_address import DEFAULT_PORT, HOST, PATH
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Frame, Pixels

log = logging.getLogger(__name__)

BOUNDARY = "frame"
# Beyond that the eye sees no gain, and 720p stays below 200 kB a picture.
QUALITY = 90
# OBS is one reader, a person's player a second one; each is a thread.
READERS_MAX = 8
# Less than two pictures: a reader that falls behind misses pictures instead of seeing them late.
SEND_BUFFER_BYTES = 256 * 1024
# How often a waiting reader looks whether the sink has been closed, and how long a stuck one is kept.
POLL_S, STUCK_S = 0.25, 5.0


class MjpegSink:
    """Shows the frames at http://127.0.0.1:PORT/v.mjpg, to as many readers as come, at no cost while there are none.

    Args:
        port: 0 for a free one.
    """

    def __init__(self, port: int = DEFAULT_PORT) -> None:
        self.name = "obs" if port == DEFAULT_PORT else f"mjpeg:{port}"
        self.port = port
        self._size: Size | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    # The reader is shown every picture when it comes: no rate is announced.
    def open(self, size: Size, fps: float) -> None:  # noqa: ARG002
        try:
            self._server = _Server((HOST, self.port), _Handler)
        except OSError as error:
            raise SinkError(
                f"port {self.port} of {HOST} cannot be used ({error.strerror}): choose another with --sink mjpeg:PORT, "
                "and tell OBS with instantvision obs setup --port PORT"
            ) from error
        self.port = self._server.server_address[1]
        self._size = size
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="mjpeg", daemon=True
        )
        self._thread.start()

    def send(self, frame: Frame) -> None:
        require_sendable(frame, self._size)
        if self._server is not None:
            self._server.newest.put(frame.pixels)

    def close(self) -> None:
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        self._size = None
        if server is None or thread is None:
            return
        server.newest.close()
        server.shutdown()
        server.server_close()
        thread.join()


class _Picture:
    """A picture that is compressed once, by the first reader that wants it."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    @cached_property
    def jpeg(self) -> bytes:
        """The picture as JPEG."""
        import cv2

        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(self._pixels, cv2.COLOR_RGB2BGR), options)
        return data.tobytes()


class _Newest:
    """The newest picture, for any number of readers; unlike Latest, taking it leaves it for the others."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._picture: _Picture | None = None
        self._number = 0
        self.closed = False

    def put(self, pixels: Pixels) -> None:
        """Replace the picture."""
        with self._condition:
            self._picture, self._number = _Picture(pixels), self._number + 1
            self._condition.notify_all()

    def after(self, number: int, timeout_s: float) -> tuple[int, _Picture | None]:
        """The newest picture and its number, once there is a newer one than `number`; None if none came in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._number != number or self.closed, timeout_s)
            fresh = self._number != number and not self.closed
            return self._number, self._picture if fresh else None

    def close(self) -> None:
        """Send the readers home."""
        with self._condition:
            self.closed = True
            self._condition.notify_all()


class _Server(ThreadingHTTPServer):
    """The listening socket and what its readers share."""

    daemon_threads = True
    # A reader may be stuck in a send; the sink's end does not wait for it.
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.newest = _Newest()
        self.places = threading.BoundedSemaphore(READERS_MAX)
        super().__init__(address, handler)

    # The error says it all.
    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Report what is no broken connection: readers go away at any time, OBS whenever its source is hidden."""
        if not isinstance(sys.exception(), OSError):
            log.exception("the picture server failed")


class _Handler(BaseHTTPRequestHandler):
    """One reader."""

    server: _Server
    timeout = STUCK_S
    # The default tells the versions of Python and of its server to everybody.
    server_version, sys_version = "InstantVision", ""

    def do_GET(self) -> None:
        """Pictures for as long as the sink is open."""
        status = self._refusal()
        if status is not None:
            self.send_error(status)
            return
        if not self.server.places.acquire(blocking=False):
            self.send_error(503)
            return
        try:
            self._stream()
        except OSError:
            # The reader is gone, or did not take anything for STUCK_S.
            self.close_connection = True
        finally:
            self.server.places.release()

    # The parameter's name is the base class's.
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Nothing: requests on standard error would run through the status line."""

    def _refusal(self) -> int | None:
        """The HTTP status to refuse with; None for a good request."""
        port = self.server.server_address[1]
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            return 403
        # Players send neither header, browsers send at least one of them out of any page that is not ours.
        site = self.headers.get("Sec-Fetch-Site", "none")
        if site not in ("none", "same-origin") or "Origin" in self.headers:
            return 403
        return None if self.path == PATH else 404

    def _stream(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.send_response(200)
        for key, value in (
            ("Content-Type", f"multipart/x-mixed-replace;boundary={BOUNDARY}"),
            ("Cache-Control", "no-store"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(key, value)
        self.end_headers()
        number, newest = 0, self.server.newest
        while not newest.closed:
            number, picture = newest.after(number, POLL_S)
            if picture is not None:
                self.wfile.write(_part(picture.jpeg))


def _part(jpeg: bytes) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode("ascii") + jpeg + b"\r\n"
