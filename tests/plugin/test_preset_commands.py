"""`instantvision presets`, as its user sees it; what it does to files is tested with pipeline/preset_files.py."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from instantvision import cli
from instantvision.integrations.video_reader import VideoReader
from instantvision.pipeline.presets import load_presets
from instantvision.plugin import running as running_program
from instantvision.plugin.control_file import ControlFile
from tests.plugin.conftest import TOKEN, Running


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_a_saved_mix_is_listed_shown_and_rendered(own_presets: Path, clip: Path, tmp_path: Path) -> None:
    saved = invoke("presets", "save", "warm-day", "--preset", "oil:3,photo:1", "--seed", "4")
    assert (saved.exit_code, saved.stdout) == (0, f"{own_presets / 'warm-day.toml'}\n")
    assert "warm-day" in invoke("presets", "list").stdout
    shown = json.loads(invoke("presets", "show", "warm-day", "--json").stdout)
    assert (shown["styles"], shown["seed"]) == ({"oil": 0.75, "photo": 0.25}, 4)
    output = tmp_path / "out.mp4"
    made = invoke(
        "render", clip, output, "--preset", "warm-day", "--size", "64", "--max-frames", "1", "--steps", "1"
    )
    assert made.exit_code == 0, made.stderr
    with VideoReader(output) as video:
        assert len(list(video)) == 1


def test_a_run_takes_it(own_presets: Path, tmp_path: Path) -> None:
    invoke("presets", "save", "warm-day", "--preset", "oil")
    figures = tmp_path / "stats.json"
    done = invoke(
        *("run", "--source", "test-pattern", "--sink", "null", "--preset", "warm-day", "--size", "64"),
        *("--steps", "1", "--duration", "0.5", "--no-control", "--stats-json", figures),
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(figures.read_text())["settings"]["mix"] == "warm-day"


def test_what_runs_is_saved_if_no_mix_is_named(
    own_presets: Path, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_program, "state_folder", lambda: tmp_path)
    running.control.apply({"preset": "ink:0.75,neon:0.25", "strength": 0.5, "seed": 12}, by="dock")
    with ControlFile(tmp_path, url=running.server.url, token=TOKEN, port=running.server.port):
        assert invoke("presets", "save", "now").exit_code == 0
    saved = load_presets()["now"]
    assert (dict(saved.styles), saved.strength, saved.seed) == ({"ink": 0.75, "neon": 0.25}, 0.5, 12)
    # It runs no longer.
    refused = invoke("presets", "save", "later")
    assert (refused.exit_code, "nothing is running" in refused.stderr) == (2, True)


def test_import_and_export(own_presets: Path, tmp_path: Path) -> None:
    text = invoke("presets", "export", "ink").stdout
    files = [tmp_path / "mine.toml", tmp_path / "yours.toml"]
    for file in files:
        file.write_text(text)
    assert invoke("presets", "import", *files).stdout.split() == [
        str(own_presets / file.name) for file in files
    ]
    assert invoke("presets", "path").stdout == f"{own_presets}\n"
    refused = invoke("presets", "import", files[0])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("ConfigError: ")
    assert "--force" in refused.stderr
    assert invoke("presets", "import", files[0], "--force").exit_code == 0
    assert invoke("presets", "export", "mine", tmp_path / "copy.toml").exit_code == 0
    assert invoke("presets", "export", "mine", tmp_path / "copy.toml").exit_code == 2


@pytest.mark.parametrize("name", ["../x", "oil", "Übergröße"])
def test_a_name_that_cannot_be_is_one_line(own_presets: Path, name: str) -> None:
    refused = invoke("presets", "save", name, "--preset", "oil")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert list(own_presets.iterdir()) == []


def test_a_broken_preset_of_the_user_is_told_by_name(own_presets: Path) -> None:
    (own_presets / "broken.toml").write_text('description = "A."\nstrength = 3.0\n[styles]\noil = 1.0')
    refused = invoke("run", "--preset", "broken")
    assert refused.exit_code == 2
    assert f"{own_presets / 'broken.toml'}: strength is 3.0" in refused.stderr
    assert invoke("presets", "list").exit_code == 0


def test_the_gallery_has_it_and_a_picture_of_it(own_presets: Path, running: Running) -> None:
    invoke("presets", "save", "warm-day", "--preset", "oil:0.3,ink:0.7")
    names = [look["name"] for look in running.server._state_json()["presets"]]
    assert "warm-day" in names
    find = running.server._thumbnails.find
    assert find("warm-day") == find("ink") != find("oil")
