import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instantvision.integrations import v4l2, virtual_camera
from instantvision.integrations.v4l2 import V4L2Device
from instantvision.integrations.virtual_camera import VirtualCameraSink, choose
from instantvision.integrations.virtual_camera_driver import install_hint
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError
from instantvision.pipeline.frames import Frame

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="device files are no thing of Windows")

SIZE = Size(64, 64)


def loopback(index: int, label: str, *, shows: str = "output", accessible: bool = True) -> V4L2Device:
    """A loopback device that shows `output` (free), `capture` (fed or held), `both` or `neither` (stuck)."""
    return V4L2Device(
        index=index,
        path=Path(f"/dev/video{index}"),
        label=label,
        name=label,
        driver="v4l2 loopback",
        capture=shows in ("capture", "both"),
        output=shows in ("output", "both"),
        loopback=True,
        accessible=accessible,
    )


OURS, OBS, OTHER = (
    loopback(10, "Instant_Vision"),
    loopback(11, "OBS Virtual Camera"),
    loopback(12, "Dummy video device (0x0000)"),
)
WEBCAM = V4L2Device(
    index=0,
    path=Path("/dev/video0"),
    label="C920",
    name="C920",
    driver="uvcvideo",
    capture=True,
    output=False,
    loopback=False,
    accessible=True,
)


@pytest.mark.parametrize(
    ("name", "present", "wanted"),
    [
        (None, (WEBCAM, OBS, OTHER, OURS), OURS),
        (None, (WEBCAM, OBS, OTHER), OTHER),
        (None, (OBS, loopback(12, "Dummy", shows="capture")), OBS),
        (None, (OBS,), OBS),
        ("obs", (OURS, OBS), OBS),
        ("instant vision", (OBS, OURS), OURS),
        ("/dev/video12", (OURS, OBS, OTHER), OTHER),
        (
            "dummy",
            (OURS, loopback(12, "Dummy A", shows="capture"), loopback(13, "Dummy B")),
            loopback(13, "Dummy B"),
        ),
    ],
)
def test_the_device_is_chosen_by_its_label(
    name: str | None, present: tuple[V4L2Device, ...], wanted: V4L2Device
) -> None:
    assert choose(name, present) == wanted


def test_without_a_driver_the_error_says_how_to_get_it() -> None:
    with pytest.raises(
        SinkError, match=r"no virtual camera found: .*v4l2loopback.*card_label=.Instant Vision."
    ):
        choose(None, (WEBCAM,))


def test_an_unknown_label_names_those_there_are() -> None:
    with pytest.raises(
        SinkError, match=r"'zoom', there is Instant_Vision \(/dev/video10\), OBS Virtual Camera"
    ):
        choose("zoom", (OURS, OBS, WEBCAM))


