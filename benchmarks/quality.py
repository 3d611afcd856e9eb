"""How near is each fast way of making frames to 50 plain steps, how much does it flicker, and what does it cost?

    python benchmarks/quality.py CLIP [CLIP ...] [--presets oil,ink|all] [--size N] [--frames N] [--out FOLDER]
                                 [--ways warm,full]
    python benchmarks/quality.py --merge FOLDER [FOLDER ...] [--out FOLDER]

Plays every clip with every preset in every configuration. Each preset is saved when it is done (FOLDER/parts), and not
measured again by a later run into the same folder: a run may be ended at any time and go on, or be shared out by
presets and joined with --merge; runs beside each other take no times (--untimed), which are then those of one that ran
alone. With --ways only some configurations play; without 50 plain steps there are no distances. Then the folder has
quality.json (all figures), quality.md (the table), quality.svg (distance against time) and of every preset a
side-by-side video of the first clip.

The metrics are those of training/video_metrics.py, which says what to install. Times are of the device, on a GPU of
graphs that were recorded before, and the configurations take turns from frame to frame; `saved` is the share of that
time that 8 plain steps would have taken. Energy at 60 frames a second is benchmarks/energy.py.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instantvision.integrations.video_reader import VideoReader
from instantvision.integrations.video_writer import VideoWriter
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.contact_sheet import contact_sheet
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.machine import describe_machine
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.presets import load_presets, settings_for
from instantvision.pipeline.start import load_mini
from instantvision.training.painters import PAINTERS, paint
from instantvision.training.video_metrics import LpipsLike, Motion, psnrs_db
from quality_report import PAINTER, PLAIN, REFERENCE, Part, Row, mean, read_parts, write_report

WARM, FULL = "warm", "full"
WAYS: dict[str, dict[str, Any]] = {
    REFERENCE: {"temporal": "noise", "steps": 50},
    PLAIN: {"temporal": "noise"},
    "4 frozen noise": {"temporal": "noise", "steps": 4},
    "8 fresh noise": {"temporal": "off"},
    WARM: {"temporal": "warm"},
    "warm 4 steps": {"temporal": "warm", "steps_ceiling": 4, "epsilon": 0.0},
    "warm 2 steps": {"temporal": "warm", "steps_ceiling": 2, "epsilon": 0.0},
    FULL: {"temporal": "full"},
}
SHOWN = ("8 fresh noise", PLAIN, WARM, FULL, REFERENCE, PAINTER)
# Shown again so often, a clip's last frame is a still scene: two seconds at 30 Hz.
STILL_FRAMES = 60


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip with everything about it that does not depend on the preset."""

    name: str
    frames: list[Pixels]
    fps: Fraction
    motion: Motion
    own_error: float

    @classmethod
    def read(cls, path: Path, size: Size, frames: int | None, device: torch.device) -> "Clip":
        """Read the first frames of a file, filling the size."""
        with VideoReader(path) as clip:
            pictures = [fit(frame.pixels, size, "cover") for frame in islice(clip, frames)]
            fps = clip.fps
        motion = Motion(pictures, device)
        return cls(name=path.stem, frames=pictures, fps=fps, motion=motion, own_error=motion.source_error())


@dataclass(kw_only=True)
class Played:
    """What an engine made of a clip; steps and times a frame."""

    frames: list[Pixels] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    still_steps: list[int] = field(default_factory=list)
    still_ms: list[float] = field(default_factory=list)


def begin(engine: Engine, settings: Settings) -> None:
    """Use settings from nothing: another seed in between makes the engine forget the clip before."""
    engine.update(replace(settings, seed=settings.seed + 1))
    engine.update(settings)


def play(engines: Mapping[str, Engine], source: Sequence[Pixels]) -> dict[str, Played]:
    """Stylise a clip in every way, frame by frame in turns, then its last frame as a still scene."""
    played = {way: Played() for way in engines}
    for picture in source:
        for way, engine in engines.items():
            pending, each = engine.submit(picture), played[way]
            each.frames.append(pending.result())
            each.steps.append(pending.steps)
            each.ms.append(pending.device_ms or 0.0)
    for way, engine in engines.items():
        each = played[way]
        if engine.settings.temporal not in ("warm", "full"):
            # To these a still scene is a clip like any other.
            each.still_steps, each.still_ms = each.steps, each.ms
            continue
        for _ in range(STILL_FRAMES):
            pending = engine.submit(source[-1])
            pending.result()
            each.still_steps.append(pending.steps)
            each.still_ms.append(pending.device_ms or 0.0)
    return played


def painted(preset: str, source: Sequence[Pixels], device: torch.device) -> list[Pixels] | None:
    """The preset's painter, frame by frame; None for a preset of more than one style."""
    styles = list(load_presets()[preset].styles)
    if len(styles) != 1 or styles[0] not in PAINTERS:
        return None

    def one(picture: Pixels) -> Pixels:
        image = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 255
        done = paint(styles[0], image, picture.shape[0] / 512, 0)[0].permute(1, 2, 0)
        return (done * 255).round().byte().cpu().numpy()

    return [one(picture) for picture in source]


