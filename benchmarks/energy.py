"""What a stream of 60 pictures a second costs: board power and how long the GPU is busy, still and moving.

    python benchmarks/energy.py CLIP [--size N] [--preset NAME] [--seconds S] [--rounds N] [--out FILE.json]

Pictures come at a steady rate, as from a camera, and each way of making frames gets the same ones: the clip forwards
and backwards without end (moving; one of 30 Hz moves twice as fast as it did), or its last picture with a camera's
noise (still). The ways take turns of --seconds, and a turn without any work tells what the board takes anyway. Watts
are joules a second by the GPU's own energy counter; busy is the device's time over the time on the clock. Without such
a counter there is no power, the rest is measured.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from instantvision.integrations.video_reader import VideoReader
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.machine import EnergyCounter, describe_machine, energy_counter
from instantvision.pipeline.presets import settings_for
from instantvision.pipeline.start import load_mini

WAYS: Mapping[str, Mapping[str, Any]] = {
    "8 plain steps": {"temporal": "noise"},
    "warm": {"temporal": "warm"},
    "full": {"temporal": "full"},
}
IDLE = "idle"
# Of a camera in a lit room, in levels, and how many different pictures of it there are.
NOISE_LEVELS, NOISY_PICTURES = 3.0, 8

Wait = Callable[[float], object]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One way over some seconds.

    Args:
        frames, steps: made, and evaluations of the denoiser of all of them.
        late: frames whose picture was there before the frame before was done.
        elapsed_s, busy_s: on the clock, and of the device.
        energy_j: of the whole GPU; None without a counter.
    """

    frames: int
    steps: int
    late: int
    elapsed_s: float
    busy_s: float
    energy_j: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All turns of one way over one kind of picture."""

    way: str
    picture: str
    watts: float | None
    joules_per_frame: float | None
    busy: float
    mean_steps: float
    late: float
    seconds: float

    @classmethod
    def of(cls, way: str, picture: str, turns: Sequence[Turn]) -> "Figures":
        """Means over the turns."""
        seconds, frames = sum(turn.elapsed_s for turn in turns), sum(turn.frames for turn in turns)
        joules = [turn.energy_j for turn in turns if turn.energy_j is not None]
        known = len(joules) == len(turns)
        return cls(
            way=way,
            picture=picture,
            watts=sum(joules) / seconds if known else None,
            joules_per_frame=sum(joules) / frames if known and frames else None,
            busy=sum(turn.busy_s for turn in turns) / seconds,
            mean_steps=sum(turn.steps for turn in turns) / max(frames, 1),
            late=sum(turn.late for turn in turns) / max(frames, 1),
            seconds=seconds,
        )


def paced(
    engine: Engine | None,
    pictures: Iterator[Pixels],
    ticks: int,
    fps: float,
    counter: EnergyCounter,
    *,
    clock: Callable[[], float] = time.perf_counter,
    wait: Wait | None = None,
) -> Turn:
    """Give an engine a picture at each tick and wait for what it makes of it; None only lets the time pass.

    Args:
        engine: with its graphs recorded.
        pictures: at least as many as ticks.
        ticks: to measure.
        fps: ticks a second.
        counter: of energy.
        clock, wait: time in seconds, and what passes it.
    """
    wait = wait or threading.Event().wait
    before_j, started_s = counter.read_j(), clock()
    frames = steps = late = 0
    busy_ms = 0.0
    for tick, picture in enumerate(islice(pictures, ticks)):
        ahead_s = started_s + tick / fps - clock()
        if ahead_s > 0:
            wait(ahead_s)
        if engine is None:
            continue
        late += ahead_s < 0 and tick > 0
        pending = engine.submit(picture)
        pending.result()
        frames, steps, busy_ms = frames + 1, steps + pending.steps, busy_ms + (pending.device_ms or 0.0)
    # To the end of the last tick, so that all turns of as many ticks are as long.
    if (ahead_s := started_s + ticks / fps - clock()) > 0:
        wait(ahead_s)
    elapsed_s, after_j = clock() - started_s, counter.read_j()
    energy_j = None if before_j is None or after_j is None else after_j - before_j
    return Turn(
        frames=frames, steps=steps, late=late, elapsed_s=elapsed_s, busy_s=busy_ms / 1e3, energy_j=energy_j
    )


def noisy(picture: Pixels) -> list[Pixels]:
    """A still scene as a camera sees it."""
    generator = np.random.default_rng(0)
    noise = [generator.normal(0, NOISE_LEVELS, picture.shape) for _ in range(NOISY_PICTURES)]
    return [np.clip(picture + each, 0, 255).astype(np.uint8) for each in noise]


def table(figures: Sequence[Figures]) -> str:
    """In Markdown."""
    lines = ["| way | picture | W | J a frame | busy | steps | late |", "|---|---|" + "---:|" * 5]
    for each in figures:
        watts = "" if each.watts is None else f"{each.watts:.1f}"
        joules = "" if each.joules_per_frame is None else f"{each.joules_per_frame:.2f}"
        lines.append(
            f"| {each.way} | {each.picture} | {watts} | {joules} | {each.busy:.1%} | {each.mean_steps:.2f} "
            f"| {each.late:.1%} |"
        )
    return "\n".join(lines) + "\n"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All ways over both kinds of pictures, in turns."""
    size = Size.parse(args.size)
    settings = settings_for(Mix.parse(args.preset), size=size)
    model, _ = load_mini(settings)
    with VideoReader(args.clip) as clip:
        frames = [fit(frame.pixels, size, "cover") for frame in clip]
    kinds = {"moving": [*frames, *frames[-2:0:-1]], "still": noisy(frames[-1])}
    ticks = round(args.seconds * args.fps)
    turns: dict[tuple[str, str], list[Turn]] = {}
    with ExitStack() as stack:
        counter = stack.enter_context(energy_counter(model.device))
        engines: dict[str, Engine | None] = {IDLE: None}
        for way, changes in WAYS.items():
            engines[way] = stack.enter_context(closing(Engine(model, replace(settings, **changes))))
        for _ in range(args.rounds):
            for kind, pictures in kinds.items():
                for way, engine in engines.items():
                    # What a cut costs, and the graphs' first run, are no part of a stream that goes on.
                    for picture in pictures[-2:] if engine else ():
                        engine.stylise(picture)  # type: ignore[union-attr]
                    turn = paced(engine, cycle(pictures), ticks, args.fps, counter)
                    turns.setdefault((way, kind), []).append(turn)
    figures = [Figures.of(*key, each) for key, each in turns.items()]
    print(table(figures))
    return {
        "machine": asdict(describe_machine(model.device, args.commit)),
        "size": str(size),
        "preset": args.preset,
        "fps": args.fps,
        "clip": args.clip.stem,
        "no_power_because": counter.reason,
        "figures": [asdict(each) for each in figures],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path, metavar="CLIP")
    parser.add_argument("--size", default="1024", help="N or WxH in pixels")
    parser.add_argument("--preset", default=str(Settings().mix))
    parser.add_argument("--fps", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--commit", help="that is measured, in a copy that git knows nothing of")
    parser.add_argument("--out", type=Path, help="file for the figures")
    args = parser.parse_args()
    report = measure(args)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
