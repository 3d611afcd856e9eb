"""Cameras and virtual cameras of this machine, by name, on Linux, Windows and macOS.

Opens no stream; knows nothing of how a camera is read or a virtual camera is written.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from instantvision.integrations import v4l2

OWN_LABEL = "Instant Vision"
ADD_TO_GROUP = "sudo usermod -aG video $USER, then log in again"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One camera or virtual camera.

    Args:
        name: what the user sees and types.
        path: the device file on Linux, the index elsewhere.
        index: the number OpenCV opens it by; -1 where it has none.
        driver: kernel driver or programming interface.
        aliases: other names it answers to.
        busy: another program uses it; False where nobody asked.
        accessible: this user may open it.
    """

    name: str
    path: str
    index: int
    driver: str
    aliases: tuple[str, ...] = ()
    busy: bool = False
    accessible: bool = True


def normalised(name: str) -> str:
    """Names are compared without regard to case, and module options cannot hold the blanks of a label."""
    return " ".join(name.replace("_", " ").lower().split())


def is_own(name: str) -> bool:
    """Whether a device of this name is the one we write to."""
    return normalised(name).startswith(normalised(OWN_LABEL))


def matching(name: str, devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Devices of exactly this name, or failing that those whose name contains it; case does not matter."""
    wanted = normalised(name)
    known = [(device, [normalised(text) for text in (device.name, *device.aliases)]) for device in devices]
    exact = tuple(device for device, names in known if wanted in names or device.path == name)
    return exact or tuple(device for device, names in known if any(wanted in text for text in names))


def list_cameras(platform: str = sys.platform, *, ask_busy: bool = False) -> tuple[Device, ...]:
    """Cameras that pictures can be read from; outputs of virtual cameras, ours among them, are left out."""
    if platform == "linux":
        cameras = [
            each for each in v4l2.list_devices() if each.capture and not (each.output or each.loopback)
        ]
        return tuple(_from_v4l2(each, busy=ask_busy and is_busy(str(each.path))) for each in cameras)
    return tuple(
        device for device in _enumerated(platform) if not is_own(device.name) and not _is_obs_output(device)
    )


def list_virtual_cameras(platform: str = sys.platform) -> tuple[Device, ...]:
    """Loopback devices of Linux; elsewhere the one OBS camera cannot be told from a missing one without opening it."""
    if platform != "linux":
        return ()
    loopbacks = [each for each in v4l2.list_devices() if each.loopback]
    return tuple(_from_v4l2(each, busy=has_writer(each)) for each in loopbacks)


def has_writer(loopback: v4l2.V4L2Device) -> bool:
    """Whether another program writes to this virtual camera; False where it cannot be asked."""
    # With exclusive_caps a loopback shows only its reading side while somebody writes to it.
    if loopback.output or not loopback.capture:
        return False
    try:
        return v4l2.is_fed(loopback.path)
    except OSError:
        return False


def is_busy(path: str) -> bool:
    """Whether another program reads from this camera; False where it cannot be asked."""
    try:
        return v4l2.is_busy(Path(path))
    except OSError:
        return False


def _from_v4l2(device: v4l2.V4L2Device, *, busy: bool) -> Device:
    return Device(
        name=device.label,
        path=str(device.path),
        index=device.index,
        driver=device.driver,
        aliases=(device.name,),
        busy=busy,
        accessible=device.accessible,
    )


def _enumerated(platform: str) -> tuple[Device, ...]:
    """Cameras of Windows and macOS in the order of OpenCV's numbers."""
    import cv2

    backend, driver = (
        (cv2.CAP_DSHOW, "DirectShow") if platform == "win32" else (cv2.CAP_AVFOUNDATION, "AVFoundation")
    )
    try:
        from cv2_enumerate_cameras import enumerate_cameras
    except ImportError:
        # Without the package cameras have no names: webcam and webcam:INDEX still work.
        return ()
    return tuple(
        Device(name=info.name, path=str(info.index), index=info.index, driver=driver)
        for info in enumerate_cameras(backend)
    )


def _is_obs_output(device: Device) -> bool:
    return normalised(device.name) == "obs virtual camera"
