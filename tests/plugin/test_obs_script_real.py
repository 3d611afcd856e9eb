"""The OBS script in a real OBS: loaded, its properties and hotkeys, and OBS's health while the program hangs."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from obswebsocket import requests

from instantvision.pipeline.config import Settings
from instantvision.pipeline.control import Control, Show
from instantvision.pipeline.presets import load_presets
from instantvision.plugin.control_file import ControlFile
from instantvision.plugin.obs_script_path import script_path
from tests.obs_lab import ObsLab
from tests.plugin.conftest import TOKEN, FakePreview, Running, start_server

# Nothing here takes that long; it only keeps a broken OBS from hanging the tests.
LONG_S = 60.0
# What a user would feel. The script waits 1 s for an answer: OBS would be held up that long if it waited with it.
FELT_S = 0.5
LEAKS = "Number of memory leaks: "

# A second script in the same OBS: it makes our script's properties with the real obspython and reads them back, and
# presses their buttons through libobs. Its one hotkey has it do what `probe.json` says.
PROBE = """
import json, os, sys
from pathlib import Path
import obspython as obs

FOLDER = Path({folder!r})

def read(props):
    found, lists = {{}}, {{}}
    for name in {names!r}:
        prop = obs.obs_properties_get(props, name)
        if prop is not None:
            found[name] = [obs.obs_property_get_type(prop), obs.obs_property_description(prop)]
    for name in ("preset", "panic_mode"):
        prop = obs.obs_properties_get(props, name)
        count = obs.obs_property_list_item_count(prop)
        lists[name] = [obs.obs_property_list_item_string(prop, index) for index in range(count)]
    return {{"properties": found, "lists": lists}}

def on_probe(pressed):
    if not pressed:
        return
    wanted = json.loads((FOLDER / "probe.json").read_text())
    script = sys.modules["obs_script"]
    settings = script._script.settings
    for name, value in wanted.get("set", {{}}).items():
        obs.obs_data_set_string(settings, name, value)
    if wanted.get("set"):
        script.script_update(settings)
    props = script.script_properties()
    if "click" in wanted:
        obs.obs_property_button_clicked(obs.obs_properties_get(props, wanted["click"]), None)
    answer = read(props)
    obs.obs_properties_destroy(props)
    (FOLDER / "answer.part").write_text(json.dumps(answer))
    os.replace(FOLDER / "answer.part", FOLDER / "answer.json")

def script_load(settings):
    obs.obs_hotkey_register_frontend("probe", "Probe", on_probe)
