"""A real webcam and a real virtual camera: the kernel's `vivid` driver and a v4l2loopback device of our label.

Skipped with the reason where they are missing. To have them (as root):
    modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0
    modprobe v4l2loopback devices=1 exclusive_caps=1 card_label="Instant Vision"
"""

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from instantvision.integrations import devices, v4l2
from instantvision.integrations.camera import OpenCVSource
from instantvision.integrations.virtual_camera import VirtualCameraSink
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import SinkError, SourceError
from instantvision.pipeline.frames import Frame, Origin

pytestmark = pytest.mark.device

FPS = 30.0
VIVID_DRIVER = Path("/sys/bus/platform/drivers/vivid")

# A viewer: another process that reads the device as Zoom or Chrome would, and says what it saw, one line of JSON a
# picture: its size and the mean of its left and right half as RGB.
VIEWER = textwrap.dedent("""
    import json, sys
    import cv2
    capture = cv2.VideoCapture(int(sys.argv[1]), cv2.CAP_V4L2)
    print(json.dumps({"open": capture.isOpened()}), flush=True)
    for _ in range(int(sys.argv[2])):
        good, picture = capture.read()
        if not good:
            break
        height, width = picture.shape[:2]
        halves = [picture[:, : width // 2], picture[:, width // 2 :]]
        means = [[round(float(value)) for value in half.mean(axis=(0, 1))[::-1]] for half in halves]
        print(json.dumps({"size": [width, height], "halves": means}), flush=True)
""")


@pytest.fixture
def source(webcam: devices.Device) -> Iterator[OpenCVSource]:
    source = OpenCVSource("vivid", size=(640, 480))
    source.open()
    yield source
    source.close()


class Feeder:
    """Sends the picture in `frame` again and again from a thread, as the pacer does, until stopped."""

    def __init__(self, sink: VirtualCameraSink, frame: Frame) -> None:
        self.frame, self.error = frame, None
        self._sink, self._stop = sink, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(1 / FPS):
            try:
                self._sink.send(self.frame)
            except SinkError as error:
                self.error = error
                return

    def __enter__(self) -> "Feeder":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()


