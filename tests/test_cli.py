import json
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from instantvision import cli
from instantvision.integrations.factory import Devices
from instantvision.integrations.video_reader import VideoReader
from instantvision.pipeline import presets
from instantvision.pipeline.config import Settings
from instantvision.pipeline.control import FADE_S, Control, Show
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.live import LiveJob
from instantvision.pipeline.pictures import read_picture, write_picture
from instantvision.pipeline.preview import Preview
from instantvision.plugin.front_ends import FrontEnds

SCRIPT = str(Path(sys.executable).with_name("instantvision"))
# The same in a process of its own; -P keeps the current folder off the path, as the script does.
PROGRAM = (sys.executable, "-P", "-c", "from instantvision.cli import main; main()")
TINY = ("--preset", "photo", "--size", "64")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_console_script_tells_its_version() -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "instantvision", "")


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "cv2", "av", "pyvirtualcam", "diffusers", "triton"}
    program = f"import sys, instantvision.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["demo", "render", "run", "presets", "devices", "bench"])
def test_every_command_has_help(command: str) -> None:
    assert command in invoke("--help").stdout
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_an_unknown_option_is_a_usage_error() -> None:
    assert invoke("render", "--colour").exit_code == 2
    assert invoke("paint").exit_code == 2


def test_presets_are_listed_with_their_descriptions() -> None:
    result = invoke("presets", "list")
    for preset in presets.load_presets().values():
        assert preset.name in result.stdout
        assert preset.description in result.stdout


def test_presets_are_listed_as_data() -> None:
    listed = json.loads(invoke("presets", "list", "--json").stdout)
    assert {each["name"]: each for each in listed}.keys() == presets.load_presets().keys()
    assert json.loads(invoke("presets", "show", "oil", "--json").stdout) in listed


def test_one_preset_is_shown() -> None:
    result = invoke("presets", "show", "oil")
    assert result.stdout.startswith("oil: ")
    assert "strength" in result.stdout


def test_the_script_for_obs_is_where_it_says() -> None:
    result = invoke("obs", "script-path")
    assert result.exit_code == 0
    assert "def script_load" in Path(result.stdout.strip()).read_text(encoding="utf-8")


def test_devices_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Devices(cameras=(), virtual_cameras=(), notes=("no camera found: connect one",))
    monkeypatch.setattr("instantvision.integrations.factory.list_devices", lambda: nothing)
    result = invoke("devices")
    assert result.stdout == "cameras: none\nvirtual cameras: none\n"
    assert result.stderr == "no camera found: connect one\n"
    assert json.loads(invoke("devices", "--json").stdout)["cameras"] == []


