"""The whole program between a real webcam and a real virtual camera, seen through the eyes of another process.

Skipped with the reason where these devices are missing: test_virtual_camera_device.py tells how to have them.
"""

import base64
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from instantvision.integrations.camera import OpenCVSource
from instantvision.integrations.devices import Device
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.slate import background

pytestmark = [pytest.mark.device, pytest.mark.slow]

SIZE = Size(256, 256)
FPS = 30
# Pictures are compared at 32x32: of the slate's text little is left, of colours and bars everything.
THUMB = (32, 32)
STYLISED_WANTED = 40
# Pictures until the first stylised one may take: four minutes on a very slow machine.
PATIENCE = 240 * FPS

# Waits for a writer, as a call's camera picker does, then says of each picture its size, rate, moment and thumbnail.
VIEWER = textwrap.dedent("""
    import base64, json, sys, time
    import cv2
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    print("ready", flush=True)
    while True:
        capture = cv2.VideoCapture(int(sys.argv[1]), cv2.CAP_V4L2)
        if capture.isOpened():
            break
        capture.release()
        time.sleep(0.02)
    while True:
        good, picture = capture.read()
        if not good:
            break
        small = cv2.cvtColor(cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        line = {"size": picture.shape[1::-1], "fps": capture.get(cv2.CAP_PROP_FPS), "at_s": time.monotonic(),
                "thumb": base64.b64encode(small.tobytes()).decode()}
        print(json.dumps(line), flush=True)
""")
PROGRAM = "from instantvision.cli import main; main()"


class Seen:
    """One picture as the viewer saw it."""

    def __init__(self, line: str) -> None:
        values = json.loads(line)
        self.size, self.fps, self.at_s = tuple(values["size"]), values["fps"], values["at_s"]
        self.thumb = np.frombuffer(base64.b64decode(values["thumb"]), dtype=np.uint8).reshape(*THUMB, 3)

    def distance(self, other: Pixels) -> float:
        """Mean difference of levels; of the border only a picture and the slate's background would agree."""
        return float(np.abs(self.thumb.astype(int) - other).mean())


@pytest.fixture
def raw(webcam: Device) -> Pixels:
    """The camera's own picture as it would look on the output, 32x32."""
    source = OpenCVSource(webcam.path, size=(640, 480))
    source.open()
    frame = None
    while frame is None:
        frame = source.read(1.0)
    source.close()
    height, width = frame.pixels.shape[:2]
    left = (width - height) // 2
    return cv2.resize(frame.pixels[:, left : left + height], THUMB, interpolation=cv2.INTER_AREA)


@contextmanager
def started(*command: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def watch(viewer: "subprocess.Popen[str]", is_slate: Pixels) -> list[Seen]:
    """Everything the viewer sees until enough stylised pictures have come."""
    assert viewer.stdout is not None
    seen: list[Seen] = []
    stylised = 0
    while stylised < STYLISED_WANTED and len(seen) < PATIENCE:
        line = viewer.stdout.readline()
        assert line, "the virtual camera went silent"
        seen.append(Seen(line))
        stylised += seen[-1].distance(is_slate) > 25
    return seen


def run_once(loopback: Device, raw: Pixels, folder: Path) -> None:
    arguments = ["run", "--source", "webcam:vivid", "--sink", "virtual-camera", "--size", str(SIZE.width)]
    arguments += ["--fps", str(FPS), "--preset", "ink", "--stats-json", "stats.json"]
    slate = cv2.resize(background(SIZE), THUMB, interpolation=cv2.INTER_AREA)
    with started(VIEWER, str(loopback.index), cwd=folder) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline() == "ready\n"
        with started(PROGRAM, *arguments, cwd=folder) as program:
            seen = watch(viewer, slate)
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=60)
    assert program.returncode == 130, errors
    assert "Traceback" not in errors

    assert {each.size for each in seen} == {(SIZE.width, SIZE.height)}
    assert {each.fps for each in seen} == {FPS}
    # The raw picture is these bars in full colour; ink has none. Nothing ever comes near it.
    nearest = min(each.distance(raw) for each in seen)
    assert nearest > 25, f"a picture is only {nearest:.0f} levels from the raw one"
    is_slate = [each.distance(slate) < 25 for each in seen]
    assert is_slate[0], "the first picture is not the slate"
    assert not is_slate[-1], "no stylised picture came"
    # One picture a tick from the first on. What counts is that none is left out, not how busy this machine is.
    moments_s = np.array([each.at_s for each in seen])
    assert np.diff(moments_s).max() < 1.0
    rate = (len(seen) - 1) / (moments_s[-1] - moments_s[0])
    assert rate == pytest.approx(FPS, rel=0.2)
    assert json.loads((folder / "stats.json").read_text())["source"] == "webcam:vivid"


def test_run_shows_slate_then_stylised_and_never_raw_twice_in_a_row(
    webcam: Device, loopback: Device, raw: Pixels, tmp_path: Path
) -> None:
    """The second run meets the device as the first one left it."""
    for _ in range(2):
        run_once(loopback, raw, tmp_path)
