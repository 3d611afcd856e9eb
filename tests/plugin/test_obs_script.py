"""The OBS script with a stand-in for OBS's side of it, against the real control server."""

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import platformdirs.macos
import platformdirs.unix
import platformdirs.windows
import pytest

from instantvision.pipeline.control import Show
from instantvision.pipeline.presets import load_presets
from instantvision.plugin.control_file import ControlFile
from instantvision.plugin.obs_script_path import script_path
from tests.plugin.conftest import TOKEN, Running

# Nothing here takes that long; it only keeps a broken script from hanging the tests.
LONG_S = 30.0


class FakeObs(ModuleType):
    """What the script uses of obspython, with plain Python values behind it: settings are a ChainMap over defaults."""

    LOG_INFO = 200
    OBS_TEXT_DEFAULT, OBS_TEXT_INFO = "text", "info"
    OBS_TEXT_INFO_NORMAL, OBS_TEXT_INFO_WARNING = "normal", "warning"
    OBS_COMBO_TYPE_LIST, OBS_COMBO_FORMAT_STRING, OBS_PATH_FILE = "list", "string", "file"

    def __init__(self) -> None:
        super().__init__("obspython")
        self.log: list[tuple[int, str]] = []
        self.timers: list[Callable[[], None]] = []
        self.hotkeys: dict[str, Callable[[bool], None]] = {}
        self.keys: dict[str, object] = {}
        self.arrays_held = 0

    def script_log(self, level: int, line: str) -> None:
        self.log.append((level, line))

    def timer_add(self, function: Callable[[], None], _ms: int) -> None:
        self.timers.append(function)

    def timer_remove(self, function: Callable[[], None]) -> None:
        self.timers.remove(function)

    def obs_hotkey_register_frontend(self, name: str, _title: str, function: Callable[[bool], None]) -> str:
        self.hotkeys[name] = function
        return name

    def obs_hotkey_load(self, hotkey: str, keys: object) -> None:
        self.keys[hotkey] = keys

    def obs_hotkey_save(self, hotkey: str) -> object:
        self.arrays_held += 1
        return self.keys[hotkey]

    def obs_data_get_array(self, settings: Mapping[str, Any], name: str) -> object:
        self.arrays_held += 1
        return settings.get(name)

    def obs_data_array_release(self, _array: object) -> None:
        self.arrays_held -= 1

    def obs_data_set_array(self, settings: "Settings", name: str, value: object) -> None:
        settings[name] = value

    def obs_data_get_string(self, settings: Mapping[str, Any], name: str) -> str:
        return str(settings.get(name, ""))

    def obs_data_get_double(self, settings: Mapping[str, Any], name: str) -> float:
        return float(settings.get(name, 0.0))

    def obs_data_get_bool(self, settings: Mapping[str, Any], name: str) -> bool:
        return bool(settings.get(name, False))

    def obs_data_set_string(self, settings: "Settings", name: str, value: str) -> None:
        settings[name] = value

    def obs_data_set_double(self, settings: "Settings", name: str, value: float) -> None:
        settings[name] = value

    def obs_data_set_default_string(self, settings: "Settings", name: str, value: str) -> None:
        settings.maps[1][name] = value

    def obs_data_set_default_double(self, settings: "Settings", name: str, value: float) -> None:
        settings.maps[1][name] = value

    def obs_data_set_default_bool(self, settings: "Settings", name: str, value: bool) -> None:
        settings.maps[1][name] = value

    def obs_properties_create(self) -> dict[str, Any]:
        return {}

    def obs_properties_get(self, props: dict[str, Any], name: str) -> Any:
        return props[name]

    def obs_properties_add_text(self, props: dict[str, Any], name: str, title: str, kind: str) -> Any:
        return props.setdefault(name, SimpleNamespace(kind=kind, title=title))

    def obs_properties_add_button(
        self, props: dict[str, Any], name: str, title: str, pressed: Callable[..., bool]
    ) -> Any:
        return props.setdefault(name, SimpleNamespace(kind="button", title=title, pressed=pressed))

    def obs_properties_add_list(
        self, props: dict[str, Any], name: str, title: str, _type: str, _format: str
    ) -> Any:
        return props.setdefault(name, SimpleNamespace(kind="list", title=title, items={}))

    def obs_properties_add_float_slider(self, props: dict[str, Any], name: str, *_: object) -> Any:
        return props.setdefault(name, SimpleNamespace(kind="slider"))

    def obs_properties_add_bool(self, props: dict[str, Any], name: str, title: str) -> Any:
        return props.setdefault(name, SimpleNamespace(kind="bool", title=title))

    def obs_properties_add_float(self, props: dict[str, Any], name: str, *_: object) -> Any:
        return props.setdefault(name, SimpleNamespace(kind="float"))

    def obs_properties_add_path(self, props: dict[str, Any], name: str, *_: object) -> Any:
        return props.setdefault(name, SimpleNamespace(kind="path"))

    def obs_property_float_set_suffix(self, _prop: Any, _suffix: str) -> None:
        """Not looked at."""

    def obs_property_set_long_description(self, _prop: Any, _text: str) -> None:
        """Not looked at."""

    def obs_property_set_description(self, prop: Any, title: str) -> None:
        prop.title = title

    def obs_property_text_set_info_type(self, prop: Any, look: str) -> None:
        prop.look = look

    def obs_property_list_clear(self, prop: Any) -> None:
        prop.items.clear()

    def obs_property_list_add_string(self, prop: Any, title: str, value: str) -> None:
        prop.items[value] = title


