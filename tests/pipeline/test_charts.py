"""Plots as SVG: complete, readable as text, fit to stand beside each other in one page."""

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from instantvision.pipeline import charts
from instantvision.pipeline.charts import Series, bars, lines, number, stacked_bar
from instantvision.pipeline.errors import ConfigError

PLACES = ("512²", "1024²")


def words(svg: str) -> set[str]:
    # S314: our own text, just made.
    return {text.strip() for text in ET.fromstring(svg).itertext() if text.strip()}  # noqa: S314


def test_lines_say_their_values_places_and_unit() -> None:
    svg = lines(PLACES, [Series("fps", [295, 133.4])], "fps", (60.0, "60 fps"))
    assert {"295", "133", "512²", "1024²", "fps", "60 fps"} <= words(svg)


def test_a_target_far_above_all_values_is_left_out() -> None:
    assert "60 fps" not in words(lines(PLACES, [Series("fps", [3.0, 1.5])], "fps", (60.0, "60 fps")))


def test_several_lines_have_a_legend_and_may_have_gaps() -> None:
    svg = lines(PLACES, [Series("ours", [3.0, 1.5]), Series("eager", [None, 4.0])], "ms")
    assert {"ours", "eager", "1.50"} <= words(svg)
    assert "nan" not in svg


def test_a_stack_names_all_parts() -> None:
    assert {"encode 0.392", "denoise 6.65"} <= words(stacked_bar({"encode": 0.392, "denoise": 6.65}, "ms"))


def test_bars_say_what_they_are_told() -> None:
    found = words(bars({"ours": 4.0, "eager": 0.0}, {"ours": "4 ms, 250/s", "eager": "nothing"}))
    assert {"ours", "eager", "4 ms, 250/s", "nothing"} == found


def test_no_name_is_used_twice_in_a_page() -> None:
    plots = [lines(PLACES, [Series("fps", [value, 1.0])], "fps") for value in (2.0, 3.0)]
    names = [re.findall(r'id="([^"]*)"', plot) for plot in plots]
    assert names[0]
    assert len(set(names[0] + names[1])) == len(names[0]) + len(names[1])
    for plot, own in zip(plots, names, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', plot)) <= set(own)


def test_the_same_values_give_the_same_plot() -> None:
    assert stacked_bar({"a": 1.0}, "ms") == stacked_bar({"a": 1.0}, "ms")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0796, "0.0796"), (0.3, "0.3"), (1.5, "1.50"), (14.32, "14.3"), (2439.4, "2439")],
)
def test_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_missing_matplotlib_is_told_before_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "instantvision\[report\]"'):
        charts.check_installed()


def test_the_plots_leave_the_settings_of_others_alone() -> None:
    lines(PLACES, [Series("fps", [1.0, 2.0])], "fps")
    assert "matplotlib.pyplot" not in sys.modules
    assert sys.modules["matplotlib"].rcParams["svg.fonttype"] == "path"