"""
NAMES = (
    "status", "refresh", "preset", "strength", "fade_s", "panic", "effect", "panic_mode", "allow_bypass", "program",
    "source", "sink", "size", "start", "stop",
)  # fmt: skip


class Probe:
    """Our script in a running OBS, seen from within."""

    def __init__(self, obs: ObsLab) -> None:
        self.obs = obs

    def __call__(self, **wanted: object) -> dict[str, Any]:
        answer = self.obs.folder / "answer.json"
        answer.unlink(missing_ok=True)
        (self.obs.folder / "probe.json").write_text(json.dumps(wanted))
        self.obs.call("TriggerHotkeyByName", hotkeyName="probe")
        wait_until(answer.exists, lambda: f"the probe did not answer:\n{self.log[-2000:]}")
        return json.loads(answer.read_text())

    @property
    def log(self) -> str:
        return self.obs.log.read_text(errors="replace")

    def hotkey(self, name: str) -> None:
        self.obs.call("TriggerHotkeyByName", hotkeyName=f"instantvision.{name}")

    def wait_for_log(self, part: str) -> None:
        wait_until(lambda: part in self.log, lambda: f"{part!r} is not in OBS's log:\n{self.log[-2000:]}")


def wait_until(condition: Callable[[], object], said: Callable[[], str]) -> None:
    never, deadline_s = threading.Event(), time.monotonic() + LONG_S
    while time.monotonic() < deadline_s:
        if condition():
            return
        never.wait(0.05)
    pytest.fail(said())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObsLab]:
    folder = tmp_path_factory.mktemp("obs-script")
    probe = folder / "probe.py"
    probe.write_text(PROBE.format(folder=str(folder), names=NAMES))
    with ObsLab(folder, scenes=("Talk", "Break"), scripts=(script_path(), probe)) as found:
        yield found


@pytest.fixture
def probe(lab: ObsLab) -> Probe:
    lab.start()
    return Probe(lab)


def state_folder(lab: ObsLab) -> Path:
    folder = lab.home / ".local" / "state" / "instantvision"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def program(lab: ObsLab, running: Running) -> Iterator[Running]:
    """A control server that the script in OBS finds."""
    with ControlFile(state_folder(lab), url="", token=TOKEN, port=running.server.port):
        yield running


def reaches(program: Running, condition: Callable[[], object]) -> None:
    wait_until(condition, lambda: f"the program's state is {program.control.state}")


def test_it_loads_and_shows_its_properties(probe: Probe, program: Running) -> None:
    program.control.apply({"preset": "oil:0.7,ink:0.3"}, by="dock")
    probe.wait_for_log("[Python: obs_script.py] running: oil:0.7,ink:0.3, the effect is on air")
    found = probe()
    assert list(found["properties"]) == list(NAMES)
    assert found["properties"]["status"][1].startswith(
        "Running: oil:0.7,ink:0.3, the effect is on air (60 fps"
    )
    assert found["properties"]["preset"][1] == "Look"
    assert found["lists"] == {
        "preset": [*load_presets(), "oil:0.7,ink:0.3"],
        "panic_mode": ["slate", "freeze", "last-look"],
    }
    assert "Traceback" not in probe.log


def test_its_hotkeys_reach_the_program(probe: Probe, program: Running) -> None:
    names = probe.obs.call("GetHotkeyList")["hotkeys"]
    ours = [name for name in names if name.startswith("instantvision.")]
    assert ours == [
        f"instantvision.{name}" for name in ("next-look", "previous-look", "bypass", "panic", "effect")
    ]
    before = str(program.control.state.settings.mix)
    probe.hotkey("next-look")
    reaches(program, lambda: str(program.control.state.settings.mix) != before)
    probe.hotkey("previous-look")
    reaches(program, lambda: str(program.control.state.settings.mix) == before)
    probe.hotkey("panic")
    reaches(program, lambda: program.control.state.show is Show.SLATE)
    probe.hotkey("effect")
    reaches(program, lambda: program.control.state.show is Show.EFFECT)
    # Its box is not ticked.
    probe.hotkey("bypass")
    probe.wait_for_log("the bypass key is off")
    assert program.control.state.show is Show.EFFECT
    assert program.control.state.changed_by == "script"


def test_its_properties_and_buttons_reach_the_program(probe: Probe, program: Running) -> None:
    probe.wait_for_log("running: oil, the effect is on air")
    probe(set={"preset": "ink", "panic_mode": "freeze"})
    reaches(program, lambda: str(program.control.state.settings.mix) == "ink")
    probe(click="panic")
    reaches(program, lambda: program.control.state.show is Show.FREEZE)
    probe(click="effect")
    reaches(program, lambda: program.control.state.show is Show.EFFECT)


def test_a_program_that_hangs_does_not_hold_up_obs(probe: Probe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with ControlFile(state_folder(probe.obs), url="", token=TOKEN, port=silent.getsockname()[1]):
            connection, _ = silent.accept()
            probe(click="panic")
            slowest_s = felt(probe, ("next-look", "panic", "bypass"))
            probe.wait_for_log("the program does not answer")
        connection.close()
    assert slowest_s < FELT_S


def felt(probe: Probe, hotkeys: tuple[str, ...]) -> float:
    """The longest of many switches of the scene, each of which waits for OBS's window; with hotkeys in between."""
    took_s = []
    client = probe.obs.connect()
    try:
        for index in range(45):
            if index % 5 == 0:
                client.call(
                    requests.TriggerHotkeyByName(
                        hotkeyName=f"instantvision.{hotkeys[index // 5 % len(hotkeys)]}"
                    )
                )
            begun_s = time.monotonic()
            client.call(requests.SetCurrentProgramScene(sceneName=("Talk", "Break")[index % 2]))
            took_s.append(time.monotonic() - begun_s)
            # So that they cover several of the script's requests, which time out after a second.
            threading.Event().wait(0.07)
    finally:
        client.disconnect()
    return max(took_s)


