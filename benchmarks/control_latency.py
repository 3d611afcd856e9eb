"""How soon a command shows: from a click, a key of the websocket or a scene of OBS to the first changed picture sent.

    python benchmarks/control_latency.py [--times 60] [--fps 60]

The whole live loop runs, from the test pattern to a sink that notes the moment of every picture, with a stand-in for
the engine that paints one grey per look at once: what is measured is the way of a command, to which a real engine adds
the time of its frame. Commands come at moments that have nothing to do with the output's ticks; there is no cross-fade.
The page is the dock itself in Chromium, clicked by its own script; OBS is Debian's, without a screen.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import torch
from websockets.sync.client import connect as connect_websocket

from instantvision.integrations.base import require_sendable
from instantvision.integrations.clock import SYSTEM_CLOCK
from instantvision.integrations.obs_client import connect
from instantvision.integrations.obs_controller import ObsController
from instantvision.integrations.obs_credentials import ObsSettings
from instantvision.integrations.test_pattern import TestPatternSource
from instantvision.pipeline.config import LiveConfig, Mix, Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.frames import Frame, Origin, Pixels
from instantvision.pipeline.machine import describe_machine
from instantvision.pipeline.preview import Preview
from instantvision.pipeline.stages import LiveParts, run_live
from instantvision.plugin.server import ControlServer

HERE = Path(__file__).resolve().parent
SIZE = Size(64, 64)
GREYS = {"oil": 50, "ink": 150}
SCENES = {"Talk": "oil", "Break": "ink"}
TRANSITION_MS, SETTLES_S = 300, 0.6
# Longer than any latency seen; a change that never came ends the measurement.
PATIENCE_S = 10.0
WAIT_S = (0.15, 0.35)
# Of processes beside this one and its children, in percent of one core: what is below is not worth a line.
BUSY_PERCENT = 2.0
# Opens nothing but the dock of this measurement.
TOKEN = "t" * 43

Command = Callable[[], float]
"""Sends a command; returns when that was, by SYSTEM_CLOCK."""


def main() -> None:
    """Measure and write results/control_latency-*.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=60, help="each command is given")
    parser.add_argument("--fps", type=float, default=60.0, help="of the output")
    wanted = parser.parse_args()
    neighbours = Neighbours()
    with Show(wanted.fps) as show:
        rows = [*_dock(show, wanted.times), *_obs(show, wanted.times)]
    beside = neighbours.report()
    machine = describe_machine(torch.device("cpu"))
    report = {
        "fps": wanted.fps,
        "engine": "stand-in, one grey per look",
        "fade_s": 0,
        "commands": rows,
        "ran_beside": beside,
        "machine": dataclasses.asdict(machine),
    }
    text = json.dumps(report, indent=2)
    out = HERE / "results" / f"control_latency-{machine.date[:10]}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)