def test_render_says_what_it_made(clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    result = invoke("render", clip, output, *TINY, "--max-frames", "2", "--steps", "1")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{output}: 2 frames of 64x64, photo, ")
    with VideoReader(output) as made:
        assert len(list(made)) == 2


def test_render_prints_data_on_stdout_and_progress_on_stderr(clip: Path, tmp_path: Path) -> None:
    result = invoke("render", clip, tmp_path / "out.mp4", *TINY, "--steps", "2", "--seed", "5", "--json")
    summary = json.loads(result.stdout)
    assert summary["frames"] == 6
    assert (summary["steps"], summary["seed"], summary["size"]) == (2, 5, "64x64")
    assert "6/6" in result.stderr


def test_demo_says_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instantvision.pipeline.demo.plan_clip", lambda frame_s, left_s: (2, Fraction(12)))
    result = invoke("demo", "--out", tmp_path / "demo", "--size", "64")
    assert result.exit_code == 0
    for name in ("demo.mp4", "presets.png"):
        assert str(tmp_path / "demo" / name) in result.stdout
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert "2 frames of 64x64" in result.stdout


def test_run_stylises_into_a_file_and_writes_its_figures(tmp_path: Path) -> None:
    output, figures = tmp_path / "live.mp4", tmp_path / "stats.json"
    result = invoke(
        *("run", "--source", "test-pattern", "--sink", f"file:{output}", "--stats-json", figures),
        *(*TINY, "--steps", "1", "--fps", "10", "--duration", "1"),
    )
    assert result.exit_code == 0, result.stderr
    stats = json.loads(figures.read_text())
    assert stats["ticks"] > 0
    assert stats["settings"]["mix"] == "photo"
    with VideoReader(output) as made:
        assert (made.width, made.height, made.fps) == (64, 64, 10)
        assert len(list(made)) == stats["ticks"]


class Asked:
    """What `run` asks for; nothing is run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job: LiveJob | None = None
        self.front_ends: FrontEnds | None = None
        monkeypatch.setattr("instantvision.pipeline.live.live", self._live)
        monkeypatch.setattr(cli, "open_front_ends", self._open)
        self._control = Control(Settings())

    def _live(self, job: LiveJob, on_stats: Any, controls: Any) -> Any:
        self.job = job
        controls(self._control, Preview(), threading.Event())
        return SimpleNamespace(interrupted=False, stats=SimpleNamespace(threads_left=0))

    def _open(self, wanted: FrontEnds, *_: object) -> None:
        self.front_ends = wanted


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_the_options_of_a_run_by_default(asked: Asked) -> None:
    assert invoke("run").exit_code == 0
    assert asked.job is not None
    assert (asked.job.settings.fit, asked.job.settings.mirror) == ("cover", False)
    assert (asked.job.fade_s, asked.job.panic) == (FADE_S, Show.SLATE)
    assert asked.front_ends == FrontEnds(port=8765, obs=False, scenes={})


def test_every_option_of_a_run_arrives(asked: Asked) -> None:
    scenes = ("--scene", "Just chatting=oil", "--scene", "Game=ink:0.7,neon:0.3")
    done = invoke(
        *("run", "--fit", "letterbox", "--mirror", "--fade", "2.5", "--panic-mode", "last-look"),
        *("--control-port", "0", "--obs", *scenes),
    )
    assert done.exit_code == 0, done.stderr
    assert asked.job is not None
    assert (asked.job.settings.fit, asked.job.settings.mirror) == ("letterbox", True)
    assert (asked.job.fade_s, asked.job.panic) == (2.5, Show.LAST_LOOK)
    expected = {"Just chatting": "oil", "Game": "ink:0.7,neon:0.3"}
    assert asked.front_ends == FrontEnds(port=0, obs=True, scenes=expected)


def test_a_run_without_controls(asked: Asked) -> None:
    assert invoke("run", "--no-control", "--control-port", "9999").exit_code == 0
    assert asked.front_ends is not None
    assert asked.front_ends.port is None


@pytest.mark.parametrize("mode", ["slate", "freeze", "last-look", "camera"])
def test_each_panic_mode(asked: Asked, mode: str) -> None:
    assert invoke("run", "--panic-mode", mode).exit_code == 0
    assert asked.job is not None
    assert asked.job.panic.value == mode


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fit", "stretch"], "stretch"),
        (["--fade", "11"], "fade_s is 11 s, expected 0 to 10"),
        (["--fade", "-1"], "fade_s is -1 s"),
        (["--panic-mode", "effect"], "panic_mode is effect, expected slate"),
        (["--panic-mode", "black"], "black"),
        (["--control-port", "65536"], "--control-port"),
        (["--scene", "Talk"], "scene is 'Talk', expected SCENE=PRESET"),
        (["--scene", "Talk=oil", "--scene", "Talk=ink"], "'Talk' is given twice"),
    ],
)
def test_a_wrong_option_of_a_run_is_refused_before_anything_starts(options: list[str], words: str) -> None:
    done = invoke("run", "--source", "test-pattern", "--sink", "null", *options)
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_fit_and_mirror_reach_the_picture(tmp_path: Path) -> None:
    figures = tmp_path / "stats.json"
    done = invoke(
        *("run", "--source", "test-pattern", "--sink", "null", "--stats-json", figures, *TINY),
        *("--steps", "1", "--fps", "10", "--duration", "1", "--no-control", "--fit", "letterbox", "--mirror"),
    )
    assert done.exit_code == 0, done.stderr
    settings = json.loads(figures.read_text())["settings"]
    assert (settings["fit"], settings["mirror"]) == ("letterbox", True)


def test_a_scene_of_no_preset_ends_the_run_before_it_shows_anything(tmp_path: Path) -> None:
    done = invoke(
        *("run", "--source", "test-pattern", "--sink", f"file:{tmp_path / 'out.mp4'}", *TINY),
        *("--no-control", "--scene", "Talk=oli"),
    )
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "scene 'Talk': no preset 'oli': did you mean oil?" in done.stderr


def test_ctrl_c_ends_a_run_with_a_playable_file_and_its_figures(tmp_path: Path) -> None:
    output, figures = tmp_path / "live.mp4", tmp_path / "stats.json"
    arguments = [
        *("run", "--source", "test-pattern", "--sink", f"file:{output}", "--stats-json", str(figures)),
        *(*TINY, "--steps", "1", "--fps", "10"),
    ]
    running = subprocess.Popen([*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True)
    watched = threading.Event()
    while running.poll() is None and not list(tmp_path.glob(".live.mp4*")):
        watched.wait(0.1)
    # The recording begins with the first tick, a moment after its file.
    watched.wait(2.0)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert json.loads(figures.read_text())["threads_left"] == 0
    with VideoReader(output) as made:
        assert list(made)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cpu_refuses_fp8() -> None:
    result = invoke("bench", *TINY, "--fp8")
    assert result.exit_code == 1
    assert "a CPU has no 8-bit floating point arithmetic: leave --fp8 away" in result.stderr


def test_bench_writes_a_page_beside_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instantvision.pipeline.sizes.BENCH_SIDES_CPU", (64, 80))
    monkeypatch.setattr("instantvision.pipeline.sizes.BENCH_SIDES_GPU", (64, 80))
    folder = tmp_path / "report"
    result = invoke("bench", *TINY, "--steps", "1", "--frames", "2", "--report", folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["size"] == "64x64"
    assert str(folder / "index.html") in result.stderr
    assert "80×80" in (folder / "index.html").read_text(encoding="utf-8")


def test_ctrl_c_ends_a_render_with_130(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Engine, pixels: Pixels) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "submit", interrupted)
    result = invoke("render", clip, tmp_path / "out.mp4", *TINY)
    assert (result.exit_code, list(tmp_path.iterdir())) == (130, [])


def test_debug_shows_where_an_expected_error_came_from(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr("instantvision.pipeline.start.started_engine", broken)
    result = invoke("--debug", "render", clip, clip.with_name("out.mp4"))
    assert isinstance(result.exception, EngineError)
    result = invoke("render", clip, clip.with_name("out.mp4"))
    assert (result.exit_code, result.stderr) == (1, "EngineError: no memory\n")


def test_render_tells_the_steps_a_frame(clip: Path, tmp_path: Path) -> None:
    arguments = ("render", clip, tmp_path / "out.mp4", *TINY, "--steps", "3", "--json")
    summary = json.loads(invoke(*arguments, "--temporal", "noise").stdout)
    assert (summary["temporal"], summary["steps"], summary["mean_steps"]) == ("noise", 3, 3.0)
    warm = json.loads(
        invoke(*arguments, "--temporal", "warm", "--steps-ceiling", "2", "--epsilon", "0").stdout
    )
    assert warm["temporal"] == "warm"
    assert warm["mean_steps"] < 3


def test_steps_are_spaced_and_made_as_asked_for(clip: Path, tmp_path: Path) -> None:
    def rendered(*options: str) -> Pixels:
        output = tmp_path / "out.png"
        # A spacing of its own has to show in the picture: it is written without loss.
        assert invoke("render", tmp_path / "in.png", output, *TINY, "--steps", "3", *options).exit_code == 0
        return read_picture(output)

    with VideoReader(clip) as frames:
        write_picture(tmp_path / "in.png", next(iter(frames)).pixels)
    usual = rendered()
    assert np.array_equal(usual, rendered("--spacing", "log-snr", "--solver", "ddim"))
    for options in (
        ("--spacing", "trailing"),
        ("--spacing", "karras"),
        ("--solver", "2m"),
        ("--solver", "lcm"),
    ):
        assert not np.array_equal(usual, rendered(*options)), options


@pytest.mark.parametrize(
    "option",
    [
        ("--epsilon", "2"),
        ("--steps-floor", "9"),
        ("--temporal", "all"),
        ("--spacing", "even"),
        ("--solver", "2m", "--steps", "2"),
    ],
)
def test_options_of_the_schedule_out_of_range_are_usage_errors(
    clip: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    assert invoke("render", clip, tmp_path / "out.mp4", *option).exit_code == 2
