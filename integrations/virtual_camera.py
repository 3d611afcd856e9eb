"""The virtual camera that OBS, Zoom, Meet or Discord see, through pyvirtualcam.

On Linux that is a v4l2loopback device, chosen by its label and never by its number; on Windows and macOS it is the
camera that OBS brings. pyvirtualcam only prints a failed write to stderr: on Linux the device is therefore asked once a
second whether it still shows pictures of our size; elsewhere such a failure goes unnoticed.
"""

import sys
from pathlib import Path
from typing import Any

from instantvision.integrations import devices, v4l2
from instantvision.integrations.base import require_sendable
from instantvision.integrations.virtual_camera_driver import install_hint
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Frame


class VirtualCameraSink:
    """A virtual camera.

    Args:
        name: (part of) its label, or its path; None takes "Instant Vision", else one nobody uses, OBS's own last.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = "virtual-camera" if name is None else f"virtual-camera:{name}"
        self.device = ""
        self._wanted = name
        self._path: Path | None = None
        self._size: Size | None = None
        self._camera: Any = None
        self._sent, self._check_every = 0, 1

    def open(self, size: Size, fps: float) -> None:
        target: str | None = self._wanted
        self.device = self._wanted or "OBS Virtual Camera"
        if sys.platform == "linux":
            chosen = choose(self._wanted, v4l2.list_devices())
            self._path, self.device = chosen.path, described(chosen)
            target = str(chosen.path)
            _prepare(chosen)
        self._camera = _start(target, size, fps, self.device)
        self._size, self._sent, self._check_every = size, 0, max(round(fps), 1)

    def send(self, frame: Frame) -> None:
        require_sendable(frame, self._size)
        try:
            self._camera.send(frame.pixels)
        except RuntimeError as error:
            raise SinkError(f"virtual camera {self.device} took no picture: {_first_line(error)}") from error
        if self._path is not None and self._sent % self._check_every == 0:
            self._check(self._path)
        self._sent += 1

    def close(self) -> None:
        camera, self._camera, self._size = self._camera, None, None
        if camera is not None:
            camera.close()

    def _check(self, path: Path) -> None:
        """After a write: the device must be there, and show the size we write.

        v4l2loopback 0.15 keeps the size of an attached reader without a word, and that reader then sees garbage.
        """
        try:
            width, height = v4l2.picture_size(path)
        except OSError as error:
            raise SinkError(
                f"virtual camera {self.device} is gone ({error.strerror}): {install_hint()}"
            ) from error
        if self._size is not None and (width, height) != (self._size.width, self._size.height):
            raise SinkError(
                f"virtual camera {self.device} is held at {width}x{height} by a program that reads it, "
                f"expected {self._size}: close that program, or use --size {width}x{height}"
            )


def choose(name: str | None, present: tuple[v4l2.V4L2Device, ...]) -> v4l2.V4L2Device:
    """The loopback device to write to.

    Args:
        name: as for VirtualCameraSink.
        present: the video devices there are.

    Raises:
        SinkError: there is none, or none of that name; says how to get one or which exist.
    """
    loopbacks = [device for device in present if device.loopback]
    if not loopbacks:
        raise SinkError(f"no virtual camera found: {install_hint()}")
    if name is not None:
        return _named(name, loopbacks)
    own = [device for device in loopbacks if devices.is_own(device.label)]
    strangers = [device for device in loopbacks if not _of_obs(device)]
    # A device in use is still better than none: opening it says who must be closed.
    for group in (
        own,
        [each for each in strangers if _free(each)],
        [each for each in loopbacks if _free(each)],
    ):
        if group:
            return min(group, key=lambda device: not _free(device))
    return loopbacks[0]


def described(device: v4l2.V4L2Device) -> str:
    return f"{device.label} ({device.path})"


def _named(name: str, loopbacks: list[v4l2.V4L2Device]) -> v4l2.V4L2Device:
    wanted = devices.normalised(name)
    labels = {device: devices.normalised(device.label) for device in loopbacks}
    exact = [device for device in loopbacks if labels[device] == wanted or str(device.path) == name]
    found = exact or [device for device in loopbacks if wanted in labels[device]]
    if not found:
        names = ", ".join(described(device) for device in loopbacks)
        raise SinkError(
            f"no virtual camera is {name!r}, there is {names}: choose with --sink virtual-camera:NAME"
        )
    return min(found, key=lambda device: not _free(device))


def _of_obs(device: v4l2.V4L2Device) -> bool:
    return devices.normalised(device.label).startswith("obs")


def _free(device: v4l2.V4L2Device) -> bool:
    """Nobody writes to it: with exclusive_caps a device that only shows its reading side has a writer."""
    return device.output or not device.capture


def _prepare(device: v4l2.V4L2Device) -> None:
    """Refuse what cannot be written to with a reason, and free a device that its last writer left stuck."""
    if not device.accessible:
        raise SinkError(
            f"virtual camera {described(device)} may not be opened by this user: {devices.ADD_TO_GROUP}"
        )
    if devices.has_writer(device):
        raise SinkError(_in_use(described(device)))
    if not device.output:
        try:
            v4l2.release_stuck_output(device.path)
        except OSError as error:
            raise SinkError(
                f"virtual camera {described(device)} cannot be opened: {error.strerror}"
            ) from error


def _start(target: str | None, size: Size, fps: float, shown: str) -> Any:
    """A pyvirtualcam.Camera on the device.

    Raises:
        SinkError: with pyvirtualcam's reason in our words where it is known.
    """
    try:
        import pyvirtualcam
    except ImportError as error:
        raise SinkError(f"no virtual camera support ({error}): pip install pyvirtualcam") from error
    try:
        return pyvirtualcam.Camera(
            size.width, size.height, fps, device=target, fmt=pyvirtualcam.PixelFormat.RGB
        )
    except RuntimeError as error:
        raise SinkError(_why_not(str(error), shown)) from error


def _why_not(reason: str, shown: str) -> str:
    if "missing permissions" in reason:
        return f"virtual camera {shown} may not be opened by this user: {devices.ADD_TO_GROUP}"
    if any(
        words in reason
        for words in ("already in use", "resource busy", "not a video output", "is already started")
    ):
        return _in_use(shown)
    if sys.platform == "linux" and "does not exist" not in reason and "No v4l2 loopback" not in reason:
        return f"virtual camera {shown} cannot be opened: {_first_line(reason)}"
    return f"no virtual camera found: {install_hint()}"


def _in_use(shown: str) -> str:
    choice = "close that, or choose another with --sink virtual-camera:NAME"
    return f"virtual camera {shown} is in use by another program: {choice}"


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
