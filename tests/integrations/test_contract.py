"""What every source and every sink must do; those that need a device run against fakes here and for real elsewhere."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from instantvision.integrations import camera, devices, virtual_camera
from instantvision.integrations.base import EndOfSource, Sink, Source
from instantvision.integrations.camera import OpenCVSource
from instantvision.integrations.devices import Device
from instantvision.integrations.mjpeg_server import MjpegSink
from instantvision.integrations.null import NullSink
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_source import ObsSource
from instantvision.integrations.test_pattern import TestPatternSource
from instantvision.integrations.video_file import VideoFileSink, VideoFileSource
from instantvision.integrations.virtual_camera import VirtualCameraSink
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame, Origin, Pixels
from tests.integrations.fake_obs import FakeObs

SIZE = Size(64, 64)


class FakeCapture:
    """A camera that always has a picture."""

    def __init__(self) -> None:
        self.released = False
        self._number = 0

    def frame(self, timeout_s: float) -> Pixels | None:
        self._number += 1
        return np.full((48, 64, 3), self._number % 256, dtype=np.uint8)

    def release(self) -> None:
        self.released = True


class FakeCamera:
    """Stands for pyvirtualcam.Camera."""

    def __init__(self) -> None:
        self.pictures: list[Pixels] = []
        self.closed = 0

    def send(self, pixels: Pixels) -> None:
        self.pictures.append(pixels)

    def close(self) -> None:
        self.closed += 1


def colours() -> Callable[[], tuple[int, int, int]]:
    """Each another one, also after compression."""
    numbers = itertools.count()

    def next_colour() -> tuple[int, int, int]:
        number = next(numbers)
        return 8 * (number % 32), 8 * (number // 32 % 32), 100

    return next_colour


@pytest.fixture
def streaming_obs() -> Iterator[FakeObs]:
    """An OBS that sends a picture every few milliseconds while its output is on."""
    obs, ended, paint = FakeObs(), threading.Event(), colours()

    def draw() -> None:
        while not ended.wait(0.005):
            # The source may just be closing.
            with suppress(OSError, AssertionError):
                obs.send(paint())

    thread = threading.Thread(target=draw)
    thread.start()
    yield obs
    ended.set()
    thread.join()


@pytest.fixture(params=["webcam", "file", "pattern", "obs stream", "obs screenshots"])
def source(
    request: pytest.FixtureRequest,
    make_clip: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clock: object,
) -> Source:
    if request.param == "obs stream":
        obs = request.getfixturevalue("streaming_obs")
        # On the real clock: it waits for a socket.
        return ObsSource(make_link=lambda: obs, changes=Journal(tmp_path / "profile.json"))
    if request.param == "obs screenshots":
        still = FakeObs()
        still.paint = colours()
        return ObsSource("Mic", make_link=lambda: still, clock=clock)
    if request.param == "file":
        return VideoFileSource(make_clip(frames=30), clock=clock)
    if request.param == "pattern":
        return TestPatternSource(SIZE, 30.0, clock=clock)
    device = Device(name="Fake", path="/dev/video0", index=0, driver="fake")
    monkeypatch.setattr(devices, "list_cameras", lambda: (device,))
    monkeypatch.setattr(camera, "open_capture", lambda *arguments: FakeCapture())
    return OpenCVSource(clock=clock)


@pytest.fixture(params=["null", "file", "virtual camera", "mjpeg"])
def sink(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sink:
    if request.param == "file":
        return VideoFileSink(tmp_path / "out.mp4")
    if request.param == "null":
        return NullSink()
    if request.param == "mjpeg":
        return MjpegSink(0)
    monkeypatch.setattr(virtual_camera.sys, "platform", "darwin")
    monkeypatch.setattr(virtual_camera, "_start", lambda *arguments: FakeCamera())
    return VirtualCameraSink()


def test_source_gives_raw_frames_in_order(source: Source) -> None:
    source.open()
    frames = [frame for _ in range(20) if (frame := source.read(1.0)) is not None]
    source.close()
    assert len(frames) == 20
    indices = [frame.index for frame in frames]
    assert indices[0] == 0
    assert indices == sorted(set(indices))
    assert all(frame.origin is Origin.RAW for frame in frames)
    assert all(frame.pixels.flags.c_contiguous for frame in frames)
    stamps = [frame.captured_s for frame in frames]
    assert stamps == sorted(stamps)
    # Frames are not written to again: each holds its own picture.
    assert len({frame.pixels.tobytes() for frame in frames[:10]}) == 10


def test_source_names_itself_and_has_a_status(source: Source) -> None:
    assert source.name.partition(":")[0] in ("webcam", "file", "test-pattern", "obs")
    source.open()
    source.read(1.0)
    assert source.status == ""
    source.close()


def test_source_reads_nothing_after_close_and_closes_twice(source: Source) -> None:
    source.open()
    source.read(1.0)
    source.close()
    source.close()
    assert source.read(1.0) is None


def test_source_closes_unopened(source: Source) -> None:
    source.close()


def test_read_does_not_outlast_its_time(source: Source, clock: object) -> None:
    source.open()
    for _ in range(10):
        before_s = clock.now_s()
        source.read(0.01)
        assert clock.now_s() - before_s <= 0.01 + 1e-9
    source.close()


def test_close_ends_a_waiting_read(make_clip: Callable[..., Path]) -> None:
    """On the real clock: the second picture is an hour away, and close() from another thread ends the wait for it."""
    slow_file = make_clip("slow.mp4", frames=2, times_s=[Fraction(0), Fraction(3600)])
    for source in (TestPatternSource(SIZE, 1 / 3600), VideoFileSource(slow_file)):
        source.open()
        assert source.read(5.0) is not None
        got: list[Frame | None] = []
        reader = threading.Thread(target=_read_into, args=(got, source))
        reader.start()
        source.close()
        reader.join(timeout=20)
        assert not reader.is_alive()
        assert got == [None]


def _read_into(got: list[Frame | None], source: Source) -> None:
    got.append(source.read(3600.0))


def test_sink_takes_stylised_and_slate(sink: Sink, make_frame: Callable[..., Frame]) -> None:
    sink.open(SIZE, 30.0)
    sink.send(make_frame(origin=Origin.STYLISED))
    sink.send(make_frame(origin=Origin.SLATE))
    sink.close()


def test_sink_refuses_the_raw_picture(sink: Sink, make_frame: Callable[..., Frame]) -> None:
    sink.open(SIZE, 30.0)
    with pytest.raises(ValueError, match="raw camera picture"):
        sink.send(make_frame(origin=Origin.RAW))
    sink.close()


@pytest.mark.parametrize(("width", "height"), [(64, 48), (32, 64), (128, 128)])
def test_sink_refuses_another_size(
    sink: Sink, make_frame: Callable[..., Frame], width: int, height: int
) -> None:
    sink.open(SIZE, 30.0)
    with pytest.raises(ValueError, match=f"{width}x{height}, expected 64x64"):
        sink.send(make_frame(width, height))
    sink.close()


def test_sink_closes_twice_and_unopened(sink: Sink, make_frame: Callable[..., Frame]) -> None:
    sink.close()
    sink.open(SIZE, 30.0)
    sink.send(make_frame())
    sink.close()
    sink.close()
    with pytest.raises(ValueError, match="not open"):
        sink.send(make_frame())


def test_a_source_with_an_end_says_so(make_clip: Callable[..., Path], clock: object) -> None:
    source = VideoFileSource(make_clip(frames=3), loop=False, clock=clock)
    source.open()
    assert [source.read(1.0) is not None for _ in range(3)] == [True] * 3
    with pytest.raises(EndOfSource):
        source.read(1.0)
    source.close()
