"""Video devices of Linux: which there are, what they can do, whether somebody uses them.

Reads /sys/class/video4linux and asks the devices themselves with the four ioctls it needs; standard library only.
Structures and numbers: Linux UAPI, include/uapi/linux/videodev2.h.
"""

import errno
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock

SYSFS, DEV = Path("/sys/class/video4linux"), Path("/dev")

VIDIOC_QUERYCAP = 0x80685600
VIDIOC_G_FMT = 0xC0D05604
VIDIOC_REQBUFS = 0xC0145608
VIDIOC_STREAMON = 0x40045612

BUFFER_CAPTURE, BUFFER_OUTPUT = 1, 2
MEMORY_MMAP = 1
CAPTURE_BITS = 0x1 | 0x1000
OUTPUT_BITS = 0x2 | 0x2000
MEMORY_TO_MEMORY_BITS = 0x4000 | 0x8000

# A writer of 6 pictures a second and more is noticed; what a device holds from one that has left are 2 at most.
FED_WITHIN_S, FED_POLL_S, STALE_PICTURES = 0.5, 0.02, 2

# struct v4l2_capability: driver, card, bus_info, version, capabilities, device_caps, reserved
_CAPABILITY = struct.Struct("=16s32s32s3I12x")
# struct v4l2_format: type, padding, then a union of 200 bytes that starts with width and height
_FORMAT = struct.Struct("=I4x2I192x")
_REQUEST_BUFFERS = struct.Struct("=5I")


@dataclass(frozen=True, kw_only=True)
class V4L2Device:
    """One /dev/videoN.

    Args:
        index: N.
        path: the device file.
        label: what the driver calls the device (`card`), or the kernel's name where it may not be asked.
        name: the kernel's name for the node, in sysfs.
        driver: `uvcvideo`, `vivid`, `v4l2 loopback`; empty where the device may not be asked.
        capture: pictures can be read from it.
        output: pictures can be written to it.
        loopback: it is a software device that hands written pictures on to its readers.
        accessible: this user may open it.
    """

    index: int
    path: Path
    label: str
    name: str
    driver: str
    capture: bool
    output: bool
    loopback: bool
    accessible: bool


def list_devices(sysfs: Path = SYSFS, dev: Path = DEV) -> tuple[V4L2Device, ...]:
    """All video devices in the order of their numbers; nodes that only carry metadata show neither ability."""
    entries = sorted(
        (int(match[1]), entry)
        for entry in _entries(sysfs)
        if (match := re.fullmatch(r"video(\d+)", entry.name))
    )
    devices = (_describe(index, entry, dev / entry.name) for index, entry in entries)
    return tuple(device for device in devices if device is not None)


def is_busy(path: Path) -> bool:
    """Whether another program streams from this capture device: asks for one buffer and gives it back.

    Raises:
        OSError: the device cannot be opened at all.
    """
    with _opened(path) as handle:
        try:
            _ioctl(handle, VIDIOC_REQBUFS, _REQUEST_BUFFERS.pack(1, BUFFER_CAPTURE, MEMORY_MMAP, 0, 0))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False


def is_fed(path: Path, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Whether somebody writes pictures to this loopback: looks for new ones for half a second.

    v4l2loopback 0.12.7 shows a writer as long as a reader stays, also after the writer has left. It lets anybody read a
    picture; later versions refuse that while they stream, and can be taken at their word.

    Raises:
        OSError: the device cannot be opened.
    """
    never, until_s, pictures = threading.Event(), clock.now_s() + FED_WITHIN_S, 0
    with _opened(path) as handle:
        while clock.now_s() < until_s and pictures <= STALE_PICTURES:
            try:
                # One byte takes the whole picture off the queue.
                os.read(handle, 1)
                pictures += 1
            except BlockingIOError:
                clock.wait(never, FED_POLL_S)
            except OSError:
                return True
    return pictures > STALE_PICTURES


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels that a reader of this device is given.

    Raises:
        OSError: the device is gone or has no capture format.
    """
    with _opened(path) as handle:
        answer = _ioctl(handle, VIDIOC_G_FMT, _FORMAT.pack(BUFFER_CAPTURE, 0, 0))
    _, width, height = _FORMAT.unpack(answer)
    return width, height


def release_stuck_output(path: Path) -> None:
    """Make a v4l2loopback writable again that shows neither capture nor output after its last writer left.

    v4l2loopback 0.12.7 with exclusive_caps=1 forgets to announce its output again on close; starting an output stream
    without buffers makes it do so. Only for a device in that state: on another one a second writer gets in.

    Raises:
        OSError: the device cannot be opened.
    """
    with _opened(path) as handle:
        try:
            _ioctl(handle, VIDIOC_STREAMON, struct.pack("=i", BUFFER_OUTPUT))
        except OSError:
            # Refused for want of buffers, as it must be: the side effect of the attempt is what is needed.
            return


def _entries(sysfs: Path) -> list[Path]:
    return list(sysfs.iterdir()) if sysfs.is_dir() else []


def _describe(index: int, entry: Path, path: Path) -> V4L2Device | None:
    """One device from its sysfs entry and its own answer; None if it vanished meanwhile."""
    virtual = "virtual" in entry.resolve().parts
    try:
        name = (entry / "name").read_text(encoding="utf-8", errors="replace").strip()
        driver, label, abilities = _capabilities(path)
    except PermissionError:
        return V4L2Device(
            index=index,
            path=path,
            label=name,
            name=name,
            driver="",
            capture=not virtual,
            output=virtual,
            loopback=virtual,
            accessible=False,
        )
    except OSError:
        return None
    codec = bool(abilities & MEMORY_TO_MEMORY_BITS)
    return V4L2Device(
        index=index,
        path=path,
        label=label or name,
        name=name,
        driver=driver,
        capture=bool(abilities & CAPTURE_BITS) and not codec,
        output=bool(abilities & OUTPUT_BITS) and not codec,
        loopback="loopback" in driver.lower(),
        accessible=True,
    )


def _capabilities(path: Path) -> tuple[str, str, int]:
    """Driver, label and capability bits of this node (not of the whole device)."""
    with _opened(path) as handle:
        answer = _ioctl(handle, VIDIOC_QUERYCAP, bytes(_CAPABILITY.size))
    driver, card, _, _, _, device_caps = _CAPABILITY.unpack(answer)
    return _text(driver), _text(card), device_caps


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace").strip()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _ioctl(handle: int, request: int, argument: bytes) -> bytes:
    # fcntl does not exist on Windows, where this module may still be imported.
    import fcntl

    return fcntl.ioctl(handle, request, argument)
