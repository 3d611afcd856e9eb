import threading
from typing import Any

import numpy as np
import pytest

from instantvision.integrations import camera, devices
from instantvision.integrations.backoff import Backoff
from instantvision.integrations.camera import CameraLostError, OpenCVSource, find_camera
from instantvision.integrations.devices import Device
from instantvision.pipeline.errors import SourceError
from instantvision.pipeline.frames import Pixels

C920 = Device(name="HD Pro Webcam C920", path="/dev/video0", index=0, driver="uvcvideo")
BRIO = Device(
    name="Logitech BRIO", path="/dev/video2", index=2, driver="uvcvideo", aliases=("Logitech BRIO: Cam",)
)
BRIO_4K = Device(name="Logitech BRIO 4K", path="/dev/video4", index=4, driver="uvcvideo")
PRESENT = (C920, BRIO_4K, BRIO)


class Bench:
    """A room with cameras that a test plugs in and out; time passes while a camera is waited for."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.present: tuple[Device, ...] = (C920,)
        self.behaviour = "good"
        self.opened_s: list[float] = []
        self.opened: list[str] = []
        self.released = 0

    def open_capture(self, device: Device, *asked: object) -> "Bench":
        self.opened_s.append(self.clock.now_s())
        self.opened.append(device.path)
        if self.behaviour == "refuses":
            raise SourceError("webcam C920 is in use by another program")
        return self

    def frame(self, timeout_s: float) -> Pixels | None:
        if self.behaviour == "dead":
            raise CameraLostError("reading failed")
        self.clock.wait(threading.Event(), timeout_s if self.behaviour == "silent" else 0.01)
        return None if self.behaviour == "silent" else np.zeros((48, 64, 3), dtype=np.uint8)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def bench(clock: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(clock)
    monkeypatch.setattr(devices, "list_cameras", lambda: bench.present)
    monkeypatch.setattr(camera, "open_capture", bench.open_capture)
    return bench


def started(bench: Bench, selector: str | None = None) -> OpenCVSource:
    source = OpenCVSource(selector, clock=bench.clock)
    source.open()
    assert source.read(0.1) is not None
    return source


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        (None, C920),
        ("", C920),
        ("brio", BRIO_4K),
        ("LOGITECH brio", BRIO),
        ("c920", C920),
        ("hd_pro", C920),
        ("2", BRIO),
        (4, BRIO_4K),
        ("/dev/video2", BRIO),
        ("logitech brio: cam", BRIO),
    ],
)
def test_a_camera_is_chosen_by_name_or_number(selector: str | int | None, wanted: Device) -> None:
    assert find_camera(selector, PRESENT) is wanted


@pytest.mark.parametrize("selector", ["kinect", "7", 1])
def test_a_missing_camera_names_those_there_are(selector: str | int) -> None:
    with pytest.raises(SourceError, match=r"there is HD Pro Webcam C920 \(/dev/video0\), Logitech BRIO 4K"):
        find_camera(selector, PRESENT)


def test_without_any_camera_the_next_step_is_named() -> None:
    with pytest.raises(SourceError, match=r"no camera found.* --source test-pattern"):
        find_camera("c920", (), platform="linux")


def test_where_cameras_cannot_be_listed_numbers_still_work() -> None:
    assert find_camera(3, (), platform="win32").index == 3
    with pytest.raises(SourceError, match="no camera found"):
        find_camera("c920", (), platform="win32")


def test_a_lost_camera_is_released_first_and_found_under_another_number(bench: Bench) -> None:
    source = started(bench, "c920")
    bench.behaviour = "dead"
    bench.present = ()
    assert source.read(0.1) is None
    assert bench.released == 1
    assert "reading failed" in source.status
    assert source.read(1.0) is None
    assert source.status == "HD Pro Webcam C920 is not connected: plug it in again"
    moved = Device(name=C920.name, path="/dev/video1", index=1, driver="uvcvideo")
    bench.present, bench.behaviour = (BRIO, moved), "good"
    frame = None
    while frame is None:
        frame = source.read(0.5)
    assert bench.opened == ["/dev/video0", "/dev/video1"]
    assert frame.index == 1
    assert source.status == ""
    source.close()


def test_a_camera_that_falls_silent_is_opened_again(bench: Bench) -> None:
    source = started(bench)
    begin_s = bench.clock.now_s()
    bench.behaviour = "silent"
    while bench.released == 0:
        assert source.read(0.5) is None
    assert 2.0 < bench.clock.now_s() - begin_s < 2.6
    assert "no picture for 2 s" in source.status
    source.close()


@pytest.mark.parametrize("behaviour", ["dead", "refuses"])
def test_retries_slow_down(bench: Bench, behaviour: str) -> None:
    source = started(bench)
    bench.behaviour = "dead"
    source.read(0.01)
    bench.behaviour = behaviour
    lost_s = bench.clock.now_s()
    while bench.clock.now_s() < lost_s + 300:
        assert source.read(1.0) is None
    tries_s = [moment - lost_s for moment in bench.opened_s[1:]]
    assert tries_s[0] < 0.3
    assert len([moment for moment in tries_s if moment <= 8]) == 5
    waits_s = np.diff(tries_s)
    assert (waits_s[5:] >= 7.9).all()
    assert waits_s.max() <= 11
    source.close()


def test_a_lost_camera_never_spins(bench: Bench) -> None:
    source = started(bench)
    bench.behaviour = "dead"
    bench.clock.waits.clear()
    for _ in range(20):
        source.read(0.5)
    # Each read but the one that saw the loss waited its time out, or until an attempt was due.
    assert sum(bench.clock.waits) >= 9
    source.close()


def test_a_busy_camera_says_so_in_the_status(bench: Bench) -> None:
    source = started(bench)
    bench.behaviour = "dead"
    source.read(0.1)
    bench.behaviour = "refuses"
    source.read(1.0)
    assert "in use by another program" in source.status
    source.close()


def test_close_ends_the_wait_for_a_lost_camera(bench: Bench) -> None:
    source = started(bench)
    bench.behaviour, bench.present = "dead", ()
    bench.clock.on_wait = source._stop.set
    before = bench.clock.now_s()
    assert source.read(60.0) is None
    assert bench.clock.now_s() - before < 1.0
    source.close()


@pytest.mark.parametrize(
    ("busy", "accessible", "words"),
    [
        (True, True, "in use by another program"),
        (False, False, "usermod -aG video"),
        (False, True, "connect it again"),
    ],
)
def test_why_a_camera_does_not_open(
    busy: bool,
    accessible: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(devices, "is_busy", lambda path: busy)
    missing = Device(name="C920", path="/dev/video97", index=97, driver="uvcvideo", accessible=accessible)
    with pytest.raises(SourceError, match=words) as caught:
        camera.open_capture(missing, None, None, platform="linux")
    assert "C920 (/dev/video97)" in str(caught.value)
    # OpenCV's own complaints must not run through the status line.
    assert capfd.readouterr().err == ""


def test_backoff_forgets_after_a_minute() -> None:
    backoff = Backoff()
    assert backoff.delay_s(0.0) == 0.25
    for attempt in range(8):
        backoff.record(float(attempt))
    assert backoff.delay_s(8.0) == 10.0
    assert backoff.delay_s(65.0) == 2.0
    assert backoff.delay_s(100.0) == 0.25
