"""How near is each fast way of making frames to 50 plain steps, how much does it flicker, and what does it cost?

    python benchmarks/quality.py CLIP [CLIP ...] [--presets oil,ink|all] [--size N] [--frames N] [--out FOLDER]

Plays every clip with every preset in every configuration and writes into the folder: quality.json (all figures),
quality.md (the table), quality.svg (distance against time) and of every preset a side-by-side video of the first clip.
The metrics are those of training/video_metrics.py, which says what to install. Times are of the device, and on a GPU of
graphs that were recorded before; `saved` is the share of that time that 8 plain steps would have taken.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from instantvision.pipeline.machine import describe_machine, energy_counter
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.presets import load_presets, settings_for
from instantvision.pipeline.start import load_mini
from instantvision.training.painters import PAINTERS, paint
from instantvision.training.video_metrics import LpipsLike, psnr_db, warping_errors

REFERENCE = "50 plain"
PAINTER = "painter"
# What the others' time is compared with, which the program does by itself, and what it could do.
PLAIN, WARM = "8 frozen noise", "warm"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {"temporal": "noise"},
    "4 frozen noise": {"temporal": "noise", "steps": 4},
    "8 fresh noise": {"temporal": "off"},
    WARM: {"temporal": "warm"},
    "warm, no skipping": {"temporal": "warm", "epsilon": 0.0},
    "warm, 2 steps": {"temporal": "warm", "steps_ceiling": 2, "epsilon": 0.0},
}
SHOWN = ("8 fresh noise", PLAIN, WARM, REFERENCE, PAINTER)
# Shown again so often, a clip's last frame is a still scene: two seconds at 30 Hz.
STILL_FRAMES = 60
# The GPU renews its energy counter ten times a second; a measured run is repeated until it lasts this long.
ENERGY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration, preset and clip.

    Args:
        distance, psnr_db: of 50 plain steps, mean over the frames; None without a reference.
        flicker: warping error of the output over that of the source.
        steps, ms: mean a frame.
        still_steps, still_ms: of the last frame shown again for two seconds.
    """

    way: str
    preset: str
    clip: str
    distance: float | None
    psnr_db: float | None
    flicker: float
    steps: float
    ms: float
    still_steps: float
    still_ms: float


@dataclass(frozen=True, kw_only=True)
class Played:
    """What an engine made of a clip; steps and times a frame."""

    frames: list[Pixels]
    steps: list[int]
    ms: list[float]
    still_steps: list[int]
    still_ms: list[float]


def play(engine: Engine, source: Sequence[Pixels]) -> Played:
    """Stylise a clip frame by frame, then its last frame as a still scene where that is no frame like any other."""
    frames, steps, ms = [], [], []
    still = STILL_FRAMES if engine.settings.temporal == "warm" else 0
    for picture in [*source, *[source[-1]] * still]:
        pending = engine.submit(picture)
        frames.append(pending.result())
        steps.append(pending.steps)
        ms.append(pending.device_ms or 0.0)
    count = len(source)
    return Played(
        frames=frames[:count],
        steps=steps[:count],
        ms=ms[:count],
        still_steps=steps[count:] or steps,
        still_ms=ms[count:] or ms,
    )


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
    engine: Engine, preset: str, clip: str, source: list[Pixels], lpips: LpipsLike, device: torch.device
) -> tuple[list[Row], dict[str, list[Pixels]]]:
    """Every configuration on a clip; rows, and the videos by name."""
    base = replace(settings_for(Mix.parse(preset)), size=engine.settings.size)
    ways: dict[str, Settings] = {
        REFERENCE: replace(base, steps=50, temporal="noise"),
        **{way: replace(base, **changes) for way, changes in WAYS.items()},
    }
    played: dict[str, Played] = {}
    for way, settings in ways.items():
        engine.update(settings)
        played[way] = play(engine, source)
    videos = {way: each.frames for way, each in played.items()}
    if (by_painter := painted(preset, source, device)) is not None:
        videos[PAINTER] = by_painter
    own, *errors = warping_errors(source, [source, *videos.values()])
    flicker = {way: error / own for way, error in zip(videos, errors, strict=True)}
    rows = [
        _row(way, preset, clip, video, videos[REFERENCE], flicker[way], played.get(way), lpips)
        for way, video in videos.items()
    ]
    return rows, videos


