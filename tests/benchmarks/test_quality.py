"""Quality's parts: saved, joined and shown; and clips that do not hear of each other."""

import json
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import quality
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.mini import Mini
from quality_report import PAINTER, PLAIN, REFERENCE, Part, Row, read_parts, table, write_report

ABOUT = {"device": "H100", "commit": "abc", "size": "512x512", "frames": {"bird": 30}}


def row(way, preset="ink", **changes):
    values = {
        "way": way, "preset": preset, "clip": "bird", "distance": 0.01, "psnr_db": 40.0, "flicker": 1.5,
        "steps": 8.0, "ms": 4.0, "still_steps": 8.0, "still_ms": 4.0, "frames": 30,
    }  # fmt: skip
    return Row(**values | changes)


def part(preset, **about):
    rows = [
        row(REFERENCE, preset, distance=None, psnr_db=None, ms=20.0, steps=50.0),
        row(PLAIN, preset),
        row("warm", preset, ms=1.0, steps=2.5, flicker=0.5),
        row(PAINTER, preset, distance=None, psnr_db=None, steps=0.0, ms=0.0),
    ]
    return Part(about=ABOUT | about, preset=preset, rows=rows)


def test_parts_of_several_folders_are_joined_and_shown(tmp_path):
    for preset, folder in (("oil", "one"), ("ink", "one"), ("neon", "two")):
        part(preset).write(tmp_path / folder)
    parts = read_parts([tmp_path / "one", tmp_path / "two"])
    assert [each.preset for each in parts] == ["ink", "neon", "oil"]
    assert parts[0] == part("ink")
    text = write_report(tmp_path / "all", parts)
    assert "| warm | 0.0100 | 40.0 | 0.50 | 2.50 | 1.00 | 75% | 8.00 | 4.00 |" in text
    assert "| neon | 1.50 | 1.50 | 0.50 | 1.50 |" in text
    assert len(json.loads((tmp_path / "all" / "quality.json").read_text())["rows"]) == 12
    assert "warm" in (tmp_path / "all" / "quality.svg").read_text()
    assert text == table([each for found in parts for each in found.rows])


def test_times_are_those_of_runs_that_took_them():
    rows = [
        row(PLAIN),
        row("warm", ms=1.0),
        row(PLAIN, "oil", ms=None),
        row("warm", "oil", ms=None, still_ms=None),
    ]
    assert "| warm | 0.0100 | 40.0 | 1.50 | 8.00 | 1.00 | 75% | 8.00 | 4.00 |" in table(rows)
    assert "| 8.00 | 0.00 |  | 8.00 |" in table([replace(each, ms=None) for each in rows])


@pytest.mark.parametrize("about", [{"device": "H200"}, {"size": "256x256"}, {"frames": {"bird": 20}}])
def test_parts_that_were_measured_otherwise_are_not_joined(tmp_path, about):
    part("oil").write(tmp_path)
    part("ink", **about).write(tmp_path)
    with pytest.raises(ConfigError, match=f"the parts differ in {next(iter(about))}"):
        read_parts([tmp_path])


def test_nothing_measured_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no parts in"):
        read_parts([tmp_path])


def test_a_run_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    for preset in ("oil", "ink"):
        part(preset).write(tmp_path)

    def unwanted(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(quality, "LpipsLike", unwanted)
    monkeypatch.setattr(
        sys, "argv", ["quality.py", "bird.mkv", "--presets", "oil,ink", "--out", str(tmp_path)]
    )
    quality.main()
    assert "| warm |" in capsys.readouterr().out


def test_a_clip_begins_from_nothing_in_every_way():
    rng = np.random.default_rng(0)
    source = [rng.integers(0, 256, (64, 64, 3), np.uint8)]
    for _ in range(3):
        moved = source[-1].copy()
        moved[16:32, 16:32] = rng.integers(0, 256, (16, 16, 3), np.uint8)
        source.append(moved)
    settings = Settings(size=Size(64, 64), steps=2, steps_ceiling=2)
    mini = Mini.load()
    engines = {way: Engine(mini, replace(settings, temporal=way)) for way in ("noise", "warm", "full")}
    runs = []
    for _ in range(2):
        for way, engine in engines.items():
            quality.begin(engine, replace(settings, temporal=way))
        runs.append(quality.play(engines, source))
    for way in engines:
        one, other = (run[way] for run in runs)
        assert all(np.array_equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))
        assert one.steps == [2] * 4
        assert all(not np.array_equal(a, b) for a, b in pairwise(one.frames))
    assert runs[0]["noise"].still_steps == [2] * 4
    still = runs[0]["warm"].still_steps
    assert (len(still), sum(still)) == (quality.STILL_FRAMES, 2)
