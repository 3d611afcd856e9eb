"""The two ways of getting pictures out of OBS, each behind the same two methods.

Knows nothing of what happens when OBS is lost (obs_source.py).
"""

import base64
import math
import threading
from typing import Any, Protocol

import numpy as np

from instantvision.integrations.clock import Clock
from instantvision.integrations.mjpeg_stream import MjpegListener, StreamEndedError
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_link import ObsLink
from instantvision.integrations.obs_profile import StreamProfile
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import InstantVisionError, SourceError
from instantvision.pipeline.frames import Pixels

# A JPEG of this quality shows no blocks after the engine, and OBS makes it twice as fast as a PNG.
QUALITY = 90
# Largest side that obs-websocket takes.
SIDE_MAX_PX = 4096


class CaptureLostError(Exception):
    """No more pictures come this way; the message says why."""


class Capture(Protocol):
    """A running way of getting pictures."""

    def frame(self, timeout_s: float) -> Pixels | None:
        """The next picture, RGB uint8 [H, W, 3]; None if none came in time.

        Raises:
            CaptureLostError: it will give no more.
        """

    def release(self) -> None:
        """Put everything back.

        Raises:
            InstantVisionError: OBS cannot be reached.
        """


class StreamCapture:
    """OBS's program through its FFmpeg output.

    Raises:
        SourceError: OBS has an output of its own running, or does not start ours.
    """

    def __init__(self, link: ObsLink, changes: Journal, clock: Clock) -> None:
        self._listener = MjpegListener(clock)
        self._profile = StreamProfile(link, changes)
        try:
            self._profile.start(self._listener.port)
        except BaseException:
            self._listener.close()
            raise

    def frame(self, timeout_s: float) -> Pixels | None:
        try:
            return self._listener.frame(timeout_s)
        except StreamEndedError as error:
            raise CaptureLostError(str(error)) from error

    def release(self) -> None:
        try:
            self._profile.stop(self._listener.drain)
        finally:
            self._listener.close()


class ScreenshotCapture:
    """One picture after the other over the websocket, never faster than OBS draws.

    Raises:
        SourceError: OBS has no source of that name.
    """

    def __init__(self, link: ObsLink, of: str | None, size: Size | None, clock: Clock) -> None:
        self._link, self._of, self._size, self._clock = link, of, size, clock
        video = link.request("GetVideoSettings")
        self._period_s = video["fpsDenominator"] / video["fpsNumerator"]
        self._due_s = clock.now_s()
        self._width_px: int | None = None
        self._program = ""
        self._unsubscribe = link.on("CurrentProgramSceneChanged", self._program_changed)
        self._never = threading.Event()
        if of is None:
            self._program = link.request("GetCurrentProgramScene")["currentProgramSceneName"]
        else:
            require_source(link, of)

    def frame(self, timeout_s: float) -> Pixels | None:
        wait_s = self._due_s - self._clock.now_s()
        if wait_s > timeout_s:
            self._clock.wait(self._never, timeout_s)
            return None
        self._clock.wait(self._never, max(wait_s, 0.0))
        self._due_s = max(self._due_s + self._period_s, self._clock.now_s())
        try:
            pixels = self._screenshot()
        except InstantVisionError as error:
            raise CaptureLostError(str(error)) from error
        if self._width_px is None:
            self._width_px = covering_width(pixels.shape[1], pixels.shape[0], self._size)
        return pixels

    def release(self) -> None:
        self._unsubscribe()

    def _screenshot(self) -> Pixels:
        wanted: dict[str, Any] = {
            "sourceName": self._of or self._program,
            "imageFormat": "jpg",
            "imageCompressionQuality": QUALITY,
        }
        if self._width_px is not None:
            wanted["imageWidth"] = self._width_px
        data = self._link.request("GetSourceScreenshot", wanted)["imageData"]
        return _decoded(base64.b64decode(data.partition(",")[2]))

    def _program_changed(self, data: dict[str, Any]) -> None:
        self._program = data["sceneName"]


def require_source(link: ObsLink, name: str) -> None:
    """Make sure that OBS has a source or scene of that name.

    Raises:
        SourceError: it has not; names those that exist.
    """
    names = [each["inputName"] for each in link.request("GetInputList")["inputs"]]
    names += [each["sceneName"] for each in link.request("GetSceneList")["scenes"]]
    if name not in names:
        raise SourceError(
            f"OBS has no source {name!r}, there is {', '.join(names)}: choose with --source obs:NAME"
        )


def covering_width(width: int, height: int, size: Size | None) -> int | None:
    """Width to ask for, so that a picture of width x height still covers `size`; None to leave it as it is."""
    if size is None:
        return None
    scale = max(size.width / width, size.height / height)
    return None if scale >= 1 else min(math.ceil(width * scale), SIDE_MAX_PX)


def _decoded(jpeg: bytes) -> Pixels:
    import cv2

    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise CaptureLostError("OBS has sent a damaged picture")
    return picture.astype(np.uint8, copy=False)