Settings = ChainMap[str, Any]


class Loaded:
    """The script as OBS has loaded it."""

    def __init__(self, script: Any, obs: FakeObs) -> None:
        self.script, self.obs = script, obs
        self.settings: Settings = ChainMap({}, {})
        self.props: dict[str, Any] = {}

    def load(self, **settings: object) -> "Loaded":
        """As at OBS's start."""
        self.settings.maps[0].update(settings)
        self.script.script_defaults(self.settings)
        self.script.script_update(self.settings)
        self.script.script_load(self.settings)
        self.script.script_update(self.settings)
        return self

    def set(self, **values: object) -> None:
        """As the user at the properties."""
        self.settings.maps[0].update(values)
        self.script.script_update(self.settings)

    def press(self, name: str) -> None:
        """A button of the properties, which OBS draws anew afterwards."""
        assert self.props[name].pressed(self.props, self.props[name]) is True

    def hotkey(self, name: str) -> None:
        self.obs.hotkeys[f"instantvision.{name}"](True)
        self.obs.hotkeys[f"instantvision.{name}"](False)

    def open(self) -> dict[str, Any]:
        """As the user who chooses the script in the window."""
        self.props = self.script.script_properties()
        return self.props

    @property
    def line(self) -> str:
        return str(self.script._script.worker.report.line)

    def wait_for(self, part: str) -> None:
        """Until the status says so."""
        wait_until(lambda: part in self.line, lambda: f"the status is {self.line!r}, expected {part!r}")


def wait_until(condition: Callable[[], object], said: Callable[[], str]) -> None:
    never = threading.Event()
    for _ in range(int(LONG_S / 0.02)):
        if condition():
            return
        never.wait(0.02)
    pytest.fail(said())


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the control file, in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "state" / "instantvision"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def loaded(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loaded]:
    """The script's module, not loaded yet; unloaded at the end, which leaves no thread and no timer."""
    obs = FakeObs()
    monkeypatch.setitem(sys.modules, "obspython", obs)
    spec = importlib.util.spec_from_file_location("obs_script_under_test", script_path())
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = Loaded(script, obs)
    yield found
    found.script.script_unload()
    assert not obs.timers
    assert obs.arrays_held == 0
    assert "instantvision" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture
def program(running: Running, state_home: Path) -> Iterator[Running]:
    """A program that has left its control file."""
    with ControlFile(state_home, url=running.server.url, token=TOKEN, port=running.server.port):
        yield running


