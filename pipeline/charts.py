"""Plots as SVG text, to stand in a page. Knows nothing of what is plotted.

Drawn with matplotlib, which is an optional dependency: `pip install "instantvision[report]"`.
"""

import importlib.util
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from instantvision.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#23252b", "#6b7280", "#e3e5ea"
# Ours first, in the program's amber; greys and blues for all that it is compared with.
COLOURS = ("#e08a2e", "#5b7ea8", "#9aa3b2", "#3f5672", "#c9a27a", "#7fa38d")
# Any: matplotlib lists all names of settings in the type.
STYLE: dict[Any, Any] = {
    # Text stays text: the page's own font is used, and it can be searched and read aloud.
    "svg.fonttype": "none",
    "svg.hashsalt": "instantvision",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
# Inches, of which the page makes what it has room for.
WIDE, HALF = 9.2, 4.5


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Args:
        name: for the legend.
        values: one for each place on the axis; None where nothing is known.
        upper: likewise: the band above the line, such as a 95th percentile.
    """

    name: str
    values: Sequence[float | None]
    upper: Sequence[float | None] | None = None


def check_installed() -> None:
    """Say what is missing before anything takes minutes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('the page\'s plots need matplotlib: pip install "instantvision[report]"')


def lines(
    places: Sequence[str], series: Sequence[Series], unit: str, target: tuple[float, str] | None = None
) -> str:
    """Values over an axis of named places.

    Args:
        places: names along the axis.
        series: lines over them.
        unit: written at the axis of values.
        target: a value to compare with, and what it is.
    """
    with _drawing(HALF, 2.7) as (figure, axes):
        for line, colour in zip(series, COLOURS, strict=False):
            values = [_or_nan(value) for value in line.values]
            axes.plot(range(len(places)), values, "o-", color=colour, label=line.name, lw=2, ms=5)
            if line.upper is not None:
                upper = [_or_nan(value) for value in line.upper]
                axes.fill_between(range(len(places)), values, upper, color=colour, alpha=0.18, lw=0)
        # Something must be written, and not by hovering alone: the first line's own values.
        for place, value in enumerate(series[0].values):
            if value is not None:
                _note(axes, place, value, number(value))
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.35, len(places) - 0.65)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.18)
        axes.set_ylabel(unit)
        axes.grid(False, axis="x")
        _draw_target(axes, target, series[0].values)
        if len(series) > 1:
            _legend(axes, len(series))
        return _svg(figure)


def stacked_bar(parts: Mapping[str, float], unit: str) -> str:
    """What adds up to a whole, as one bar with the parts' names under it."""
    total = sum(parts.values())
    with _drawing(WIDE, 1.15) as (figure, axes):
        left = 0.0
        for (name, value), colour in zip(parts.items(), _endless_colours(len(parts)), strict=True):
            axes.barh(0, value, left=left, color=colour, height=0.6, label=f"{name} {number(value)}")
            if value > 0.12 * total:
                said = f"{name} {number(value)}"
                axes.text(left + value / 2, 0, said, ha="center", va="center", color="white")
            left += value
        axes.set_xlim(0, left)
        axes.set_yticks([])
        axes.set_xlabel(unit)
        _legend(axes, len(parts))
        return _svg(figure)


def bars(values: Mapping[str, float], said: Mapping[str, str]) -> str:
    """One bar for each name, the first in the colour of what the page is about.

    Args:
        values: lengths by name, at least one.
        said: written behind each bar.
    """
    with _drawing(HALF, 0.25 + 0.36 * len(values)) as (figure, axes):
        longest = max(values.values()) or 1.0
        for place, (name, value) in enumerate(values.items()):
            axes.barh(place, value, height=0.72, color=COLOURS[place % len(COLOURS)])
            axes.text(value + 0.015 * longest, place, said[name], va="center", color=INK)
        axes.set_yticks(range(len(values)), list(values))
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(values) - 0.5, -0.5)
        # Room for what is written behind the longest bar.
        axes.set_xlim(0, longest * 1.75)
        axes.set_xticks([])
        axes.spines.bottom.set_visible(False)
        axes.grid(False)
        return _svg(figure)


def number(value: float) -> str:
    """Three digits, which is what a measurement is worth."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


@contextmanager
def _drawing(width: float, height: float) -> "Iterator[tuple[Figure, Axes]]":
    # Not pyplot: it keeps figures and settings of the whole process.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    # A page is no place for the XML declaration; and the names of parts would be there once for every plot.
    _, start, rest = buffer.getvalue().partition("<svg ")
    attributes, end, content = rest.partition(">")
    view = re.search(r'viewBox="[^"]*"', attributes)
    content = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", content)
    # Its style would hold for the whole page; the page has one for its plots.
    content = re.sub(r"<style.*?</style>", "", content, flags=re.DOTALL)
    # Markers and clips are referred to by name; two plots may share a shape, but not its name.
    own = f"{zlib.crc32(content.encode()):x}"
    content = re.sub(r'(id="|#)([mp][0-9a-f]{10})', rf"\1\2-{own}", content)
    return f"{start}{view[0] if view else ''} {XLINK}{end}{content}"


def _draw_target(axes: "Axes", target: tuple[float, str] | None, values: Sequence[float | None]) -> None:
    # A target far above all values would press them flat.
    if target is None or target[0] > 1.5 * axes.get_ylim()[1]:
        return
    at, name = target
    axes.axhline(at, color=SOFT, lw=1, ls=(0, (4, 3)))
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.15 * at))
    # Written at the end where the values are farther away.
    first, last = (abs((values[end] or 0) - at) for end in (0, -1))
    end, side = (0, "left") if first > last else (1, "right")
    axes.annotate(
        name,
        (end, at),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha=side,
        color=SOFT,
    )


def _legend(axes: "Axes", columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, handlelength=1, borderaxespad=0
    )


def _note(axes: "Axes", x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (0, 7), textcoords="offset points", ha="center", color=INK)


def _endless_colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
