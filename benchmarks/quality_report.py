"""What quality.py measured, part by part: the file of a preset, parts joined, the table and the plot.

Knows nothing of engines or of how anything is measured.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instantvision.pipeline.errors import ConfigError

REFERENCE = "50 plain"
PAINTER = "painter"
# What the others' time is compared with.
PLAIN = "8 frozen noise"
# What parts must have in common to be joined.
SAME = ("device", "commit", "size", "frames")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration, preset and clip.

    Args:
        distance, psnr_db: of 50 plain steps, mean over the frames; None without a reference.
        flicker: warping error of the output over that of the source.
        steps, ms: mean a frame of the device, the ways taking turns from frame to frame; None for times not taken.
        frames: of the clip.
        still_steps, still_ms: of the last frame shown again for two seconds.
    """

    way: str
    preset: str
    clip: str
    distance: float | None
    psnr_db: float | None
    flicker: float
    steps: float
    ms: float | None
    still_steps: float
    still_ms: float | None
    frames: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """One preset on all clips.

    Args:
        about: what parts of one table must have in common, such as the device and the size, as plain values.
        preset: its name.
        rows: every way on every clip.
    """

    about: Mapping[str, Any]
    preset: str
    rows: Sequence[Row]

    @staticmethod
    def path(folder: Path, preset: str) -> Path:
        """Where a folder has the part of a preset."""
        return folder / "parts" / f"{preset}.json"

    def write(self, folder: Path) -> None:
        """Save it whole or not at all: the run may be ended at any moment."""
        path = self.path(folder, self.preset)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        rows = [asdict(row) for row in self.rows]
        unfinished.write_text(
            json.dumps({"about": dict(self.about), "preset": self.preset, "rows": rows}, indent=1)
        )
        unfinished.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Part":
        """A saved part."""
        saved = json.loads(path.read_text())
        return cls(about=saved["about"], preset=saved["preset"], rows=[Row(**row) for row in saved["rows"]])


def read_parts(folders: Sequence[Path]) -> list[Part]:
    """All parts of some folders, of each preset the first one found, by name.

    Raises:
        ConfigError: there are none, or they were measured under conditions that differ.
    """
    parts: dict[str, Part] = {}
    for path in (path for folder in folders for path in sorted((folder / "parts").glob("*.json"))):
        part = Part.read(path)
        parts.setdefault(part.preset, part)
    if not parts:
        raise ConfigError(f"no parts in {', '.join(map(str, folders))}: measure some first")
    about = [part.about for part in parts.values()]
    for key in SAME:
        if len(values := {str(each[key]) for each in about}) > 1:
            raise ConfigError(
                f"the parts differ in {key}: {', '.join(sorted(values))}; join those that agree"
            )
    return [parts[preset] for preset in sorted(parts)]


def write_report(folder: Path, parts: Sequence[Part]) -> str:
    """Write quality.json, quality.md and quality.svg; the table."""
    rows = [row for part in parts for row in part.rows]
    report = {
        "about": dict(parts[0].about),
        "presets": [part.preset for part in parts],
        "rows": [asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "quality.md").write_text(text := table(rows))
    (folder / "quality.svg").write_text(plot(rows))
    return text


def mean(values: Iterable[float | None]) -> float:
    """Arithmetic mean of what is known; 0 of nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def table(rows: Sequence[Row]) -> str:
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
            saved = f"{1 - ms / base_ms:.0%}" if base_ms else ""
            cells += [f"{mean([row.steps for row in own]):.2f}", f"{ms:.2f}", saved]
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


def plot(rows: Sequence[Row]) -> str:
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
