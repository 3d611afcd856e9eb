"""From what the user types to a source or a sink, and the list of what there is to type.

Opens nothing: `parse_source` and `parse_sink` only build the object.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from instantvision.integrations import devices
from instantvision.integrations.base import Sink, Source
from instantvision.integrations.camera import OpenCVSource
from instantvision.integrations.devices import Device
from instantvision.integrations.forms import SINK_FORMS, SOURCE_FORMS
from instantvision.integrations.mjpeg_address import PORT_MAX
from instantvision.integrations.mjpeg_server import MjpegSink
from instantvision.integrations.null import NullSink
from instantvision.integrations.obs_source import WAYS, ObsSource
from instantvision.integrations.test_pattern import DEFAULT_FPS, DEFAULT_SIZE, TestPatternSource
from instantvision.integrations.video_file import VideoFileSink, VideoFileSource
from instantvision.integrations.virtual_camera import VirtualCameraSink
from instantvision.integrations.virtual_camera_driver import install_hint
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import ConfigError

# Modes that nearly every webcam has; the smallest that covers the engine's picture is asked for.
CAMERA_MODES = ((640, 480), (1280, 720), (1920, 1080))


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What `instantvision devices` shows; `notes` are hints for the user, one line each."""

    cameras: tuple[Device, ...]
    virtual_cameras: tuple[Device, ...]
    notes: tuple[str, ...]


def parse_source(
    text: str, *, size: Size | None = None, fps: float | None = None, loop: bool = True
) -> Source:
    """Build the source that `text` names; nothing is opened.

    Args:
        text: one of SOURCE_FORMS.
        size: the engine's picture: drawn by the test pattern, covered by what a webcam is asked for.
        fps: rate of the test pattern, and what a webcam is asked for.
        loop: begin a file again at its end.

    Raises:
        ConfigError: not of an accepted form.
    """
    kind, value = _split(text)
    if kind == "webcam":
        return OpenCVSource(value, size=None if size is None else camera_mode(size), fps=fps)
    if kind == "obs" or kind.startswith("obs?via="):
        return _obs_source(text, size)
    if kind == "file" and value:
        return VideoFileSource(value, loop=loop)
    if kind == "test-pattern" and value is None:
        return TestPatternSource(size or DEFAULT_SIZE, fps or DEFAULT_FPS)
    raise ConfigError(f"source is {text!r}, expected {SOURCE_FORMS}")


def parse_sink(text: str) -> Sink:
    """Build the sink that `text` names, one of SINK_FORMS; nothing is opened.

    Raises:
        ConfigError: not of an accepted form.
    """
    kind, value = _split(text)
    if kind == "virtual-camera":
        return VirtualCameraSink(value)
    if kind == "obs" and value is None:
        return MjpegSink()
    if kind == "mjpeg" and value and value.isdecimal() and int(value) <= PORT_MAX:
        return MjpegSink(int(value))
    if kind == "file" and value:
        return VideoFileSink(value)
    if kind == "null" and value is None:
        return NullSink()
    raise ConfigError(f"sink is {text!r}, expected {SINK_FORMS}")


def camera_mode(size: Size) -> tuple[int, int]:
    """Width and height to ask a webcam for, so that the engine's picture is not enlarged from it."""
    covering = (mode for mode in CAMERA_MODES if mode[0] >= size.width and mode[1] >= size.height)
    return next(covering, CAMERA_MODES[-1])


def list_devices(
    platform: str = sys.platform,
    cameras: Callable[..., tuple[Device, ...]] = devices.list_cameras,
    virtual_cameras: Callable[..., tuple[Device, ...]] = devices.list_virtual_cameras,
) -> Devices:
    """Cameras, virtual cameras and what the user may want to do about them."""
    found, virtual = cameras(platform, ask_busy=True), virtual_cameras(platform)
    notes = []
    if not found:
        notes.append("no camera found: connect one, or use --source test-pattern")
    if not virtual:
        prefix = "no virtual camera found" if platform == "linux" else "the virtual camera is the one of OBS"
        notes.append(f"{prefix}: {install_hint(platform)}")
    notes += [
        f"{each.name} may not be opened by this user: {devices.ADD_TO_GROUP}"
        for each in found + virtual
        if not each.accessible
    ]
    return Devices(cameras=found, virtual_cameras=virtual, notes=tuple(notes))


def _obs_source(text: str, size: Size | None) -> ObsSource:
    """`obs`, `obs:NAME`, both also with `?via=stream` or `?via=screenshots` at the end."""
    named, _, via = text.partition("?via=")
    kind, name = _split(named)
    way = next((each for each in WAYS if each == via), None)
    if not kind or (way is None and named != text):
        raise ConfigError(f"source is {text!r}, expected {' or '.join(WAYS)} after ?via=")
    return ObsSource(name, via=way, size=size)


def _split(text: str) -> tuple[str, str | None]:
    """`kind:value`, the kind in lower case; None where there is no colon. A colon without a value is no form."""
    kind, colon, value = text.strip().partition(":")
    if colon and not value.strip():
        return "", None
    return kind.lower(), value.strip() if colon else None