def _row(
    way: str,
    preset: str,
    clip: str,
    video: list[Pixels],
    reference: list[Pixels],
    flicker: float,
    played: Played | None,
    lpips: LpipsLike,
) -> Row:
    compared = way not in (REFERENCE, PAINTER)
    pairs = list(zip(video, reference, strict=True))
    return Row(
        way=way,
        preset=preset,
        clip=clip,
        distance=mean([lpips(*pair) for pair in pairs]) if compared else None,
        psnr_db=mean([psnr_db(*pair) for pair in pairs]) if compared else None,
        flicker=flicker,
        steps=mean(played.steps) if played else 0.0,
        ms=mean(played.ms) if played else 0.0,
        still_steps=mean(played.still_steps) if played else 0.0,
        still_ms=mean(played.still_ms) if played else 0.0,
    )


def joules(engine: Engine, settings: Settings, source: list[Pixels], device: torch.device) -> float | None:
    """Energy of the whole GPU a frame, with two frames on their way; None where nothing counts it."""
    engine.update(settings)
    with energy_counter(device) as counter:
        before, frames, spent_ms = counter.read_j(), 0, 0.0
        if before is None:
            return None
        while spent_ms < ENERGY_S * 1e3:
            for picture in source:
                pending = engine.submit(picture)
                pending.result()
                # What repeats a picture takes no device time: count a frame of a 60 Hz stream.
                spent_ms += max(pending.device_ms or 0.0, 0.1)
                frames += 1
        after = counter.read_j()
    return None if after is None else (after - before) / frames


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0