class Library:
    """Stands for pyvirtualcam on a Linux with the devices in `present`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.present: tuple[V4L2Device, ...] = (OURS,)
        self.error = ""
        self.fed = True
        self.shows = (64, 64)
        self.released: list[Path] = []
        self.asked: dict[str, Any] = {}
        self.sent = 0
        module = types.ModuleType("pyvirtualcam")
        module.Camera = self.camera
        module.PixelFormat = types.SimpleNamespace(RGB="rgb")
        monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
        monkeypatch.setattr(virtual_camera.sys, "platform", "linux")
        monkeypatch.setattr(v4l2, "list_devices", lambda: self.present)
        monkeypatch.setattr(v4l2, "is_fed", lambda path: self.fed)
        monkeypatch.setattr(v4l2, "picture_size", lambda path: self.shows)
        monkeypatch.setattr(v4l2, "release_stuck_output", self.released.append)

    def camera(self, width: int, height: int, fps: float, **options: Any) -> "Library":
        if self.error:
            raise RuntimeError(f"'v4l2loopback' backend: {self.error}")
        self.asked = {"width": width, "height": height, "fps": fps, **options}
        return self

    def send(self, pixels: object) -> None:
        self.sent += 1

    def close(self) -> None:
        self.asked = {}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def test_it_opens_the_device_with_our_size_and_rate(library: Library) -> None:
    sink = VirtualCameraSink()
    sink.open(SIZE, 60.0)
    assert library.asked == {"width": 64, "height": 64, "fps": 60.0, "device": "/dev/video10", "fmt": "rgb"}
    assert sink.device == "Instant_Vision (/dev/video10)"
    assert library.released == []
    sink.close()
    assert library.asked == {}


@pytest.mark.parametrize(
    ("shows", "fed", "released"),
    [
        ("neither", False, True),
        ("capture", False, True),
        ("output", False, False),
        ("both", False, False),
    ],
)
def test_a_device_left_stuck_is_freed_and_no_other(
    library: Library, shows: str, fed: bool, released: bool
) -> None:
    library.present, library.fed = (loopback(10, "Instant_Vision", shows=shows),), fed
    VirtualCameraSink().open(SIZE, 60.0)
    assert library.released == ([Path("/dev/video10")] if released else [])


def test_a_device_somebody_feeds_is_left_alone(library: Library) -> None:
    library.present = (loopback(10, "Instant_Vision", shows="capture"),)
    with pytest.raises(SinkError, match="in use by another program"):
        VirtualCameraSink().open(SIZE, 60.0)
    assert library.released == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("Device /dev/video10 is not a video output device.", "in use by another program"),
        ("Device /dev/video10 is already in use.", "in use by another program"),
        (
            "Virtual camera device /dev/video10 could not be configured: Device or resource busy",
            "in use by another program",
        ),
        ("Could not access /dev/video10 due to missing permissions. Did you ...", "usermod -aG video"),
        (
            "No v4l2 loopback device found at /dev/video[0-99]. Did you run 'modprobe v4l2loopback'?",
            "no virtual camera found",
        ),
        ("Device /dev/video10 does not exist.", "no virtual camera found"),
        ("something new\nwith a second line", "cannot be opened: 'v4l2loopback' backend: something new$"),
    ],
)
def test_errors_are_translated(library: Library, error: str, words: str) -> None:
    library.error = error
    with pytest.raises(SinkError, match=words) as caught:
        VirtualCameraSink().open(SIZE, 60.0)
    assert "\n" not in str(caught.value)


def test_a_forbidden_device_says_how_to_be_allowed(library: Library) -> None:
    library.present = (loopback(10, "Instant_Vision", accessible=False),)
    with pytest.raises(SinkError, match="usermod -aG video"):
        VirtualCameraSink().open(SIZE, 60.0)


def test_a_size_kept_by_a_reader_is_an_error(library: Library, make_frame: Callable[..., Frame]) -> None:
    library.shows = (640, 480)
    sink = VirtualCameraSink()
    sink.open(SIZE, 60.0)
    with pytest.raises(SinkError, match="held at 640x480 by a program that reads it, expected 64x64"):
        sink.send(make_frame())
    sink.close()


def test_a_device_that_vanishes_is_noticed_within_a_second(
    library: Library, make_frame: Callable[..., Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = VirtualCameraSink()
    sink.open(SIZE, 30.0)
    for _ in range(5):
        sink.send(make_frame())

    def gone(path: Path) -> tuple[int, int]:
        raise OSError(19, "No such device")

    monkeypatch.setattr(v4l2, "picture_size", gone)

    def send_for_a_second() -> None:
        for _ in range(30):
            sink.send(make_frame())

    with pytest.raises(SinkError, match="is gone"):
        send_for_a_second()
    sink.close()


def test_without_pyvirtualcam_the_error_says_how_to_get_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(SinkError, match="pip install pyvirtualcam"):
        VirtualCameraSink().open(SIZE, 60.0)


@pytest.mark.parametrize(
    ("platform", "words"), [("win32", "install OBS Studio"), ("darwin", "OBS Studio 30 or newer")]
)
def test_elsewhere_the_camera_of_obs_is_used(
    library: Library, platform: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_camera.sys, "platform", platform)
    monkeypatch.setattr(virtual_camera, "install_hint", lambda: install_hint(platform))
    sink = VirtualCameraSink()
    sink.open(SIZE, 60.0)
    assert library.asked["device"] is None
    assert sink.device == "OBS Virtual Camera"
    sink.close()
    library.error = "virtual camera is not installed"
    with pytest.raises(SinkError, match=words):
        VirtualCameraSink().open(SIZE, 60.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            'NAME="Debian GNU/Linux"\nID=debian\n',
            "sudo apt install v4l2loopback-dkms && sudo modprobe v4l2loopback",
        ),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "sudo apt install"),
        ("ID=fedora\n", "sudo dnf install v4l2loopback"),
        ("ID=endeavouros\nID_LIKE=arch\n", "sudo pacman -S v4l2loopback-dkms"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "sudo zypper install"),
        ("ID=nixos\n", "of your distribution"),
        (None, "of your distribution"),
    ],
)
def test_the_hint_fits_the_distribution(content: str | None, words: str, tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    if content is not None:
        release.write_text(content)
    hint = install_hint("linux", release, tmp_path)
    assert words in hint
    assert 'exclusive_caps=1 card_label="Instant Vision"' in hint
    assert "\n" not in hint


def test_an_installed_driver_only_needs_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.1")
    (tmp_path / "6.1").mkdir()
    (tmp_path / "6.1" / "modules.dep").write_text("updates/dkms/v4l2loopback.ko: kernel/videodev.ko\n")
    assert install_hint("linux", tmp_path / "none", tmp_path).startswith(
        "load its driver with: sudo modprobe"
    )