def two_colours(size: Size, left: tuple[int, int, int], right: tuple[int, int, int]) -> Frame:
    pixels = np.empty((size.height, size.width, 3), dtype=np.uint8)
    pixels[:, : size.width // 2], pixels[:, size.width // 2 :] = left, right
    return Frame(pixels=pixels, index=0, captured_s=0.0, origin=Origin.STYLISED)


def view(index: int, pictures: int) -> list[dict[str, list[list[int]]]]:
    """What another process sees on /dev/video<index>."""
    done = subprocess.run(
        [sys.executable, "-c", VIEWER, str(index), str(pictures)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, *seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["open"], done.stderr
    return seen


def read_some(source: OpenCVSource, count: int, patience: int = 100) -> list[Frame]:
    frames = []
    for _ in range(patience):
        frame = source.read(0.2)
        if frame is not None:
            frames.append(frame)
        if len(frames) == count:
            break
    return frames


def test_the_webcam_is_listed_and_our_output_is_not(webcam: devices.Device, loopback: devices.Device) -> None:
    names = [device.name for device in devices.list_cameras()]
    assert webcam.name in names
    assert not [name for name in names if devices.is_own(name)]
    assert webcam.driver == "vivid"


def test_webcam_pictures_arrive(source: OpenCVSource) -> None:
    frames = read_some(source, 10)
    assert [frame.index for frame in frames] == list(range(10))
    assert {frame.pixels.shape for frame in frames} == {(480, 640, 3)}
    assert all(frame.origin is Origin.RAW for frame in frames)
    stamps = [frame.captured_s for frame in frames]
    assert stamps == sorted(stamps)
    # vivid's colour bars: several strong colours, never a constant picture.
    assert frames[-1].pixels.std() > 30
    assert source.status == ""


def test_a_missing_webcam_is_told_from_a_busy_one(source: OpenCVSource, webcam: devices.Device) -> None:
    read_some(source, 1)
    with pytest.raises(SourceError, match=rf"{webcam.name} \({webcam.path}\) is in use by another program"):
        OpenCVSource("vivid").open()
    with pytest.raises(
        SourceError, match=rf"no camera is 'nonesuch', there is {webcam.name} \({webcam.path}\)"
    ):
        OpenCVSource("nonesuch").open()


def test_an_unplugged_webcam_is_found_again(source: OpenCVSource) -> None:
    if not (VIVID_DRIVER / "unbind").exists():
        pytest.skip("the vivid driver cannot be unbound here")
    read_some(source, 3)
    (VIVID_DRIVER / "unbind").write_text("vivid.0")
    try:
        silent = [source.read(0.1) for _ in range(12)]
        # One picture may still have been on its way.
        assert silent[2:] == [None] * 10
        assert "not connected" in source.status or "lost" in source.status
    finally:
        (VIVID_DRIVER / "bind").write_text("vivid.0")
    frames = read_some(source, 5)
    assert len(frames) == 5
    assert source.status == ""
    indices = [frame.index for frame in frames]
    assert indices == list(range(indices[0], indices[0] + 5))


def test_viewers_see_what_is_sent(loopback: devices.Device) -> None:
    size = Size(256, 192)
    sink = VirtualCameraSink()
    sink.open(size, FPS)
    try:
        assert loopback.name in sink.device
        with Feeder(sink, two_colours(size, (200, 40, 40), (30, 180, 60))) as feeder:
            seen = view(loopback.index, 20)
        assert feeder.error is None
    finally:
        sink.close()
    assert [each["size"] for each in seen] == [[256, 192]] * 20
    # Chroma is halved on the way, and limited to 8 bits twice.
    for each in seen[2:]:
        assert np.abs(np.subtract(each["halves"], [(200, 40, 40), (30, 180, 60)])).max() <= 8


@pytest.mark.parametrize("size", [Size(256, 256), Size(640, 368)], ids=str)
def test_the_device_opens_again_after_it_was_closed(loopback: devices.Device, size: Size) -> None:
    for level in (60, 200):
        sink = VirtualCameraSink("instant vision")
        sink.open(size, FPS)
        with Feeder(sink, two_colours(size, (level,) * 3, (level,) * 3)):
            seen = view(loopback.index, 8)
        sink.close()
        assert {tuple(each["size"]) for each in seen} == {(size.width, size.height)}
        assert abs(seen[-1]["halves"][0][1] - level) <= 8


def test_a_viewer_stays_through_a_restart(loopback: devices.Device) -> None:
    size = Size(256, 256)
    viewer = None
    try:
        for level in (60, 200):
            sink = VirtualCameraSink()
            sink.open(size, FPS)
            with Feeder(sink, two_colours(size, (level,) * 3, (level,) * 3)):
                if viewer is None:
                    viewer = subprocess.Popen(
                        [sys.executable, "-c", VIEWER, str(loopback.index), "100000"],
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    assert viewer.stdout is not None
                    assert json.loads(viewer.stdout.readline())["open"]
                # The pictures that were on their way when the writer changed come first.
                seen = [json.loads(viewer.stdout.readline()) for _ in range(20)][-1]
            sink.close()
            assert seen["size"] == [256, 256]
            assert abs(seen["halves"][0][1] - level) <= 8
    finally:
        if viewer is not None:
            viewer.kill()
            viewer.communicate()


def test_a_second_writer_is_refused(loopback: devices.Device) -> None:
    first, second = VirtualCameraSink(), VirtualCameraSink()
    frame = two_colours(Size(256, 256), (9, 9, 9), (9, 9, 9))
    first.open(Size(256, 256), FPS)
    try:
        # The device shows that it has a writer from its first picture on.
        first.send(frame)
        with Feeder(first, frame):
            (ours,) = [each for each in devices.list_virtual_cameras() if each.path == loopback.path]
            assert ours.busy
            with pytest.raises(SinkError, match=r"Instant.Vision \(/dev/video\d+\) is in use"):
                second.open(Size(256, 256), FPS)
    finally:
        first.close()
        second.close()


def test_a_size_held_by_a_viewer_is_reported(loopback: devices.Device) -> None:
    """Either the device takes the new size, or the sink says who keeps it from doing so: never garbage."""
    before, after = Size(256, 256), Size(320, 192)
    sink = VirtualCameraSink()
    sink.open(before, FPS)
    with Feeder(sink, two_colours(before, (90,) * 3, (90,) * 3)):
        viewer = subprocess.Popen(
            [sys.executable, "-c", VIEWER, str(loopback.index), "100000"], stdout=subprocess.PIPE, text=True
        )
        assert viewer.stdout is not None
        for _ in range(3):
            viewer.stdout.readline()
    sink.close()
    changed = VirtualCameraSink()
    try:
        changed.open(after, FPS)
        changed.send(two_colours(after, (90,) * 3, (90,) * 3))
        assert v4l2.picture_size(Path(loopback.path)) == (after.width, after.height)
    except SinkError as error:
        assert "256x256" in str(error) or "in use" in str(error)  # noqa: PT017
    finally:
        changed.close()
        viewer.kill()
        viewer.communicate()


def test_what_pyvirtualcam_says_is_translated(loopback: devices.Device, webcam: devices.Device) -> None:
    with pytest.raises(SinkError, match=r"no virtual camera is 'nonesuch', there is Instant.Vision"):
        VirtualCameraSink("nonesuch").open(Size(256, 256), FPS)
    with pytest.raises(SinkError, match="no virtual camera is '/dev/video"):
        VirtualCameraSink(webcam.path).open(Size(256, 256), FPS)
