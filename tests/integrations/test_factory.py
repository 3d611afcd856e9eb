import subprocess
import sys
import types

import pytest

from instantvision.integrations import devices
from instantvision.integrations.camera import OpenCVSource
from instantvision.integrations.devices import Device
from instantvision.integrations.factory import (
    SINK_FORMS,
    SOURCE_FORMS,
    camera_mode,
    list_devices,
    parse_sink,
    parse_source,
)
from instantvision.integrations.null import NullSink
from instantvision.integrations.test_pattern import TestPatternSource
from instantvision.integrations.video_file import VideoFileSink, VideoFileSource
from instantvision.integrations.virtual_camera import VirtualCameraSink
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import ConfigError

WEBCAM = Device(name="C920", path="/dev/video0", index=0, driver="uvcvideo")
LOOPBACK = Device(name="Instant_Vision", path="/dev/video10", index=10, driver="v4l2 loopback")


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("webcam", OpenCVSource, "webcam"),
        ("webcam:C920", OpenCVSource, "webcam:C920"),
        (" Webcam: HD Pro ", OpenCVSource, "webcam:HD Pro"),
        ("webcam:0", OpenCVSource, "webcam:0"),
        ("file:talk.mkv", VideoFileSource, "file:talk.mkv"),
        (r"file:C:\clips\talk.mkv", VideoFileSource, r"file:C:\clips\talk.mkv"),
        ("test-pattern", TestPatternSource, "test-pattern"),
    ],
)
def test_sources(text: str, kind: type, name: str) -> None:
    source = parse_source(text, size=Size(256, 256), fps=30.0)
    assert isinstance(source, kind)
    assert source.name == name


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("virtual-camera", VirtualCameraSink, "virtual-camera"),
        ("virtual-camera:OBS", VirtualCameraSink, "virtual-camera:OBS"),
        ("file:out.mp4", VideoFileSink, "file:out.mp4"),
        ("null", NullSink, "null"),
    ],
)
def test_sinks(text: str, kind: type, name: str) -> None:
    sink = parse_sink(text)
    assert isinstance(sink, kind)
    assert sink.name == name


@pytest.mark.parametrize(
    "text", ["", "webcam:", "file", "file:", "test-pattern:1", "camera", "talk.mkv", "null", ":x"]
)
def test_bad_sources_name_the_accepted_forms(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_source(text)
    assert str(caught.value) == f"source is {text!r}, expected {SOURCE_FORMS}"


@pytest.mark.parametrize("text", ["", "virtual-camera:", "file", "file:", "null:1", "webcam", "out.mp4"])
def test_bad_sinks_name_the_accepted_forms(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sink(text)
    assert str(caught.value) == f"sink is {text!r}, expected {SINK_FORMS}"


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        (Size(256, 256), (640, 480)),
        (Size(640, 480), (640, 480)),
        (Size(512, 512), (1280, 720)),
        (Size(1024, 1024), (1920, 1080)),
        (Size(4096, 4096), (1920, 1080)),
    ],
)
def test_a_webcam_is_asked_for_a_mode_that_covers_the_picture(size: Size, mode: tuple[int, int]) -> None:
    assert camera_mode(size) == mode


def found(*given: Device) -> object:
    return lambda platform, **options: given


def test_devices_are_listed_with_hints_where_some_are_missing() -> None:
    both = list_devices("linux", found(WEBCAM), found(LOOPBACK))
    assert (both.cameras, both.virtual_cameras, both.notes) == ((WEBCAM,), (LOOPBACK,), ())
    none = list_devices("linux", found(), found())
    assert none.notes[0].startswith("no camera found")
    assert "v4l2loopback" in none.notes[1]
    assert "OBS" in list_devices("win32", found(WEBCAM), found()).notes[0]


def test_a_forbidden_device_is_noted() -> None:
    forbidden = Device(name="C920", path="/dev/video0", index=0, driver="", accessible=False)
    assert "usermod" in list_devices("linux", found(forbidden), found(LOOPBACK)).notes[0]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_elsewhere_cameras_come_from_the_listing_package(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = types.ModuleType("cv2_enumerate_cameras")
    names = ["FaceTime", "OBS Virtual Camera", "Instant Vision", "C920"]
    listing.enumerate_cameras = lambda backend: [
        types.SimpleNamespace(name=name, index=index) for index, name in enumerate(names)
    ]
    monkeypatch.setitem(sys.modules, "cv2_enumerate_cameras", listing)
    assert [(each.name, each.index) for each in devices.list_cameras(platform)] == [
        ("FaceTime", 0),
        ("C920", 3),
    ]
    monkeypatch.setitem(sys.modules, "cv2_enumerate_cameras", None)
    assert devices.list_cameras(platform) == ()


def test_no_heavy_library_is_imported_before_it_is_needed() -> None:
    heavy = ("cv2", "av", "torch", "pyvirtualcam")
    code = f"import sys, instantvision.integrations.factory; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