@pytest.fixture(scope="module")
def leaks_without_scripts(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What OBS itself leaks, which depends on the machine's devices and drivers."""
    # Asked to end right after its start, OBS now and then dies before it counts.
    for _ in range(3):
        with ObsLab(tmp_path_factory.mktemp("obs-alone")) as alone:
            alone.call("GetStats")
            alone.stop()
            log = alone.log.read_text(errors="replace")
        if LEAKS in log:
            return memory_leaks(log)
    pytest.fail(f"OBS never ended cleanly by itself:\n{log[-2000:]}")


def memory_leaks(log: str) -> int:
    """OBS's very last words."""
    return int(log.rpartition(LEAKS)[2])


def test_obs_ends_cleanly_with_it_also_while_the_program_hangs(
    lab: ObsLab, leaks_without_scripts: int
) -> None:
    lab.start()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with ControlFile(state_folder(lab), url="", token=TOKEN, port=silent.getsockname()[1]):
            connection, _ = silent.accept()
            lab.stop()
        connection.close()
    log = lab.log.read_text(errors="replace")
    assert memory_leaks(log) == leaks_without_scripts
    assert "Traceback" not in log
    scripts = lab.saved_collection()["modules"]["scripts-tool"]
    saved = next(script["settings"] for script in scripts if script["path"] == str(script_path()))
    assert "instantvision.panic" in saved
    assert TOKEN not in log + json.dumps(scripts)


def test_keys_survive_a_restart_of_obs(lab: ObsLab) -> None:
    lab.stop()
    path = lab.config / "basic" / "scenes" / "Untitled.json"
    collection = json.loads(path.read_text())
    script = next(
        found for found in collection["modules"]["scripts-tool"] if found["path"] == str(script_path())
    )
    script["settings"]["instantvision.panic"] = [{"key": "OBS_KEY_F12", "control": True}]
    path.write_text(json.dumps(collection))
    lab.start()
    lab.stop()
    scripts = lab.saved_collection()["modules"]["scripts-tool"]
    saved = next(script["settings"] for script in scripts if script["path"] == str(script_path()))
    assert [(key["key"], key.get("control")) for key in saved["instantvision.panic"]] == [
        ("OBS_KEY_F12", True)
    ]


def test_the_program_restarted_on_another_port_is_found_again(probe: Probe, lab: ObsLab) -> None:
    control = Control(Settings())
    for look in ("neon", "ink"):
        control.apply({"preset": look}, by="dock")
        server = start_server(control, FakePreview())
        with ControlFile(state_folder(lab), url="", token=TOKEN, port=server.port):
            probe.wait_for_log(f"running: {look}")
        server.close()
    probe.wait_for_log("not running")


@pytest.mark.slow
def test_it_starts_controls_and_stops_the_real_program(probe: Probe, lab: ObsLab, tmp_path: Path) -> None:
    wrapper = tmp_path / "instantvision"
    # OBS's environment is not this one, and the program need not be installed.
    wrapper.write_text(
        f"#!/bin/sh\nexport PYTHONPATH='{os.pathsep.join(path for path in sys.path if path)}'\n"
        f"exec {sys.executable} -c 'from instantvision.cli import main; main()' \"$@\" --control-port=0 --fps=10\n"
    )
    wrapper.chmod(0o700)
    control = state_folder(lab) / "control.json"
    wanted = {
        "program": str(wrapper),
        "source": "test-pattern",
        "sink": "null",
        "size": "64",
        "preset": "oil",
    }
    # The script forgets the program of the test before.
    wait_until(lambda: probe()["properties"]["status"][1].startswith("Not running"), lambda: str(probe()))
    probe(set=wanted, click="start")
    try:
        wait_until(control.exists, lambda: (state_folder(lab) / "obs-script.log").read_text())
        probe.wait_for_log("running: oil, the effect is on air")
        probe.hotkey("panic")
        probe.wait_for_log("running: oil, the slate is on air")
        pid = json.loads(control.read_text())["pid"]
        # The program outlives OBS, which finds it again.
        lab.restart()
        probe.wait_for_log("running: oil, the slate is on air")
        assert json.loads(control.read_text())["pid"] == pid
        probe(click="stop")
        wait_until(lambda: not control.exists(), lambda: "the program did not stop")
    finally:
        if control.exists():
            os.kill(json.loads(control.read_text())["pid"], signal.SIGKILL)