def table(rows: list[Row]) -> str:
    """Means over clips and presets, then the flicker of each preset, in Markdown."""
    ways = list(dict.fromkeys(row.way for row in rows))
    base_ms = mean([row.ms for row in rows if row.way == PLAIN])
    lines = ["| way | LPIPS-like | PSNR dB | flicker | steps | ms | saved | still: steps | still: ms |"]
    lines.append("|---|" + "---:|" * 8)
    for way in ways:
        own = [row for row in rows if row.way == way]
        distance = [row.distance for row in own if row.distance is not None]
        quality = [f"{mean(distance):.4f}", f"{mean([row.psnr_db or 0.0 for row in own]):.1f}"]
        cells = [way, *(quality if distance else ["", ""]), f"{mean([row.flicker for row in own]):.2f}"]
        if way != PAINTER:
            ms, still_ms = mean([row.ms for row in own]), mean([row.still_ms for row in own])
            cells += [f"{mean([row.steps for row in own]):.2f}", f"{ms:.2f}", f"{1 - ms / base_ms:.0%}"]
            cells += [f"{mean([row.still_steps for row in own]):.2f}", f"{still_ms:.2f}"]
        else:
            cells += [""] * 5
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| flicker | {' | '.join(ways)} |", "|---|" + "---:|" * len(ways)]
    for preset in dict.fromkeys(row.preset for row in rows):
        values = [
            mean([row.flicker for row in rows if (row.way, row.preset) == (way, preset)]) for way in ways
        ]
        lines.append(f"| {preset} | {' | '.join(f'{value:.2f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row]) -> str:
    """Distance of 50 plain steps against time a frame, a point a configuration, as SVG."""
    ways = [way for way in dict.fromkeys(row.way for row in rows) if way not in (REFERENCE, PAINTER)]
    points = {
        way: (
            mean([row.ms for row in rows if row.way == way]),
            mean([row.distance or 0.0 for row in rows if row.way == way]),
        )
        for way in ways
    }
    right = 1.25 * max(ms for ms, _ in points.values()) or 1.0
    top = 1.15 * max(max(distance for _, distance in points.values()), 0.04)
    width, height, left, bottom = 760, 420, 70, 50

    def at(ms: float, distance: float) -> tuple[float, float]:
        return (
            left + ms / right * (width - left - 20),
            height - bottom - distance / top * (height - bottom - 20),
        )

    x0, y0 = at(0, 0)
    _, limit = at(0, 0.04)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        '<g font-family="sans-serif" font-size="14"><rect width="100%" height="100%" fill="#fff"/>',
        f'<path d="M{x0} 20V{y0}H{width - 20}" fill="none" stroke="#333"/>',
        f'<path d="M{x0} {limit:.1f}H{width - 20}" stroke="#c33" stroke-dasharray="5 5"/>',
        f'<text x="{x0 - 8}" y="{limit + 5:.1f}" text-anchor="end">0.04</text>',
        f'<text x="{x0 - 8}" y="{y0}" text-anchor="end">0</text>',
        f'<text x="{width - 20}" y="{height - 15}" text-anchor="end">ms a frame, 0 to {right:.1f}</text>',
        f'<text x="{x0 + 10}" y="34">LPIPS-like (HED-VGG16) distance of 50 plain steps</text>',
    ]
    for way, point in points.items():
        x, y = at(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#257"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 5:.1f}">{way}</text>')
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def write_video(path: Path, source: list[Pixels], videos: dict[str, list[Pixels]], fps: Fraction) -> None:
    """The source and what was made of it, labelled and side by side."""
    shown = {"source": source} | {way: videos[way] for way in SHOWN if way in videos}
    sheets = (contact_sheet([(way, video[t]) for way, video in shown.items()]) for t in range(len(source)))
    first = next(sheets)
    # Encoders want even sides, the program's sizes are multiples of 16.
    height, width = (side // 16 * 16 for side in first.shape[:2])
    with VideoWriter(path, Size(width, height), fps) as out:
        for sheet in _chain(first, sheets):
            out.write(np.ascontiguousarray(sheet[:height, :width]))


def _chain(first: Pixels, others: Iterator[Pixels]) -> Iterator[Pixels]:
    yield first
    yield from others


def read(path: Path, size: Size, frames: int | None) -> tuple[list[Pixels], Fraction]:
    """The frames of a clip, filling the size, and their rate."""
    with VideoReader(path) as clip:
        return [fit(frame.pixels, size, "cover") for frame in islice(clip, frames)], clip.fps


def measure(model: Mini, args: argparse.Namespace) -> dict[str, Any]:
    """Play everything and write what is to be looked at; the figures."""
    size, device = Size.parse(args.size), model.device
    presets = list(load_presets()) if args.presets == "all" else args.presets.split(",")
    lpips, rows = LpipsLike(device), list[Row]()
    clips = {path.stem: read(path, size, args.frames) for path in args.clips}
    engine = Engine(model, Settings(size=size))
    energy: dict[str, float | None] = {}
    try:
        for preset in presets:
            for i, (clip, (source, fps)) in enumerate(clips.items()):
                made, videos = compare(engine, preset, clip, source, lpips, device)
                rows += made
                if not i:
                    write_video(args.out / f"{preset}.mp4", source, videos, fps)
                print(preset, clip, *(f"{row.way}: {row.flicker:.2f}" for row in made), sep="; ", flush=True)
        source = next(iter(clips.values()))[0]
        for name, frames in (("moving", source), ("still", [source[-1]] * len(source))):
            for way in (PLAIN, WARM):
                changes = WAYS[way]
                settings = replace(engine.settings, **complete(changes))
                energy[f"{way}, {name}"] = joules(engine, settings, frames, device)
    finally:
        engine.close()
    return {
        "machine": asdict(describe_machine(device)),
        "size": str(size),
        "clips": {clip: len(source) for clip, (source, _) in clips.items()},
        "joules_per_frame": energy,
        "rows": [asdict(row) for row in rows],
    }


def complete(changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration's settings, complete: what it does not name is the default."""
    names = ("temporal", "steps", "epsilon", "steps_floor", "steps_ceiling")
    return {name: getattr(Settings(), name) for name in names} | changes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--presets", default="oil,ink,stained-glass", help="names, or all")
    parser.add_argument("--size", default="512", help="N or WxH in pixels")
    parser.add_argument("--frames", type=int, help="of each clip; all without it")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, _ = load_mini(Settings())
    report = measure(model, args)
    rows = [Row(**row) for row in report["rows"]]
    (args.out / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    (args.out / "quality.md").write_text(table(rows))
    (args.out / "quality.svg").write_text(plot(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