def reaches(program: Running, condition: Callable[[], object]) -> None:
    wait_until(condition, lambda: f"the program's state is {program.control.state}")


# The running program.


def test_starting_obs_changes_nothing(loaded: Loaded, program: Running) -> None:
    before = program.control.state
    loaded.load(preset="ink", strength=0.3, fade_s=3.0, panic_mode="freeze").wait_for("running: oil")
    assert program.control.state is before


def test_what_the_user_sets_and_nothing_else_is_sent(loaded: Loaded, program: Running) -> None:
    loaded.load().wait_for("running")
    program.control.apply({"fade_s": 2.0}, by="dock")
    loaded.set(preset="ink", strength=0.5)
    reaches(program, lambda: str(program.control.state.settings.mix) == "ink")
    loaded.set(panic_mode="last-look")
    reaches(program, lambda: program.control.state.panic is Show.LAST_LOOK)
    state = program.control.state
    assert (state.settings.strength, state.fade_s, state.changed_by) == (0.5, 2.0, "script")


def test_hotkeys_walk_the_looks(loaded: Loaded, program: Running) -> None:
    loaded.load().wait_for("running")
    names = list(load_presets())
    after = names[(names.index("oil") + 1) % len(names)]
    loaded.hotkey("next-look")
    reaches(program, lambda: str(program.control.state.settings.mix) == after)
    loaded.hotkey("previous-look")
    reaches(program, lambda: str(program.control.state.settings.mix) == "oil")


def test_the_bypass_key_shows_the_camera_once_its_box_is_ticked(loaded: Loaded, program: Running) -> None:
    loaded.load().wait_for("running")
    loaded.hotkey("bypass")
    loaded.wait_for("tick its box")
    assert program.control.state.show is Show.EFFECT
    loaded.set(allow_bypass=True)
    loaded.hotkey("bypass")
    reaches(program, lambda: program.control.state.show is Show.CAMERA)
    loaded.hotkey("bypass")
    reaches(program, lambda: program.control.state.show is Show.EFFECT)


@pytest.mark.parametrize("show", [Show.SLATE, Show.FREEZE, Show.LAST_LOOK])
def test_the_bypass_key_leaves_hidden_what_is_hidden(loaded: Loaded, program: Running, show: Show) -> None:
    loaded.load(allow_bypass=True).wait_for("running")
    # The script has not heard of it when the key is pressed.
    program.control.apply({"show": show.value}, by="dock")
    loaded.hotkey("bypass")
    loaded.wait_for("the picture is hidden")
    assert program.control.state.show is show


def test_panic_and_back_by_key_and_button(loaded: Loaded, program: Running) -> None:
    loaded.load().wait_for("running")
    loaded.set(panic_mode="freeze")
    loaded.open()
    for act in (loaded.hotkey, loaded.press):
        act("panic")
        reaches(program, lambda: program.control.state.show is Show.FREEZE)
        act("effect")
        reaches(program, lambda: program.control.state.show is Show.EFFECT)


def test_the_newest_of_rival_wishes_wins_while_one_waits(loaded: Loaded) -> None:
    worker = loaded.load().script._script.worker
    with worker._woken:
        # The thread cannot fetch in between: the condition's lock is ours, and a thread's own to take again.
        for change in (
            {"show": "effect"},
            {"strength": 0.1},
            {"look": "next"},
            {"preset": "ink"},
            {"panic": True},
        ):
            worker.want(change)
        assert worker._wish == {"strength": 0.1, "preset": "ink", "panic": True}
        worker._wish.clear()


def test_no_property_of_the_script_can_show_the_camera(loaded: Loaded, program: Running) -> None:
    assert "camera" not in loaded.script.PANIC_MODES
    loaded.load().wait_for("running")
    # As settings of OBS that somebody edited would.
    loaded.set(panic_mode="camera")
    loaded.wait_for("consent")
    assert program.control.state.panic is Show.SLATE


