"""Front ends around a run: started, announced, closed; and a run goes on without them."""

import json
import logging
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from instantvision.integrations.obs_controller import ObsState
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.preview import Preview
from instantvision.plugin import control_file
from instantvision.plugin.front_ends import FrontEnds, Run, obs_words, open_front_ends, parse_scenes
from tests.plugin.conftest import live_stats


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_file, "state_folder", lambda: tmp_path)
    return tmp_path


@dataclass
class FakeBoard:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)

    def say(self, subject: str, words: str) -> None:
        self.said.append((subject, words))

    def tell(self, words: str) -> None:
        self.told.append(words)


def run(control: Control) -> Run:
    return Run(control=control, preview=Preview(), stop=threading.Event())


def test_the_dock_is_announced_found_and_closed(state_folder: Path) -> None:
    control, board = Control(Settings(size=Size(64, 64))), FakeBoard()
    with open_front_ends(FrontEnds(port=0), run(control), board) as tell:
        found = json.loads((state_folder / "control.json").read_text())
        # A run that fails to start shall say so and nothing else.
        assert not board.told
        tell(live_stats(control))
        tell(live_stats(control))
        assert board.told == [f"controls: {found['url']}"]
        request = urllib.request.Request(
            f"http://127.0.0.1:{found['port']}/api/apply",
            data=b'{"strength": 0.25}',
            headers={"Authorization": f"Bearer {found['token']}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            assert answer.status == 200
        assert control.state.settings.strength == 0.25
    assert not (state_folder / "control.json").exists()


def test_a_taken_port_costs_the_dock_and_not_the_show(
    state_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control, board = Control(Settings(size=Size(64, 64))), FakeBoard()
    with open_front_ends(FrontEnds(port=0), run(control), board):
        port = json.loads((state_folder / "control.json").read_text())["port"]
        with (
            caplog.at_level(logging.WARNING),
            open_front_ends(FrontEnds(port=port), run(control), board),
        ):
            assert not board.told
    assert str(port) in caplog.text


def test_without_front_ends_nothing_listens(state_folder: Path) -> None:
    board = FakeBoard()
    with open_front_ends(FrontEnds(port=None), run(Control(Settings())), board):
        assert not board.told
        assert not list(state_folder.iterdir())


def test_what_is_on_air_instead_of_the_effect_is_said(state_folder: Path) -> None:
    control, board = Control(Settings()), FakeBoard()
    with open_front_ends(FrontEnds(port=None), run(control), board):
        control.apply({"panic": True}, by="obs")
        control.apply({"panic": False}, by="dock")
        control.apply({"bypass": True, "consent": True}, by="dock")
    control.apply({"bypass": False}, by="dock")
    assert board.said == [
        ("on air", "THE SLATE IS ON AIR"),
        ("on air", ""),
        ("on air", "THE REAL CAMERA IS ON AIR"),
    ]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ObsState(connected=False, status="no OBS at 127.0.0.1:4455"), "OBS: no OBS at 127.0.0.1:4455"),
        (ObsState(connected=True, status="connected"), "OBS: connected"),
        (ObsState(connected=True, scene="Talk"), "OBS: Talk"),
        (
            ObsState(connected=True, scene="Talk", streaming=True, recording=True),
            "OBS: Talk, streaming, recording",
        ),
    ],
)
def test_how_obs_does_in_words(state: ObsState, words: str) -> None:
    assert obs_words(state) == words


def test_scenes_are_read_from_pairs() -> None:
    assert parse_scenes(["Just chatting=oil", "a=b=ink:1,oil:2"]) == {
        "Just chatting": "oil",
        "a=b": "ink:1,oil:2",
    }


@pytest.mark.parametrize("pairs", [["oil"], ["=oil"], ["Game="], ["Game=oil", "Game=ink"]])
def test_scenes_of_another_form_are_refused(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match="scene"):
        parse_scenes(pairs)
