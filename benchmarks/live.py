"""The live loop on this machine: its start, a minute of it, and changes of size while it runs.

    python benchmarks/live.py [--size N] [--seconds S] [--parts start,paced,sizes] [--smoke]

`start` is from the start of the process to the first stylised picture that the sink takes, once with an empty Triton
cache and then with what that left. `paced` is a run from the test pattern to nowhere: latency from capture to the sink,
repeated ticks, the GPU's energy and memory, and its busy share, which is the frames' own device time over all time.
`sizes` is a run whose size is changed as the dock does it: a picture is late if it is sent over one and a half ticks
after the one before. All three go through the loop that `instantvision run` has; sources and sinks are the program's,
or ones that also take notes.

Run it on an otherwise idle machine. --smoke is small and short, to see that it works.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from instantvision.integrations.null import NullSink
from instantvision.integrations.test_pattern import TestPatternSource
from instantvision.pipeline.bench import energy_used
from instantvision.pipeline.config import LiveConfig, Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.frames import Frame, Origin, Pixels
from instantvision.pipeline.machine import EnergyCounter, describe_machine, energy_counter
from instantvision.pipeline.meter import LiveStats
from instantvision.pipeline.model import LatentModel
from instantvision.pipeline.stages import FrameEngine, LiveParts, Pending, run_live
from instantvision.pipeline.start import load_mini, started_live_engine

RESULTS = Path(__file__).parent / "results"
PARTS = ("start", "paced", "sizes")
WARM_STARTS = 3
# What a start may take at most, with the slowest compiler.
START_LIMIT_S = 120.0
SIZES = ("512", "1024", "768x1344", "512")
LATE_TICKS = 1.5
# Of each size: long enough to compile kernels and record a graph in the background, and for some seconds of what
# follows.
DWELL_S = 10.0


@dataclass(frozen=True)
class Sent:
    """A picture that the sink took."""

    at_s: float
    shape: tuple[int, ...]
    origin: Origin


class ScriptedSink(NullSink):
    """Takes note of every picture, and does something before some of them.

    Args:
        script: what to do, by the number of the stylised picture that it comes before.
        now_s: the clock.
    """

    def __init__(
        self, script: dict[int, Callable[[], object]], now_s: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__()
        self.pictures: list[Sent] = []
        self._script, self._now_s, self._stylised = script, now_s, 0

    def send(self, frame: Frame) -> None:
        """See Sink."""
        if frame.origin is Origin.STYLISED:
            self._script.get(self._stylised, lambda: None)()
            self._stylised += 1
        super().send(frame)
        self.pictures.append(Sent(self._now_s(), frame.pixels.shape, frame.origin))


class NotingEngine:
    """Passes everything on, and takes note of when pictures of another size began to come out."""

    def __init__(self, engine: FrameEngine) -> None:
        self._engine = engine
        self.sizes: list[tuple[float, Size]] = []

    @property
    def settings(self) -> Settings:
        """See FrameEngine."""
        return self._engine.settings

    def update(self, settings: Settings) -> None:
        """See FrameEngine."""
        self._engine.update(settings)

    def submit(self, pixels: Pixels) -> Pending:
        """See FrameEngine."""
        return NotingPending(self._engine.submit(pixels), self._note)

    def close(self) -> None:
        """See FrameEngine."""
        self._engine.close()

    def _note(self, pixels: Pixels) -> None:
        height, width, _ = pixels.shape
        if not self.sizes or self.sizes[-1][1] != Size(width, height):
            self.sizes.append((time.perf_counter(), Size(width, height)))


class NotingPending:
    """A Pending whose result is shown to somebody first."""

    def __init__(self, pending: Pending, note: Callable[[Pixels], None]) -> None:
        self._pending, self._note = pending, note

    @property
    def device_ms(self) -> float | None:
        """See Pending."""
        return self._pending.device_ms

    @property
    def steps(self) -> int:
        """See Pending."""
        return self._pending.steps

    @property
    def delay(self) -> int | None:
        """See Pending."""
        return self._pending.delay

    def wait(self) -> None:
        """See Pending."""
        self._pending.wait()

    def result(self) -> Pixels:
        """See Pending."""
        pixels = self._pending.result()
        self._note(pixels)
        return pixels


@dataclass(frozen=True, kw_only=True)
class SizeChanges:
    """What a run with changes of size gave.

    Args:
        output: size of the pictures sent.
        pictures: sent since the first stylised one.
        late, slates, wrong_sized: of these.
        longest_ms: between two of them.
        seconds_to_size: from asking for each size to its first picture out of the engine; None if that did not come.
    """

    output: str
    pictures: int
    late: int
    slates: int
    wrong_sized: int
    longest_ms: float
    seconds_to_size: list[tuple[str, float | None]]


def change_sizes(
    make_engine: Callable[[Settings], FrameEngine],
    settings: Settings,
    sizes: Sequence[str],
    dwell: int,
    config: LiveConfig,
) -> SizeChanges:
    """Run live, and ask for another size whenever so many stylised pictures were sent.

    Args:
        make_engine: as `instantvision run` makes it.
        settings: of the run; the first of `sizes` is what it starts with.
        sizes: as a user writes them, one after the other.
        dwell: pictures of each.
        config: the pace; the run ends with the last size.
    """
    stop, asked, engines = threading.Event(), list[tuple[float, str]](), list[NotingEngine]()
    settings = replace(settings, size=Size.parse(sizes[0]))
    control = Control(settings)

    def ask(size: str) -> Callable[[], None]:
        def change() -> None:
            asked.append((time.perf_counter(), size))
            # What the control server does with what the dock sends.
            control.apply({"size": size}, by="dock")

        return change

    def make() -> NotingEngine:
        engines.append(NotingEngine(make_engine(settings)))
        return engines[-1]

    script: dict[int, Callable[[], object]] = {i * dwell: ask(size) for i, size in enumerate(sizes) if i}
    sink = ScriptedSink(script | {len(sizes) * dwell: stop.set})
    parts = LiveParts(
        source=TestPatternSource(settings.size, config.fps),
        sink=sink,
        make_engine=make,
        control=control,
        on_stats=lambda _stats: None,
    )
    run_live(parts, settings.size, config, stop)
    return judge(sink.pictures, settings.size, config.fps, asked, engines[0].sizes)


def judge(
    pictures: Sequence[Sent],
    output: Size,
    fps: float,
    asked: Sequence[tuple[float, str]],
    seen: Sequence[tuple[float, Size]],
) -> SizeChanges:
    """Count what went wrong.

    Args:
        pictures: all that were sent, in order.
        output: the size that they should have.
        fps: the rate they should come at.
        asked: when which size was asked for.
        seen: when the engine's pictures became of which size.
    """
    first = next(
        (i for i, picture in enumerate(pictures) if picture.origin is Origin.STYLISED), len(pictures)
    )
    counted = pictures[first:]
    gaps_s = [after.at_s - before.at_s for before, after in itertools.pairwise(counted)]
    return SizeChanges(
        output=str(output),
        pictures=len(counted),
        late=sum(gap_s > LATE_TICKS / fps for gap_s in gaps_s),
        slates=sum(picture.origin is not Origin.STYLISED for picture in counted),
        wrong_sized=sum(picture.shape != (output.height, output.width, 3) for picture in counted),
        longest_ms=max(gaps_s, default=0.0) * 1e3,
        seconds_to_size=[
            (
                text,
                next(
                    (at_s - asked_s for at_s, size in seen if at_s > asked_s and size == Size.parse(text)),
                    None,
                ),
            )
            for asked_s, text in asked
        ],
    )


@dataclass
class EnergyWatch:
    """The GPU's energy from the first second with pictures to the last; `told` is a run's on_stats."""

    counter: EnergyCounter
    readings: list[tuple[float, float | None, int]] = field(default_factory=list)

    def told(self, stats: LiveStats) -> None:
        """Read the counter."""
        if stats.engine_frames:
            self.readings.append((time.perf_counter(), self.counter.read_j(), stats.engine_frames))

    def to_json(self) -> dict[str, Any]:
        """Average power and energy a frame, or why they are not known."""
        if len(self.readings) < 2:
            return {"power_w": None, "no_power_because": "the run was too short"}
        (start_s, before_j, first), (end_s, after_j, last) = self.readings[0], self.readings[-1]
        energy_j, reason = energy_used(before_j, after_j, end_s - start_s)
        if energy_j is None:
            return {"power_w": None, "no_power_because": self.counter.reason or reason}
        frames = max(last - first, 1)
        return {"power_w": energy_j / (end_s - start_s), "joules_per_frame": energy_j / frames}


def paced(model: LatentModel, settings: Settings, config: LiveConfig) -> dict[str, Any]:
    """A run from the test pattern to nowhere."""
    gpu = model.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    with energy_counter(model.device) as counter:
        watch = EnergyWatch(counter)
        parts = LiveParts(
            source=TestPatternSource(settings.size, config.fps),
            sink=NullSink(),
            make_engine=lambda: started_live_engine(model, settings),
            control=Control(settings),
            on_stats=watch.told,
        )
        stats = run_live(parts, settings.size, config, threading.Event())
        energy = watch.to_json()
    return {
        "live": stats.to_json(),
        "busy_share": stats.fps_engine * stats.engine_device_ms.mean / 1e3,
        "peak_memory_mb": torch.cuda.max_memory_reserved(model.device) / 2**20 if gpu else None,
        **energy,
    }


def starts(arguments: Sequence[str]) -> dict[str, Any]:
    """Seconds to the first stylised picture of `instantvision run` with these arguments, cold once and then warm."""
    with tempfile.TemporaryDirectory() as cache:
        cold_s, *warm_s = [start(arguments, Path(cache)) for _ in range(1 + WARM_STARTS)]
    return {"cold_s": cold_s, "warm_s": sorted(warm_s)[len(warm_s) // 2], "warm_all_s": warm_s}


def start(arguments: Sequence[str], triton_cache: Path) -> float:
    """Of a single process."""
    program = [
        sys.executable,
        str(Path(__file__).with_name("first_look.py")),
        repr(time.monotonic()),
        *arguments,
    ]
    environment = os.environ | {"TRITON_CACHE_DIR": str(triton_cache)}
    done = subprocess.run(
        program, env=environment, stdout=subprocess.PIPE, timeout=START_LIMIT_S, check=False, text=True
    )
    return float(done.stdout.splitlines()[-1])


def report(args: argparse.Namespace) -> dict[str, Any]:
    """All parts that are wanted."""
    found: dict[str, Any] = {}
    wanted = args.parts.split(",")
    size, sizes = ("64", ("64", "96", "80x112", "64")) if args.smoke else (args.size, SIZES)
    seconds, dwell_s = (3.0, 0.5) if args.smoke else (args.seconds, DWELL_S)
    settings = Settings(
        size=Size.parse(size),
        steps=1 if args.smoke else args.steps,
        pipeline=args.pipeline,
        temporal=args.temporal,
    )
    options = [
        "--size",
        size,
        "--steps",
        str(settings.steps),
        "--pipeline",
        args.pipeline,
        "--temporal",
        args.temporal,
    ]
    if "start" in wanted:
        found["start"] = starts(options)
    model, settings = load_mini(settings)
    if "paced" in wanted:
        found["paced"] = paced(model, settings, LiveConfig(fps=args.fps, duration_s=seconds))
    if "sizes" in wanted:
        limit_s = 10 * dwell_s * len(sizes)
        changes = change_sizes(
            lambda settings: started_live_engine(model, settings),
            settings,
            sizes,
            max(1, round(dwell_s * args.fps)),
            LiveConfig(fps=args.fps, duration_s=limit_s),
        )
        found["sizes"] = dataclasses.asdict(changes)
    return {"machine": dataclasses.asdict(describe_machine(model.device, args.commit)), **found}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="1024", help="N or WxH in pixels, of the start and the paced run")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--fps", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the paced run")
    parser.add_argument("--pipeline", default="latency", choices=("latency", "throughput"))
    parser.add_argument("--temporal", default="noise", choices=("off", "noise", "warm"))
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between")
    parser.add_argument("--smoke", action="store_true", help="small and short; writes no file")
    parser.add_argument("--commit", help="that is measured, in a copy that git knows nothing of")
    args = parser.parse_args()
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    found = report(args)
    text = json.dumps(found, indent=2)
    print(text)
    if not args.smoke:
        machine = found["machine"]
        device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
        path = RESULTS / f"live-{machine['date'][:10]}-{device}-{args.size}-{args.pipeline}.json"
        path.write_text(text + "\n", encoding="utf-8")
        print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