def compare(
    engines: Mapping[str, Engine],
    preset: str,
    clip: Clip,
    lpips: LpipsLike,
    device: torch.device,
    *,
    timed: bool = True,
) -> tuple[list[Row], dict[str, list[Pixels]]]:
    """Every configuration on a clip; rows, and the videos by name."""
    settings = settings_for(Mix.parse(preset))
    for way, engine in engines.items():
        begin(engine, replace(settings, size=engine.settings.size, **complete(WAYS[way])))
    played = play(engines, clip.frames)
    videos = {way: each.frames for way, each in played.items()}
    if (by_painter := painted(preset, clip.frames, device)) is not None:
        videos[PAINTER] = by_painter
    errors = clip.motion.warping_errors(list(videos.values()))
    reference = REFERENCE in engines
    distances, ratios = nearness(list(played.values()), lpips, device) if reference else ([], [])
    rows = []
    for i, (way, error) in enumerate(zip(videos, errors, strict=True)):
        each = played.get(way, Played())
        compared = reference and way not in (REFERENCE, PAINTER)
        rows.append(
            Row(
                way=way,
                preset=preset,
                clip=clip.name,
                distance=distances[i] if compared else None,
                psnr_db=ratios[i] if compared else None,
                flicker=error / clip.own_error,
                steps=mean(each.steps),
                ms=mean(each.ms) if timed else None,
                still_steps=mean(each.still_steps),
                still_ms=mean(each.still_ms) if timed else None,
                frames=len(clip.frames),
            )
        )
    return rows, videos


def nearness(
    played: Sequence[Played], lpips: LpipsLike, device: torch.device
) -> tuple[list[float], list[float]]:
    """LPIPS-like distance and PSNR of every video to the first of them, means over the frames."""
    count = len(played[0].frames)
    distances = torch.zeros(len(played), dtype=torch.float64, device=device)
    ratios = torch.zeros_like(distances)
    for t in range(count):
        pixels = torch.from_numpy(np.stack([each.frames[t] for each in played])).to(device)
        distances[1:] += lpips.of_all(pixels)
        ratios[1:] += psnrs_db(pixels)
    return (distances / count).tolist(), (ratios / count).tolist()


def write_video(path: Path, clip: Clip, videos: dict[str, list[Pixels]]) -> None:
    """The source and what was made of it, labelled and side by side."""
    shown = {"source": clip.frames} | {way: videos[way] for way in SHOWN if way in videos}
    sheets = (
        contact_sheet([(way, video[t]) for way, video in shown.items()]) for t in range(len(clip.frames))
    )
    first = next(sheets)
    # Encoders want even sides, the program's sizes are multiples of 16.
    height, width = (side // 16 * 16 for side in first.shape[:2])
    with VideoWriter(path, Size(width, height), clip.fps) as out:
        for sheet in _chain(first, sheets):
            out.write(np.ascontiguousarray(sheet[:height, :width]))


def _chain(first: Pixels, others: Iterator[Pixels]) -> Iterator[Pixels]:
    yield first
    yield from others


def complete(changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's settings, complete: what it does not name is the default."""
    names = ("temporal", "steps", "epsilon", "steps_floor", "steps_ceiling")
    return {name: getattr(Settings(), name) for name in names} | dict(changes)


def measure(model: Mini, args: argparse.Namespace) -> None:
    """Play what the folder does not have yet, saving each preset when it is done."""
    size, device = Size.parse(args.size), model.device
    presets = list(load_presets()) if args.presets == "all" else args.presets.split(",")
    missing = [preset for preset in presets if not Part.path(args.out, preset).exists()]
    if not missing:
        return
    lpips = LpipsLike(device)
    clips = [Clip.read(path, size, args.frames, device) for path in args.clips]
    machine = describe_machine(device, args.commit)
    about = {
        "device": machine.device,
        "commit": machine.commit,
        "size": str(size),
        "frames": {clip.name: len(clip.frames) for clip in clips},
        "kernels": machine.kernels,
        "torch": machine.torch,
        "date": machine.date,
    }
    with ExitStack() as stack:
        # An engine a way: none has to forget what the frame before left when another's turn comes.
        engines = {
            way: stack.enter_context(closing(Engine(model, Settings(size=size, **complete(changes)))))
            for way, changes in WAYS.items()
            if way in args.ways
        }
        for preset in missing:
            started_s, rows = time.perf_counter(), list[Row]()
            for clip in clips:
                made, videos = compare(engines, preset, clip, lpips, device, timed=not args.untimed)
                rows += made
                if clip is clips[0]:
                    write_video(args.out / f"{preset}.mp4", clip, videos)
            Part(about=about, preset=preset, rows=rows).write(args.out)
            print(preset, f"{time.perf_counter() - started_s:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="*", type=Path, metavar="CLIP")
    parser.add_argument("--presets", default="oil,ink,stained-glass", help="names, or all")
    parser.add_argument(
        "--ways",
        type=lambda text: text.split(","),
        default=list(WAYS),
        help=f"of {', '.join(WAYS)}, with commas between; all without it",
    )
    parser.add_argument("--size", default="512", help="N or WxH in pixels")
    parser.add_argument("--frames", type=int, help="of each clip; all without it")
    parser.add_argument("--untimed", action="store_true", help="take no times, beside other runs")
    parser.add_argument("--commit", help="that is measured, in a copy that git knows nothing of")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FOLDER", help="join what these have")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder")
    args = parser.parse_args()
    if bool(args.clips) == bool(args.merge):
        parser.error("give clips to measure, or --merge with folders to join")
    if unknown := set(args.ways) - WAYS.keys():
        parser.error(f"--ways {sorted(unknown)[0]!r} is none of {', '.join(WAYS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.clips:
        model, _ = load_mini(Settings())
        measure(model, args)
    print(write_report(args.out, read_parts(args.merge or [args.out])))


if __name__ == "__main__":
    main()
