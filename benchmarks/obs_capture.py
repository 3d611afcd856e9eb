"""How fast, and how late, pictures come out of OBS: its FFmpeg output against screenshots over the websocket.

    python benchmarks/obs_capture.py [--seconds 20] [--size 1280x720]

Starts an OBS of its own (tests/obs_lab.py: Debian's obs-studio under Xvfb), with a source that changes its colour each
time the websocket says so. Frame rate: pictures that arrive. Latency: from the moment the request for another colour is
sent until a picture of that colour is in the reader's hands; OBS's own drawing, on average half a frame, is part of it.
A second round has a moving picture in the scene, which is what encoding and decoding cost something for.
"""

import argparse
import dataclasses
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from instantvision.integrations.mjpeg_server import MjpegSink
from instantvision.integrations.obs_client import ObsClient, connect
from instantvision.integrations.obs_credentials import ObsSettings
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_setup import Wanted, set_up
from instantvision.integrations.obs_source import ObsSource, Way
from instantvision.integrations.test_pattern import TestPatternSource
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame, Origin
from instantvision.pipeline.machine import describe_machine

HERE = Path(__file__).resolve().parent
# Levels of grey far enough apart to survive compression.
LEVELS, LEVEL_TOLERANCE = (40, 90, 140, 190, 240), 20
MARK, MARK_PX = "Mark", 160
# Longer than any latency seen; a colour that never came is left out and counted.
PATIENCE_S = 2.0
WAIT_S = (0.15, 0.35)


def main() -> None:
    """Measure and write results/obs_capture-*.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--size", default="1280x720", help="of OBS's canvas")
    wanted = parser.parse_args()
    width, height = (int(side) for side in wanted.size.split("x"))
    rounds = []
    for moving in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            lab = _obs_lab().ObsLab(Path(folder), canvas=(width, height), fps=30)
            with lab:
                rounds += _measure(lab, Path(folder), moving, wanted.seconds)
    machine = describe_machine(torch.device("cpu"))
    report = {"canvas": wanted.size, "canvas_fps": 30, "seconds": wanted.seconds, "rounds": rounds}
    report |= {"machine": dataclasses.asdict(machine)}
    text = json.dumps(report, indent=2)
    out = HERE / "results" / f"obs_capture-{machine.date[:10]}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _measure(lab: Any, folder: Path, moving: bool, seconds: float) -> list[dict[str, Any]]:
    settings = ObsSettings(port=lab.port, password=lab.password)
    client = connect(settings)
    stop = threading.Event()
    feeder = threading.Thread(target=_feed, args=(client, folder, stop)) if moving else None
    if feeder:
        feeder.start()
        time.sleep(3.0)
    mark = {"color": _colour(LEVELS[0]), "width": MARK_PX, "height": MARK_PX}
    client.request(
        "CreateInput",
        {"sceneName": "Scene", "inputName": MARK, "inputKind": "color_source_v3", "inputSettings": mark},
    )
    results = []
    ways: tuple[Way, ...] = ("screenshots", "stream")
    for way in ways:
        source = ObsSource(
            via=way, make_link=lambda: connect(settings), changes=Journal(folder / "profile.json")
        )
        source.open()
        if source.way != way:
            sys.exit(f"OBS does not offer {way} at this moment")
        results.append({"way": way, "moving": moving} | _follow(source, client, seconds))
        source.close()
    stop.set()
    if feeder:
        feeder.join()
    client.close()
    return results


def _follow(source: ObsSource, client: ObsClient, seconds: float) -> dict[str, Any]:
    """Read for some seconds while the mark changes at moments that have nothing to do with OBS's frames."""
    # Not for secrets.
    moments = random.Random(0)  # noqa: S311
    latencies_ms, missed, arrived = [], 0, 0
    mark = _Mark(client, moments.uniform(*WAIT_S))
    start_s = time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        frame = source.read(0.1)
        arrived += frame is not None
        late_s = time.perf_counter() - mark.asked_s if mark.asked_s else 0.0
        if late_s > PATIENCE_S or (frame is not None and mark.asked_s and mark.shown_in(frame)):
            missed += late_s > PATIENCE_S
            latencies_ms += [late_s * 1e3] if late_s <= PATIENCE_S else []
            mark = _Mark(client, moments.uniform(*WAIT_S), mark.number + 1)
    fps = arrived / (time.perf_counter() - start_s)
    mark.join()
    cuts = statistics.quantiles(latencies_ms, n=20, method="inclusive")
    return {
        "fps": round(fps, 2),
        "latency_ms": {"count": len(latencies_ms), "p50": round(cuts[9], 1), "p95": round(cuts[18], 1)},
        "missed": missed,
    }


class _Mark:
    """Changes the colour of the mark after a while; `asked_s` is when it did, 0 before."""

    def __init__(self, client: ObsClient, wait_s: float, number: int = 1) -> None:
        self.number, self.asked_s = number, 0.0
        self._client, self._level = client, LEVELS[number % len(LEVELS)]
        self._timer = threading.Timer(wait_s, self._change)
        self._timer.start()
        self.join = self._timer.join

    def shown_in(self, frame: Frame) -> bool:
        return abs(int(frame.pixels[MARK_PX // 2, MARK_PX // 2].mean()) - self._level) < LEVEL_TOLERANCE

    def _change(self) -> None:
        self.asked_s = time.perf_counter()
        data = {"inputName": MARK, "inputSettings": {"color": _colour(self._level)}}
        self._client.request("SetInputSettings", data)


def _feed(client: ObsClient, folder: Path, stop: threading.Event) -> None:
    """A moving picture over the whole canvas, through our own MJPEG output at 30 Hz."""
    size = Size(1280, 720)
    sink, pattern = MjpegSink(0), TestPatternSource(size, 30.0)
    sink.open(size, 30.0)
    pattern.open()
    set_up(client, Journal(folder / "setup.json"), Wanted(port=sink.port))
    while not stop.is_set():
        raw = pattern.read(0.1)
        if raw is not None:
            # The sink refuses what comes from a camera; this is nobody's face.
            sink.send(dataclasses.replace(raw, origin=Origin.STYLISED))
    sink.close()


def _colour(level: int) -> int:
    """OBS's number for a grey: alpha, blue, green, red."""
    return 0xFF << 24 | level << 16 | level << 8 | level


def _obs_lab() -> ModuleType:
    """tests/obs_lab.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("obs_lab", HERE.parent / "tests" / "obs_lab.py")
    if spec is None or spec.loader is None:
        sys.exit("tests/obs_lab.py is missing: run this in a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
