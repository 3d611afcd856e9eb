"""Front ends around a run: started, announced, closed; and a run goes on without them."""

import json
import logging
import urllib.request
from pathlib import Path

import pytest

from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.preview import Preview
from instantvision.plugin import control_file
from instantvision.plugin.front_ends import FrontEnds, open_front_ends, parse_scenes
from tests.plugin.conftest import live_stats


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(control_file, "state_folder", lambda: tmp_path)
    return tmp_path


def test_the_dock_is_announced_found_and_closed(state_folder: Path) -> None:
    control, said = Control(Settings(size=Size(64, 64))), list[str]()
    with open_front_ends(FrontEnds(port=0), control, Preview(), said.append) as tell:
        found = json.loads((state_folder / "control.json").read_text())
        # A run that fails to start shall say so and nothing else.
        assert not said
        tell(live_stats(control))
        tell(live_stats(control))
        assert said == [found["url"]]
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
    control, said = Control(Settings(size=Size(64, 64))), list[str]()
    with open_front_ends(FrontEnds(port=0), control, Preview(), said.append):
        port = json.loads((state_folder / "control.json").read_text())["port"]
        with (
            caplog.at_level(logging.WARNING),
            open_front_ends(FrontEnds(port=port), control, Preview(), said.append),
        ):
            assert not said
    assert str(port) in caplog.text


def test_without_front_ends_nothing_listens(state_folder: Path) -> None:
    said = list[str]()
    with open_front_ends(FrontEnds(port=None), Control(Settings()), Preview(), said.append):
        assert not said
        assert not list(state_folder.iterdir())


def test_scenes_are_read_from_pairs() -> None:
    assert parse_scenes(["Just chatting=oil", "a=b=ink:1,oil:2"]) == {
        "Just chatting": "oil",
        "a=b": "ink:1,oil:2",
    }


@pytest.mark.parametrize("pairs", [["oil"], ["=oil"], ["Game="], ["Game=oil", "Game=ink"]])
def test_scenes_of_another_form_are_refused(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match="scene"):
        parse_scenes(pairs)