def test_the_properties_show_the_program(loaded: Loaded, program: Running) -> None:
    program.control.apply({"preset": "oil:0.7,ink:0.3", "strength": 0.4, "fade_s": 1.5}, by="dock")
    loaded.load().wait_for("running")
    props = loaded.open()
    assert {name: prop.kind for name, prop in props.items()} == {
        "status": "info", "refresh": "button", "preset": "list", "strength": "slider", "fade_s": "float",
        "panic": "button", "effect": "button", "panic_mode": "list", "allow_bypass": "bool", "program": "path",
        "source": "text", "sink": "text", "size": "text", "start": "button", "stop": "button",
    }  # fmt: skip
    assert list(props["preset"].items) == [*load_presets(), "oil:0.7,ink:0.3"]
    assert list(props["panic_mode"].items) == ["slate", "freeze", "last-look"]
    assert [loaded.settings[name] for name in ("preset", "strength", "fade_s")] == [
        "oil:0.7,ink:0.3",
        0.4,
        1.5,
    ]
    assert props["status"].title == ("Running: oil:0.7,ink:0.3, the effect is on air (60 fps, latency 34 ms)")
    assert props["status"].look == "normal"


def test_refresh_takes_over_what_the_dock_did_but_not_what_the_user_just_set(
    loaded: Loaded, program: Running
) -> None:
    loaded.load().wait_for("running")
    loaded.open()
    program.control.apply({"preset": "neon", "fade_s": 4.0}, by="dock")
    loaded.wait_for("running: neon")
    # OBS has not told of the slider yet.
    loaded.settings.maps[0]["strength"] = 0.2
    loaded.press("refresh")
    reaches(program, lambda: program.control.state.settings.strength == 0.2)
    assert [loaded.settings[name] for name in ("preset", "strength", "fade_s")] == ["neon", 0.2, 4.0]
    assert str(program.control.state.settings.mix) == "neon"


def test_the_log_hears_of_a_change_once_and_never_as_a_warning(loaded: Loaded, program: Running) -> None:
    loaded.load().wait_for("running: oil")
    for _ in range(3):
        loaded.obs.timers[0]()
    program.control.apply({"panic": True}, by="dock")
    loaded.wait_for("the slate")
    loaded.obs.timers[0]()
    assert loaded.obs.log == [
        (FakeObs.LOG_INFO, "running: oil, the effect is on air"),
        (FakeObs.LOG_INFO, "running: oil, the slate is on air"),
    ]
    assert TOKEN not in repr(loaded.obs.log)


# A program that is not there, or not well.


def test_without_a_program(loaded: Loaded) -> None:
    loaded.load().wait_for("not running")
    props = loaded.open()
    assert list(props["preset"].items) == list(load_presets())
    assert props["status"].look == "normal"
    # Taken as what Start begins with.
    loaded.set(preset="ink")
    loaded.hotkey("next-look")
    loaded.wait_for("not running")