class Greys:
    """The stand-in for the engine, and for the picture it makes."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device_ms = settings, 0.0

    def update(self, settings: Settings) -> None:
        self.settings = settings

    # What it paints does not depend on the picture.
    def submit(self, pixels: Pixels) -> "Grey":  # noqa: ARG002
        return Grey(GREYS[self.settings.mix.parts[0][0]])

    def close(self) -> None:
        """Nothing to do."""


class Grey:
    def __init__(self, value: int) -> None:
        self.device_ms: float | None = 0.0
        self.steps = 0
        self.delay: int | None = 0
        self._value = value

    def wait(self) -> None:
        """It is finished already."""

    def result(self) -> Pixels:
        return np.full((SIZE.height, SIZE.width, 3), self._value, np.uint8)


class NotingSink:
    """Keeps when each picture was sent, and what it was: the grey of its look, or 0 for the slate."""

    def __init__(self) -> None:
        self.name = "noting"
        self.sent: list[tuple[float, int]] = []
        self._grown = threading.Condition()

    def open(self, size: Size, fps: float) -> None:
        """Nothing to do."""

    def send(self, frame: Frame) -> None:
        require_sendable(frame, SIZE)
        grey = int(frame.pixels[0, 0, 0]) if frame.origin is Origin.STYLISED else 0
        with self._grown:
            self.sent.append((SYSTEM_CLOCK.now_s(), grey))
            self._grown.notify_all()

    def close(self) -> None:
        """Nothing to do."""

    def wait_for(self, grey: int) -> None:
        """Until the newest picture is that one."""
        with self._grown:
            if not self._grown.wait_for(lambda: bool(self.sent) and self.sent[-1][1] == grey, PATIENCE_S):
                sys.exit(f"no picture of grey {grey} within {PATIENCE_S:g} s")


class Show:
    """A running program and its output; a context manager."""

    def __init__(self, fps: float) -> None:
        settings = Settings(mix=Mix.parse("oil"), size=SIZE)
        self.control, self.preview = Control(settings, fade_s=0.0), Preview()
        self.sink, self._stop = NotingSink(), threading.Event()
        # Not for secrets.
        self._moments = random.Random(0)  # noqa: S311
        parts = LiveParts(
            source=TestPatternSource(SIZE, fps),
            sink=self.sink,
            make_engine=lambda: Greys(settings),
            control=self.control,
            on_stats=lambda stats: None,
            preview=self.preview,
        )
        config = LiveConfig(fps=fps)
        self._thread = threading.Thread(target=lambda: run_live(parts, SIZE, config, self._stop))

    def __enter__(self) -> "Show":
        self._thread.start()
        self.sink.wait_for(GREYS["oil"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def measure(
        self, title: str, times: int, turns: list[tuple[int, Command]], settles_s: float = 0.0
    ) -> dict[str, Any]:
        """Give commands in turn, each with the grey it leads to; `settles_s` longer between two."""
        latencies_ms, frames = [], []
        for number in range(times):
            grey, command = turns[number % len(turns)]
            time.sleep(self._moments.uniform(*WAIT_S) + settles_s)
            sent_s = command()
            self.sink.wait_for(grey)
            after = [(at_s, shown) for at_s, shown in self.sink.sent if at_s >= sent_s]
            first = next(index for index, (_, shown) in enumerate(after) if shown == grey)
            latencies_ms.append((after[first][0] - sent_s) * 1e3)
            frames.append(first + 1)
        print(title, file=sys.stderr)
        cuts = statistics.quantiles(latencies_ms, n=20, method="inclusive")
        return {
            "command": title,
            "latency_ms": {
                "count": len(latencies_ms),
                "p50": round(cuts[9], 1),
                "p95": round(cuts[18], 1),
                "max": round(max(latencies_ms), 1),
            },
            "frames": {"p50": statistics.median(frames), "max": max(frames)},
        }


# The dock


def _dock(show: Show, times: int) -> Iterator[dict[str, Any]]:
    server = ControlServer(show.control, show.preview, port=0, token=TOKEN)
    server.start()
    with closing(server):
        address = f"ws://127.0.0.1:{server.port}/api/live"
        with connect_websocket(address) as socket:
            socket.send(json.dumps({"token": TOKEN}))
            reader = threading.Thread(target=lambda: list(socket))
            reader.start()
            yield from _look_and_panic(show, "websocket of the dock", times, _by_websocket(socket))
        reader.join()
        with _page(server.url) as page:
            yield from _look_and_panic(show, "click in the dock, Chromium", times, _by_click(page))


def _look_and_panic(
    show: Show, way: str, times: int, commands: Callable[[str], Command]
) -> Iterator[dict[str, Any]]:
    looks = [(GREYS[look], commands(look)) for look in ("ink", "oil")]
    yield show.measure(f"look by {way}", times, looks)
    panic = [(0, commands("panic")), (GREYS["oil"], commands("back"))]
    yield show.measure(f"panic and back by {way}", times, panic)


def _by_websocket(socket: Any) -> Callable[[str], Command]:
    changes = {"panic": {"panic": True}, "back": {"panic": False}}

    def make(name: str) -> Command:
        text = json.dumps({"type": "apply", "change": changes.get(name, {"preset": name})})

        def command() -> float:
            now_s = SYSTEM_CLOCK.now_s()
            socket.send(text)
            return now_s

        return command

    return make


def _by_click(page: Any) -> Callable[[str], Command]:
    def make(name: str) -> Command:
        selector = "#panic" if name in ("panic", "back") else f".look[data-name={name}]"
        # The page's moment of the click, on the clock that both sides have.
        click = "(at) => { const now = performance.timeOrigin + performance.now();"
        click += " document.querySelector(at).click(); return now; }"

        def command() -> float:
            clicked_s = page.evaluate(click, selector) / 1e3
            return float(clicked_s - time.time() + SYSTEM_CLOCK.now_s())

        return command

    return make


@contextmanager
def _page(url: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 300, "height": 800})
        page.goto(url)
        page.wait_for_selector("body[data-link=on]")
        yield page
        browser.close()


# OBS


def _obs(show: Show, times: int) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(_obs_lab().ObsLab(folder, scenes=tuple(SCENES), canvas=(640, 360), fps=60))
        settings = ObsSettings(port=lab.port, password=lab.password)
        ours, other = connect(settings), connect(settings)
        stack.callback(ours.close)
        stack.callback(other.close)
        controller = stack.enter_context(closing(ObsController(show.control, SCENES, ours)))
        controller.start()
        yield show.measure("custom event of obs-websocket", times, _events(other))
        # From oil to the first scene's look, which is ink.
        for transition in ("Cut", "Fade"):
            # Exchanged in its middle, a transition never ends in OBS 29, and no other begins.
            time.sleep(SETTLES_S)
            other.request("SetCurrentSceneTransition", transitionName=transition)
            if transition == "Fade":
                other.request("SetCurrentSceneTransitionDuration", transitionDuration=TRANSITION_MS)
            title = f"scene switch in OBS by {transition.lower()}"
            # OBS takes the next scene only once the transition has ended.
            yield show.measure(title, times, _switches(other), SETTLES_S)


def _events(client: Any) -> list[tuple[int, Command]]:
    def make(look: str) -> Command:
        event = {"eventData": {"instantvision": {"preset": look}}}

        def command() -> float:
            now_s = SYSTEM_CLOCK.now_s()
            client.request("BroadcastCustomEvent", event)
            return now_s

        return command

    return [(GREYS[look], make(look)) for look in ("ink", "oil")]


def _switches(client: Any) -> list[tuple[int, Command]]:
    def make(scene: str) -> Command:
        def command() -> float:
            now_s = SYSTEM_CLOCK.now_s()
            client.request("SetCurrentProgramScene", sceneName=scene)
            return now_s

        return command

    return [(GREYS[SCENES[scene]], make(scene)) for scene in ("Break", "Talk")]


def _obs_lab() -> ModuleType:
    """tests/obs_lab.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("obs_lab", HERE.parent / "tests" / "obs_lab.py")
    if spec is None or spec.loader is None:
        sys.exit("tests/obs_lab.py is missing: run this in a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What else ran


class Neighbours:
    """Processor time of others, from now to the report; on Linux, where OBS runs without a screen."""

    def __init__(self) -> None:
        self._began_s, self._machine_s, self._own_s = time.monotonic(), _machine_s(), _own_s()
        self._first_s = _others_s()
        self._last_s = dict(self._first_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        # Often enough to see most of what comes and goes, rarely enough to cost nothing.
        while not self._ended.wait(2.0):
            self._last_s.update(_others_s())

    def report(self) -> dict[str, Any]:
        """Load, and how much of a core others used: all of them, and by name those that were seen."""
        self._ended.set()
        self._thread.join()
        took_s = time.monotonic() - self._began_s
        others_s = _machine_s() - self._machine_s - (_own_s() - self._own_s)
        shares: dict[str, float] = {}
        for process, seconds in self._last_s.items():
            share = 100 * (seconds - self._first_s.get(process, 0.0)) / took_s
            shares[process[1]] = shares.get(process[1], 0.0) + share
        return {
            "seconds": round(took_s, 1),
            "cores": os.cpu_count(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "others_percent_of_a_core": round(max(0.0, 100 * others_s / took_s), 1),
            "by_name": {name: round(share, 1) for name, share in shares.items() if share >= BUSY_PERCENT},
        }


def _machine_s() -> float:
    """Seconds all cores have worked."""
    user, nice, system, _idle, _wait, irq, softirq = Path("/proc/stat").read_text().split()[1:8]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Seconds of this process and of the children that have ended, such as OBS and Chromium."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _others_s() -> dict[tuple[int, str], float]:
    """Seconds of each process by number and name, this one and its descendants left out."""
    times, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            # It has just ended.
            continue
        pid, _, name = before.partition(" (")
        fields = after.split()
        parents[int(pid)] = int(fields[1])
        times[int(pid), name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {process: seconds for process, seconds in times.items() if not _is_ours(process[0], parents)}


def _is_ours(pid: int, parents: Mapping[int, int]) -> bool:
    while pid not in (0, os.getpid()):
        pid = parents.get(pid, 0)
    return pid != 0


if __name__ == "__main__":
    main()
