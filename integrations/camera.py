"""Webcams through OpenCV: chosen by name or number, watched while they run, found again when they come back.

A camera that is lost is no error once the source is open: `read` answers None, `status` says why, and the camera is
looked for by its name, at first often, then every 10 s. Knows nothing of the slate that is shown meanwhile.
"""

import sys
import threading
from typing import Any, Protocol

from instantvision.integrations import devices
from instantvision.integrations.backoff import Backoff
from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.integrations.devices import Device
from instantvision.pipeline.errors import SourceError
from instantvision.pipeline.frames import Frame, Origin, Pixels

# A running camera that gives nothing for that long is taken for lost; exposure control of a starting one takes longer.
STALE_S, STARTING_S = 2.0, 5.0
# Longest single wait inside OpenCV, so that close() is answered soon.
SLICE_S = 0.1


class CameraLostError(Exception):
    """The open camera stopped working; the message says how."""


class Capture(Protocol):
    """An open camera."""

    def frame(self, timeout_s: float) -> Pixels | None:
        """The next picture, RGB uint8 [H, W, 3], or None if none came in time.

        Raises:
            CameraLostError: it will give no more.
        """

    def release(self) -> None:
        """Give the device back."""


class OpenCVSource:
    """A webcam.

    Args:
        selector: None for the first camera, a number (/dev/videoN, or the system's order), or (part of) a name.
        size: width and height in pixels to ask for; the camera answers with what it has nearest.
        fps: rate to ask for.
        clock: what frames are stamped and waits are measured with.
    """

    def __init__(
        self,
        selector: str | int | None = None,
        *,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = "webcam" if selector is None else f"webcam:{selector}"
        self.status = "not open yet"
        self._selector, self._size, self._fps, self._clock = selector, size, fps, clock
        self._device: Device | None = None
        self._capture: Capture | None = None
        self._backoff = Backoff()
        # The last moment all was well, or of the last attempt: what waits are counted from.
        self._since_s = 0.0
        self._patience_s = STARTING_S
        self._index = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def open(self) -> None:
        self._device = find_camera(self._selector, devices.list_cameras())
        self._start(self._device)
        self.status = "starting"

    def read(self, timeout_s: float) -> Frame | None:
        deadline_s = self._clock.now_s() + timeout_s
        with self._lock:
            while not self._stop.is_set():
                left_s = max(deadline_s - self._clock.now_s(), 0.0)
                pixels = self._step(left_s)
                if pixels is not None:
                    return self._framed(pixels)
                if self._clock.now_s() >= deadline_s:
                    return None
        return None

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            self._release()
        self.status = "closed"

    def _step(self, left_s: float) -> Pixels | None:
        """Wait at most `left_s` for a picture, or for the time to look for the camera again."""
        if self._capture is None:
            self._reconnect(left_s)
            return None
        try:
            pixels = self._capture.frame(min(left_s, SLICE_S))
        except CameraLostError as error:
            self._lose(str(error))
            return None
        age_s = self._clock.now_s() - self._since_s
        if pixels is None and age_s > self._patience_s:
            self._lose(f"no picture for {age_s:.0f} s")
        return pixels

    def _framed(self, pixels: Pixels) -> Frame:
        self._since_s, self._patience_s, self.status = self._clock.now_s(), STALE_S, ""
        frame = Frame(pixels=pixels, index=self._index, captured_s=self._since_s, origin=Origin.RAW)
        self._index += 1
        return frame

    def _lose(self, reason: str) -> None:
        # Released before it is looked for: a dead handle keeps its number, and the camera comes back under another.
        self._release()
        self._since_s = self._clock.now_s()
        self.status = f"lost ({reason}), looking for it"

    def _reconnect(self, left_s: float) -> None:
        now_s = self._clock.now_s()
        due_s = self._since_s + self._backoff.delay_s(now_s)
        if now_s + left_s < due_s:
            self._clock.wait(self._stop, left_s)
            return
        if self._clock.wait(self._stop, due_s - now_s):
            return
        self._since_s = self._clock.now_s()
        self._backoff.record(self._since_s)
        try:
            self._device = self._find_again()
            self._start(self._device)
        except SourceError as error:
            self.status = str(error)

    def _find_again(self) -> Device:
        """The camera of the same name, at best in the same place: numbers change when a camera is plugged in again."""
        lost, present = self._device, devices.list_cameras()
        if lost is None:
            return find_camera(self._selector, present)
        namesakes = [device for device in present if device.name == lost.name]
        if not namesakes and present == () and lost.driver == "":
            return lost
        if not namesakes:
            raise SourceError(f"{lost.name} is not connected: plug it in again")
        return min(namesakes, key=lambda device: device.path != lost.path)

    def _start(self, device: Device) -> None:
        self._capture = open_capture(device, self._size, self._fps)
        self._since_s, self._patience_s = self._clock.now_s(), STARTING_S

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def find_camera(
    selector: str | int | None, present: tuple[Device, ...], platform: str = sys.platform
) -> Device:
    """The camera a user means.

    Args:
        selector: as for OpenCVSource; digits are a number.
        present: the cameras there are.
        platform: sys.platform.

    Raises:
        SourceError: there is none of that name or number; names those that exist.
    """
    text = "" if selector is None else str(selector).strip()
    if not text and present:
        return present[0]
    if text.isdecimal():
        found = tuple(device for device in present if device.index == int(text))
    else:
        found = devices.matching(text, present) if text else ()
    if found:
        return found[0]
    if platform != "linux" and not present and (not text or text.isdecimal()):
        # Cameras cannot be listed without the optional package: take the number at its word.
        index = int(text or 0)
        return Device(name=f"camera {index}", path=str(index), index=index, driver="")
    if not present:
        raise SourceError(
            f"no camera found for webcam{':' if text else ''}{text}: connect one, or use --source test-pattern"
        )
    names = ", ".join(f"{device.name} ({device.path})" for device in present)
    raise SourceError(f"no camera is {text!r}, there is {names}: choose with --source webcam:NAME")


def open_capture(
    device: Device, size: tuple[int, int] | None, fps: float | None, platform: str = sys.platform
) -> Capture:
    """Open a camera with OpenCV.

    Raises:
        SourceError: busy, forbidden or gone, told apart by asking the device itself.
    """
    import cv2

    # Failures are reported by us, in one line; OpenCV's own lines would run through the status line.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    backends = {"linux": cv2.CAP_V4L2, "win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}
    capture = cv2.VideoCapture(device.index, backends.get(platform, cv2.CAP_ANY))
    if not capture.isOpened():
        capture.release()
        raise SourceError(_why_not(device, platform))
    if size is not None and platform != "darwin":
        # Uncompressed, most webcams give 5 to 10 pictures a second above 640x480.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    if size is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    return _OpenCVCapture(capture, waits=platform == "linux")


class _OpenCVCapture:
    """A cv2.VideoCapture; `waits`: its backend can wait for a picture with a time-out (V4L2 only)."""

    def __init__(self, capture: Any, *, waits: bool) -> None:
        self._capture, self._waits = capture, waits

    def frame(self, timeout_s: float) -> Pixels | None:
        import cv2

        try:
            # A time-out of 0 would mean for ever.
            if (
                self._waits
                and not cv2.VideoCapture.waitAny([self._capture], max(int(timeout_s * 1e9), 1_000_000))[0]
            ):
                return None
            good, picture = self._capture.retrieve() if self._waits else self._capture.read()
        except cv2.error as error:
            raise CameraLostError("the device reports an error") from error
        if not good:
            raise CameraLostError("reading failed")
        pixels: Pixels = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        return pixels

    def release(self) -> None:
        self._capture.release()


def _why_not(device: Device, platform: str) -> str:
    """Why OpenCV could not open a camera that was listed a moment ago."""
    where = device.name if device.path == str(device.index) else f"{device.name} ({device.path})"
    if platform != "linux":
        return f"webcam {where} cannot be opened: connect it, close other programs that use it, and allow camera access"
    if not device.accessible:
        return f"webcam {where} may not be opened by this user: {devices.ADD_TO_GROUP}"
    if devices.is_busy(device.path):
        return f"webcam {where} is in use by another program: close that, or choose another with --source webcam:NAME"
    return f"webcam {where} cannot be opened: connect it again, or choose another with --source webcam:NAME"