@pytest.fixture
def silent(state_home: Path) -> Iterator[socket.socket]:
    """A program that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with ControlFile(state_home, url="", token=TOKEN, port=port):
            yield server


def test_a_program_that_hangs_does_not_hold_up_obs(loaded: Loaded, silent: socket.socket) -> None:
    loaded.load()
    # The script is in the middle of a request, which nobody will ever answer.
    connection, _ = silent.accept()
    with connection:
        loaded.open()
        for name in ("panic", "refresh", "effect"):
            loaded.press(name)
        loaded.hotkey("panic")
        loaded.set(strength=0.5)
        loaded.obs.timers[0]()
        loaded.wait_for("does not answer")
        loaded.press("refresh")
        assert loaded.props["status"].look == "warning"


def test_unloading_cuts_a_request_off(
    loaded: Loaded, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the real patience, a thread that waits for its answer would still be gone in time.
    monkeypatch.setattr(loaded.script, "PATIENCE_S", 10 * LONG_S)
    monkeypatch.setattr(loaded.script, "JOIN_WITHIN_S", LONG_S)
    loaded.load()
    connection, _ = silent.accept()
    with connection:
        connection.recv(1)
        loaded.script.script_unload()
        assert "instantvision" not in [thread.name for thread in threading.enumerate()]
        loaded.obs.timers.append(loaded.script.on_timer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "does not answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "status 200"),
        (b'HTTP/1.1 401 No\r\nContent-Length: 20\r\n\r\n{"error": "no luck"}', "no luck"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", "status 500"),
    ],
)
def test_a_strange_answer_is_told(loaded: Loaded, silent: socket.socket, answer: bytes, said: str) -> None:
    loaded.load()
    connection, _ = silent.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)
    loaded.wait_for(said)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"port": 0, "pid": 7, "token": "t"}', '{"port": 70000, "pid": 7, "token": "t"}',
        '{"port": 8765, "pid": 0, "token": "t"}', '{"port": 8765, "pid": -1, "token": "t"}',
        '{"port": 8765, "pid": 7, "token": "t\\r\\nHost: evil"}', '{"port": 8765, "pid": null, "token": "t"}',
    ],
)  # fmt: skip
def test_a_broken_control_file_is_told(loaded: Loaded, state_home: Path, text: str) -> None:
    (state_home / "control.json").write_text(text)
    loaded.load().wait_for("is no control file")


def test_no_error_goes_into_obs(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.load().wait_for("not running")
    loaded.open()

    def broken(*_: object) -> None:
        raise RuntimeError("no such function")

    for name in ("obs_data_get_string", "script_log", "obs_hotkey_save", "obs_properties_add_text"):
        monkeypatch.setattr(loaded.obs, name, broken)
    loaded.script.script_update(loaded.settings)
    loaded.script.script_save(loaded.settings)
    loaded.script.script_defaults(loaded.settings)
    assert loaded.script.script_properties() == {}
    assert loaded.props["refresh"].pressed(loaded.props, None) is False
    loaded.obs.timers[0]()
    assert "RuntimeError: no such function" in loaded.line


def test_callbacks_after_unloading_do_nothing(loaded: Loaded) -> None:
    loaded.load()
    loaded.open()
    loaded.script.script_unload()
    loaded.hotkey("panic")
    loaded.set(strength=0.1)
    loaded.script.script_save(loaded.settings)
    assert loaded.props["panic"].pressed(loaded.props, None) is False
    loaded.obs.timers.append(loaded.script.on_timer)


def test_keys_of_hotkeys_are_saved_and_restored(loaded: Loaded) -> None:
    loaded.load(**{"instantvision.panic": ["F12"]})
    assert loaded.obs.keys["instantvision.panic"] == ["F12"]
    loaded.obs.keys["instantvision.next-look"] = ["F9"]
    loaded.script.script_save(loaded.settings)
    assert loaded.settings["instantvision.next-look"] == ["F9"]
    assert loaded.settings["instantvision.panic"] == ["F12"]


# Start and stop.


def stand_in(path: Path, text: str) -> Path:
    """A program of that Python text, in place of ours."""
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o700)
    return path


def test_start_passes_the_properties_one_argument_each(
    loaded: Loaded, tmp_path: Path, state_home: Path
) -> None:
    program = stand_in(
        tmp_path / "instant vision",
        "import json, os, sys\n"
        "said = [sys.argv[1:], os.getsid(0) == os.getpid(), 'PYTHONPATH' in os.environ]\n"
        f"open({str(tmp_path / 'part')!r}, 'w').write(json.dumps(said))\n"
        f"os.rename({str(tmp_path / 'part')!r}, {str(tmp_path / 'said')!r})\n",
    )
    loaded.load(
        program=f" {program} ", source="--sink=x; rm -rf ~", sink="null", size="", preset="ink", strength=0.5
    )
    loaded.wait_for("not running")
    loaded.open()
    loaded.press("start")
    wait_until((tmp_path / "said").exists, lambda: loaded.line)
    assert loaded.script._script.worker._program._child.wait(LONG_S) == 0
    arguments, own_session, leaked = json.loads((tmp_path / "said").read_text())
    assert arguments == [
        "run", "--sink=null", "--source=--sink=x; rm -rf ~", "--preset=ink", "--strength=0.5", "--fade=0.5",
        "--panic-mode=slate",
    ]  # fmt: skip
    assert own_session
    assert not leaked
    assert stat.S_IMODE((state_home / "obs-script.log").stat().st_mode) == 0o600


def test_a_program_that_fails_is_told_without_its_token(loaded: Loaded, tmp_path: Path) -> None:
    text = "import sys\nsys.exit('controls: http://127.0.0.1:1/#token=secret\\nSinkError: no camera\\n#token=secret')"
    loaded.load(program=str(stand_in(tmp_path / "program", text))).wait_for("not running")
    loaded.open()
    loaded.press("start")
    loaded.wait_for("the program ended with code 1: SinkError: no camera")
    loaded.obs.timers[0]()
    assert "secret" not in repr(loaded.obs.log)


@pytest.mark.parametrize("program", ["/nowhere/instantvision", "/", "a\0b"])
def test_a_program_that_cannot_be_started_is_told(loaded: Loaded, program: str) -> None:
    loaded.load(program=program).wait_for("not running")
    loaded.open()
    loaded.press("start")
    loaded.wait_for(f"cannot start {program}")


def test_a_running_program_is_not_started_again(loaded: Loaded, program: Running, tmp_path: Path) -> None:
    loaded.load(program=str(tmp_path / "never")).wait_for("running: oil")
    loaded.open()
    loaded.press("start")
    loaded.wait_for("running: oil, the effect is on air; the program runs already")


def test_stop_interrupts_what_was_started_even_before_it_answers(loaded: Loaded, tmp_path: Path) -> None:
    text = f"import pathlib, signal\npathlib.Path({str(tmp_path / 'up')!r}).touch()\nsignal.pause()\n"
    loaded.load(program=str(stand_in(tmp_path / "program", text))).wait_for("not running")
    loaded.open()
    loaded.press("start")
    loaded.wait_for("starting")
    wait_until((tmp_path / "up").exists, lambda: loaded.line)
    child = loaded.script._script.worker._program._child
    loaded.press("start")
    loaded.wait_for("starting")
    assert loaded.script._script.worker._program._child is child
    loaded.press("stop")
    loaded.wait_for("not running")
    # As Python ends when interrupted.
    assert child.wait(LONG_S) == -signal.SIGINT


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process of the user."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


def test_stop_interrupts_the_process_of_the_control_file_once_its_server_answers(
    loaded: Loaded, running: Running, state_home: Path, bystander: "subprocess.Popen[bytes]"
) -> None:
    control = {"url": "", "token": TOKEN, "port": running.server.port, "pid": bystander.pid}
    (state_home / "control.json").write_text(json.dumps(control))
    loaded.load().wait_for("running")
    loaded.open()
    loaded.press("stop")
    assert bystander.wait(LONG_S) != 0


def test_stop_leaves_a_process_alone_that_only_an_old_file_names(
    loaded: Loaded, state_home: Path, bystander: "subprocess.Popen[bytes]"
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    control = {"url": "", "token": TOKEN, "port": port, "pid": bystander.pid}
    (state_home / "control.json").write_text(json.dumps(control))
    loaded.load().wait_for("not running")
    loaded.open()
    before = loaded.script._script.worker.report
    loaded.press("stop")
    wait_until(lambda: loaded.script._script.worker.report is not before, lambda: loaded.line)
    assert bystander.poll() is None


def test_in_a_flatpak_nothing_is_started_or_stopped(
    loaded: Loaded, program: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(
        loaded.script.os.path, "exists", lambda path: path == "/.flatpak-info" or exists(path)
    )
    loaded.load().wait_for("running")
    loaded.open()
    # This process's own id is in the control file: it would not survive.
    loaded.press("stop")
    loaded.wait_for("Flatpak")


# Where things lie.


@pytest.mark.parametrize("state", [None, "", " ", "/somewhere", " /somewhere ", "relative", "~/state"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_control_file_is_where_the_program_puts_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, state: str | None, system: str
) -> None:
    if state is None:
        monkeypatch.delenv("XDG_STATE_HOME")
    else:
        monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setattr(loaded.script, "sys", SimpleNamespace(platform=system))
    there = {"linux": platformdirs.unix.Unix, "darwin": platformdirs.macos.MacOS}[system]
    expected = there("instantvision", appauthor=False).user_state_dir
    assert str(loaded.script.state_folders()[0]) == expected


def test_the_control_file_on_windows(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALAPPDATA", "/users/me/AppData/Local")
    # Elsewhere than on Windows, of platformdirs' ways only this one works.
    from_environment = platformdirs.windows.get_win_folder_from_env_vars
    monkeypatch.setattr(platformdirs.windows, "get_win_folder", from_environment)
    monkeypatch.setattr(loaded.script, "sys", SimpleNamespace(platform="win32"))
    expected = platformdirs.windows.Windows("instantvision", appauthor=False).user_state_dir
    assert str(loaded.script.state_folders()[0]) == expected


def test_a_program_of_another_environment_is_found_in_the_usual_folder(
    loaded: Loaded, tmp_path: Path, running: Running
) -> None:
    usual = tmp_path / ".local" / "state" / "instantvision"
    usual.mkdir(parents=True)
    with ControlFile(usual, url="", token=TOKEN, port=running.server.port):
        loaded.load().wait_for("running: oil")


def test_the_program_beside_an_installed_script_is_found(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    installed = tmp_path / "venv/lib/python3.11/site-packages/instantvision/plugin/obs_script.py"
    monkeypatch.setattr(loaded.script, "__file__", str(installed))
    assert loaded.script.find_program() == "instantvision"
    on_path = stand_in(tmp_path / "instantvision", "")
    assert loaded.script.find_program() == str(on_path)
    (tmp_path / "venv/bin").mkdir(parents=True)
    beside = stand_in(tmp_path / "venv/bin/instantvision", "")
    assert loaded.script.find_program() == str(beside)


def test_a_copied_script_starts_nothing_from_the_folders_around_it(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for folder in (".venv/bin", "copies/.venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
        stand_in(tmp_path / folder / "instantvision", "")
    monkeypatch.setattr(loaded.script, "__file__", str(tmp_path / "copies" / "obs_script.py"))
    assert loaded.script.find_program() == "instantvision"
    assert loaded.script.looks() == ["oil"]


def test_an_older_python_reads_it_with_nothing_installed() -> None:
    tree = ast.parse(script_path().read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"obspython"}


SMOKE = """
import sys, types
class Obs(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        values = {"obs_data_get_string": "oil", "obs_data_get_double": 0.5}
        return name if name.isupper() else lambda *_: values.get(name)
sys.modules["obspython"] = Obs("obspython")
said = []
sys.modules["obspython"].script_log = lambda _level, line: said.append(line)
import obs_script
obs_script.script_defaults({})
obs_script.script_load({})
obs_script.script_properties()
obs_script.on_panic(None, None)
obs_script.on_timer()
obs_script.script_save({})
obs_script.script_unload()
assert all("Error" not in line for line in said), said
"""


def test_an_older_python_runs_it(state_home: Path) -> None:
    oldest = shutil.which("python3.9")
    # A version manager's stand-in for what is not installed fails.
    if oldest is None or subprocess.run([oldest, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("no python3.9 on this machine")
    environment = os.environ | {"PYTHONPATH": str(script_path().parent), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([oldest, "-W", "error", "-c", SMOKE], env=environment, check=True, timeout=LONG_S)


def test_the_description_names_every_hotkey_and_button(loaded: Loaded) -> None:
    text = re.sub(r"<[^>]*>|\s+", " ", loaded.script.script_description())
    for named in ("Start", "Panic", "Back to the effect", "Settings → Hotkeys", "instantvision run"):
        assert named in text
