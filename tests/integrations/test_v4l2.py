import errno
import os
import sys
from pathlib import Path

import pytest

from instantvision.integrations import devices, v4l2
from instantvision.integrations.v4l2 import V4L2Device

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="device files are no thing of Windows")

CAPTURE, OUTPUT, METADATA, CODEC = 0x1, 0x2, 0x800000, 0x8000


class Kernel:
    """/sys/class/video4linux and what the devices answer."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "class", root / "dev"
        self.sysfs.mkdir()
        self.dev.mkdir()
        self.answers: dict[str, tuple[str, str, int] | OSError] = {}

    def add(self, number: int, name: str, answer: tuple[str, str, int] | OSError, bus: str = "pci") -> None:
        entry = self.sysfs.parent / "devices" / bus / f"video{number}"
        entry.mkdir(parents=True)
        (entry / "name").write_text(name + "\n")
        (self.sysfs / f"video{number}").symlink_to(entry)
        self.answers[f"video{number}"] = answer

    def capabilities(self, path: Path) -> tuple[str, str, int]:
        answer = self.answers[path.name]
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)
    monkeypatch.setattr(v4l2, "_capabilities", kernel.capabilities)
    listed = v4l2.list_devices
    monkeypatch.setattr(v4l2, "list_devices", lambda: listed(kernel.sysfs, kernel.dev))
    return kernel


def furnish(kernel: Kernel) -> None:
    kernel.add(10, "Instant_Vision", ("v4l2 loopback", "Instant_Vision", OUTPUT), bus="virtual")
    kernel.add(2, "C920: HD Pro", ("uvcvideo", "HD Pro Webcam C920", CAPTURE))
    kernel.add(3, "C920: HD Pro", ("uvcvideo", "HD Pro Webcam C920", METADATA))
    kernel.add(
        11, "OBS Virtual Camera", ("v4l2 loopback", "OBS Virtual Camera", CAPTURE | OUTPUT), bus="virtual"
    )
    kernel.add(4, "decoder", ("codec", "decoder", CAPTURE | OUTPUT | CODEC))
    kernel.add(5, "gone", OSError(errno.ENODEV, "No such device"))


def test_devices_are_described_in_the_order_of_their_numbers(kernel: Kernel) -> None:
    furnish(kernel)
    found = v4l2.list_devices()
    assert [device.index for device in found] == [2, 3, 4, 10, 11]
    assert [(device.capture, device.output) for device in found] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
        (True, True),
    ]
    assert [device.loopback for device in found] == [False, False, False, True, True]
    assert found[0].label == "HD Pro Webcam C920"
    assert found[0].path == kernel.dev / "video2"


def test_cameras_leave_out_metadata_codecs_and_virtual_cameras(kernel: Kernel) -> None:
    furnish(kernel)
    assert [device.name for device in devices.list_cameras("linux")] == ["HD Pro Webcam C920"]
    kernel.answers["video10"] = ("v4l2 loopback", "Instant_Vision", CAPTURE)
    assert [device.name for device in devices.list_cameras("linux")] == ["HD Pro Webcam C920"]
    assert [device.name for device in devices.list_virtual_cameras("linux")] == [
        "Instant_Vision",
        "OBS Virtual Camera",
    ]


def test_a_forbidden_device_is_listed_as_such(kernel: Kernel) -> None:
    kernel.add(0, "C920", PermissionError(errno.EACCES, "Permission denied"))
    kernel.add(10, "Instant_Vision", PermissionError(errno.EACCES, "Permission denied"), bus="virtual")
    (camera,) = devices.list_cameras("linux")
    (virtual,) = devices.list_virtual_cameras("linux")
    assert (camera.name, camera.accessible) == ("C920", False)
    assert (virtual.name, virtual.accessible, virtual.busy) == ("Instant_Vision", False, False)


def test_no_video_devices_at_all(tmp_path: Path) -> None:
    assert v4l2.list_devices(tmp_path / "none", tmp_path) == ()


@pytest.mark.parametrize(
    ("answers", "fed"),
    [
        ([b"x"] * 3, True),
        ([b"x", b"x"], False),
        ([], False),
        ([b"x", None, b"x", None, b"x"], True),
        ([OSError(errno.EBUSY, "busy")], True),
    ],
)
def test_a_writer_is_noticed_by_new_pictures(
    answers: list[bytes | OSError | None], fed: bool, clock: v4l2.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(answers)

    def read(handle: int, count: int) -> bytes:
        answer = left.pop(0) if left else None
        if isinstance(answer, OSError):
            raise answer
        if answer is None:
            raise BlockingIOError
        return answer

    monkeypatch.setattr(os, "read", read)
    assert v4l2.is_fed(Path(os.devnull), clock) is fed


@pytest.mark.parametrize(("error", "busy"), [(errno.EBUSY, True), (errno.ENOTTY, False), (None, False)])
def test_busy_is_what_the_device_says(error: int | None, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(handle: int, request: int, argument: bytes) -> bytes:
        assert request == v4l2.VIDIOC_REQBUFS
        if error is not None:
            raise OSError(error, os.strerror(error))
        return argument

    monkeypatch.setattr(v4l2, "_ioctl", ioctl)
    assert v4l2.is_busy(Path(os.devnull)) is busy


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("Instant Vision", True),
        ("Instant_Vision", True),
        ("INSTANT VISION 2", True),
        ("OBS Virtual Camera", False),
    ],
)
def test_our_own_label_is_known(name: str, own: bool) -> None:
    assert devices.is_own(name) is own


def test_structures_have_the_kernel_s_sizes() -> None:
    # The size is part of the request number: bits 16 to 29.
    sizes = {
        v4l2.VIDIOC_QUERYCAP: v4l2._CAPABILITY.size,
        v4l2.VIDIOC_G_FMT: v4l2._FORMAT.size,
        v4l2.VIDIOC_REQBUFS: v4l2._REQUEST_BUFFERS.size,
        v4l2.VIDIOC_STREAMON: 4,
    }
    for request, size in sizes.items():
        assert request >> 16 & 0x3FFF == size


def test_devices_compare_by_value() -> None:
    one = V4L2Device(
        index=0,
        path=Path("/dev/video0"),
        label="a",
        name="a",
        driver="d",
        capture=True,
        output=False,
        loopback=False,
        accessible=True,
    )
    assert one == V4L2Device(**vars(one))
