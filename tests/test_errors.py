"""What a user can get wrong: one line on stderr, exit 1 or 2, and the folder as it was before."""

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instantvision import cli
from instantvision.integrations import v4l2
from instantvision.pipeline import errors, mini


@pytest.fixture
def folder(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a clip `talk.mkv`, and `notes.mkv`, which is no video."""
    shutil.copy(clip, tmp_path / "talk.mkv")
    (tmp_path / "notes.mkv").write_text("no video\n" * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(folder: Path) -> Callable[..., str]:
    """Run a command line that must be refused with an exit code; returns its one line."""

    def run(command: str, exit_code: int) -> str:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        result = CliRunner().invoke(cli.app, command.split())
        assert result.exit_code == exit_code, result.output
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.endswith("\n")
        kind, _, message = result.stderr.partition(": ")
        assert issubclass(getattr(errors, kind), errors.InstantVisionError)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        return message

    return run


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [
        ("render none.mkv out.mp4", 1, "none.mkv"),
        ("render notes.mkv out.mp4", 1, "notes.mkv"),
        ("render talk.mkv none/out.mp4", 1, "none does not exist"),
        ("render talk.mkv out.txt", 1, ".txt"),
        ("render talk.mkv out.mp4 --preset waterclour", 2, "did you mean watercolour?"),
        ("render talk.mkv out.mp4 --preset oil:x", 2, "weight is 'x'"),
        ("render talk.mkv out.mp4 --size 0", 2, "width is 0 px"),
        ("render talk.mkv out.mp4 --size 10001", 2, "width is 10001 px"),
        ("render talk.mkv out.mp4 --size 500", 2, "multiple of 16"),
        ("render talk.mkv out.mp4 --size big", 2, "size is 'big'"),
        ("render talk.mkv out.mp4 --strength 2", 2, "strength is 2.0"),
        ("render talk.mkv out.mp4 --strength -0.1", 2, "strength is -0.1"),
        ("render talk.mkv out.mp4 --strength nan", 2, "strength is nan"),
        ("render talk.mkv out.mp4 --steps 0", 2, "steps is 0"),
        ("render talk.mkv out.mp4 --seed -1", 2, "seed is -1"),
        ("render talk.mkv out.mp4 --max-frames 0", 2, "max-frames is 0"),
        ("demo --preset oli", 2, "did you mean oil?"),
        ("demo --size 0", 2, "width is 0 px"),
        ("demo --out none/demo", 1, "does not exist"),
        ("presets show oli", 2, "did you mean oil?"),
        ("run --source radio", 2, "source is 'radio'"),
        ("run --source test-pattern --sink paper", 2, "sink is 'paper'"),
        ("run --source test-pattern --sink file:none/out.mp4", 1, "none does not exist"),
        ("run --source test-pattern --sink null --stats-json none/stats.json", 1, "none does not exist"),
        ("run --source test-pattern --sink null --fps 0", 2, "fps is 0"),
        ("run --source test-pattern --sink null --duration -1", 2, "duration is -1"),
        ("run --source test-pattern --sink null --size 10001", 2, "width is 10001 px"),
        ("run --source test-pattern --sink null --preset oli", 2, "did you mean oil?"),
        ("run --source test-pattern --sink null --strength 2", 2, "strength is 2.0"),
        ("run --source file:none.mkv --sink file:out.mp4 --size 64", 1, "none.mkv"),
        ("run --source file:notes.mkv --sink file:out.mp4 --size 64", 1, "notes.mkv"),
        ("bench --size 0", 2, "width is 0 px"),
        ("bench --steps 0", 2, "steps is 0"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., str], command: str, exit_code: int, words: str) -> None:
    assert words in refused(command, exit_code)


def test_a_camera_that_does_not_exist_is_answered_with_those_that_do(refused: Callable[..., str]) -> None:
    message = refused("run --source webcam:nobody --sink file:out.mp4 --size 64", 1)
    assert "nobody" in message
    assert "camera" in message


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the driver is a part of OBS")
def test_without_a_virtual_camera_the_command_to_install_one_is_told(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v4l2, "list_devices", lambda: ())
    message = refused("run --source test-pattern --sink virtual-camera --size 64", 1)
    assert "no virtual camera found" in message
    assert "sudo modprobe v4l2loopback" in message


@pytest.mark.parametrize(
    "command", ["render talk.mkv out.mp4", "demo --out demo", "run --source test-pattern --sink file:out.mp4"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no manifest"])
def test_damaged_weights_are_refused(
    refused: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    command: str,
) -> None:
    weights = tmp_path_factory.mktemp("weights")
    shutil.copytree(mini.WEIGHTS_FOLDER, weights, dirs_exist_ok=True)
    _damage(weights, damage)
    monkeypatch.setattr(mini.Mini, "load", functools.partial(mini.Mini.load, folder=weights))
    assert str(weights) in refused(f"{command} --size 64", 1)


def _damage(weights: Path, how: str) -> None:
    denoiser, manifest = weights / mini.DENOISER_FILE, weights / mini.MANIFEST_FILE
    data = bytearray(denoiser.read_bytes())
    if how == "cut":
        denoiser.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        data[-5] ^= 0x40
        denoiser.write_bytes(data)
    else:
        (denoiser if how == "missing" else manifest).unlink()
