"""Instant Vision in OBS Studio: add this file in Tools → Scripts.

It runs inside OBS, in whatever Python OBS embeds (3.9 or newer): nothing but the standard library and obspython, and
nothing of our own package. OBS is never kept waiting: one thread talks to the running program, with at most one change
in its queue; OBS's callbacks only leave a wish there or read what was found last. No error goes into OBS: it becomes
the status line. The real camera goes on air by one key only, which does nothing until a box is ticked.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import obspython as obs

# Of one answer. The program is on this computer: later than that it hangs.
PATIENCE_S = 1.0
POLL_S = 1.0
TIMER_MS = 500
ANSWER_MAX_BYTES = 1_000_000
# A request in flight is cut off when the script is unloaded; only a connect that hangs would use it up.
JOIN_WITHIN_S = 3 * PATIENCE_S
LOG_TAIL_BYTES = 4096

# What the list offers where neither the program nor the package beside this file tells the looks.
FIRST_LOOK = "oil"
PANIC_MODES = {"slate": "Slate", "freeze": "Freeze the picture", "last-look": "Keep the last look"}
ON_AIR = {
    "effect": "the effect is on air",
    "slate": "the slate is on air",
    "freeze": "the picture is frozen",
    "last-look": "the last look stays",
    "camera": "THE REAL CAMERA IS ON AIR",
}
NOT_RUNNING = "not running: press Start, or run `instantvision run` in a terminal"
# Properties that are a change of the program's API, by the same name.
CHANGES = ("preset", "strength", "fade_s", "panic_mode")
# The API refuses two of a group at once: the newer one replaces the older.
RIVALS = (("preset", "look"), ("show", "panic", "bypass"))
HOTKEYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "next-look": ("next look", {"look": "next"}),
    "previous-look": ("previous look", {"look": "previous"}),
    "bypass": ("bypass: the real camera, and back", {"bypass": True}),
    "panic": ("panic", {"panic": True}),
    "effect": ("back to the effect", {"show": "effect"}),
}
DESCRIPTION = """<h2>Instant Vision</h2>
<p>Live diffusion looks for your camera. <b>Start</b> runs the program, or start it yourself with
<code>instantvision run</code>. Its picture is the camera <i>Instant Vision</i>: add it to a scene as a video capture
device, or let <code>instantvision obs setup</code> do it.</p>
<p><b>Panic</b> hides the picture the way you choose below; <b>Back to the effect</b> ends it. Keys for next and
previous look, bypass, panic and back to the effect are set in Settings → Hotkeys. Bypass shows the real camera, and
only if you allow it below.</p>"""


class Trouble(Exception):
    """Something to tell the user in one line."""


class NotRunning(Trouble):
    """No program has left its address."""


class Report(NamedTuple):
    """What is known of the program.

    Args:
        line: for the user; stays the same while nothing happens.
        figures: speed and latency, which always change.
        state: the program's answer to /api/state, empty if it gave none.
        wrong: whether the user should do something.
    """

    line: str
    figures: str = ""
    state: Mapping[str, Any] = {}
    wrong: bool = False


# Where things lie.


def state_folders() -> list[Path]:
    """Where the program may have left its control file: its own folder by platformdirs' rules, then the default.

    They differ where OBS was started from a desktop or sandbox that knows other variables than the terminal.
    """
    home = Path.home()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return [(Path(local) if local else home / "AppData" / "Local") / "instantvision"]
    default = home / ("Library/Application Support" if sys.platform == "darwin" else ".local/state")
    named = os.environ.get("XDG_STATE_HOME", "")
    folders = [Path(named)] if os.path.isabs(named) else []
    return [folder / "instantvision" for folder in [*folders, default]]


def read_control() -> tuple[int, int, str]:
    """Port, process id and token of the running program.

    Raises:
        NotRunning: there is no control file.
        Trouble: it cannot be used.
    """
    for folder in state_folders():
        path = folder / "control.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            port, pid, token = int(found["port"]), int(found["pid"]), str(found["token"])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Trouble(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise Trouble(f"{path} is no control file: start the program again") from error
        # A process id of 0 or less would be a signal to many processes.
        if not (0 < port < 65536 and pid > 1 and token.isascii() and token.isprintable()):
            raise Trouble(f"{path} is no control file: start the program again")
        return port, pid, token
    raise NotRunning(NOT_RUNNING)


def find_program() -> str:
    """The installed program: of the environment this file is in, of the path, where installers link it; or its name."""
    windows = sys.platform == "win32"
    name, programs = ("instantvision.exe", "Scripts") if windows else ("instantvision", "bin")
    above = list(Path(__file__).resolve().parents)
    # Beside a checkout, or around site-packages; not around a copy of this file alone, where others may write.
    own = [above[1] / ".venv", *above[3:6]] if above[0].name == "plugin" else []
    for candidate in [folder / programs / name for folder in own]:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    # Where pipx and uv put it; a desktop's path often lacks that folder.
    linked = Path.home() / ".local" / "bin"
    return shutil.which("instantvision") or shutil.which("instantvision", path=str(linked)) or name


def looks() -> list[str]:
    """Names of the looks in the package that this file is installed with."""
    folder = Path(__file__).resolve().parents[1] / "pipeline" / "looks"
    return sorted(path.stem for path in folder.glob("*.toml")) or [FIRST_LOOK]


# The thread that talks to the program.


class Program:
    """The program, over HTTP and as a process; all but `abort` in the worker's thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._aborted = False
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, path: str, change: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """GET the path, or POST the change to it; found anew each time, as the program may have been restarted.

        Raises:
            NotRunning: no program has left its address.
            Trouble: it does not answer, or refuses.
        """
        port, _, token = read_control()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            connection.connect()
            self._socket = connection.sock
            if self._aborted:
                raise Trouble("the script is being unloaded")
            body = None if change is None else json.dumps(change)
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            found = json.loads(answer.read(ANSWER_MAX_BYTES))
        except ConnectionRefusedError as error:
            # The file of a run that crashed.
            raise NotRunning(NOT_RUNNING) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Trouble("the program does not answer: stop it and start it again") from error
        finally:
            self._socket = None
            connection.close()
        if not isinstance(found, dict) or answer.status != http.client.OK:
            reason = found.get("error") if isinstance(found, dict) else None
            raise Trouble(str(reason or f"the program answered with status {answer.status}"))
        return found

    def abort(self) -> None:
        """Cut off the request in flight and every later one, from any thread."""
        self._aborted = True
        if busy := self._socket:
            # It may just have ended by itself.
            with contextlib.suppress(OSError):
                busy.shutdown(socket.SHUT_RDWR)

    def start(self, command: Sequence[str]) -> None:
        """Run the command on its own, so that it outlives OBS; what it prints goes to a file of the user.

        Raises:
            Trouble: it cannot be started, or runs already.
        """
        _require_no_sandbox()
        if self.starting:
            raise Trouble("the program is starting already")
        if self._answers():
            raise Trouble("the program runs already")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            with os.fdopen(_open_log(), "wb") as log:
                # The user's own program and words, and no shell between.
                self._child = subprocess.Popen(  # noqa: S603
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **options
                )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Trouble(f"cannot start {command[0]}: {reason}: check the field Program") from error

    @property
    def starting(self) -> bool:
        """Whether what `start` began still runs."""
        return self._child is not None and self._child.poll() is None

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/api/state"))
        except Trouble:
            return False

    def stop(self) -> None:
        """End it as Ctrl-C would (Windows: at once, as it has no such signal for programs without a console).

        Raises:
            Trouble: nothing runs, or what runs cannot be told to be it.
        """
        _require_no_sandbox()
        try:
            # Only a program that answers to its token is sure to own its process id: the file may be an old one.
            self.ask("/api/state")
            os.kill(read_control()[1], signal.SIGINT)
        except (Trouble, OSError) as error:
            if self._child is None or not self.starting:
                raise error if isinstance(error, Trouble) else Trouble(f"cannot stop it: {error}") from error
            self._child.send_signal(signal.SIGINT)

    def epitaph(self) -> str:
        """Once, how the program that `start` began has failed; empty if it did not."""
        code = None if self._child is None else self._child.poll()
        if code is None:
            return ""
        self._child = None
        # 0 is its end of file or time, 130 and SIGINT itself are what `stop` brings about.
        if code in (0, 130, -signal.SIGINT):
            return ""
        return f"the program ended with code {code}: {_last_words()}"


class Worker:
    """The thread, the one change that waits for it, and the newest report."""

    def __init__(self) -> None:
        self._program = Program()
        self._woken = threading.Condition()
        self._wish: dict[str, Any] = {}
        self._errand: Callable[[], None] | None = None
        self._closed = False
        self._note = ""
        self.report = Report("looking for the program")
        self._thread = threading.Thread(target=self._run, name="instantvision", daemon=True)
        self._thread.start()

    def want(self, change: Mapping[str, Any]) -> None:
        """Have the program changed soon; joins a change that still waits, newer values win."""
        with self._woken:
            for group in RIVALS:
                if any(key in change for key in group):
                    self._wish = {key: value for key, value in self._wish.items() if key not in group}
            self._wish.update(change)
            self._woken.notify()

    def start_program(self, command: Sequence[str]) -> None:
        """Have it started soon."""
        self._send(lambda: self._program.start(command))

    def stop_program(self) -> None:
        """Have it stopped soon."""
        self._send(self._program.stop)

    def refuse(self, reason: str) -> None:
        """Tell the user of something that went wrong in OBS."""
        self._note = reason
        self.report = self.report._replace(line=reason, wrong=True)

    def close(self) -> None:
        """End the thread, also from the middle of a request."""
        with self._woken:
            self._closed = True
            self._woken.notify()
        self._program.abort()
        self._thread.join(JOIN_WITHIN_S)

    def _send(self, errand: Callable[[], None]) -> None:
        with self._woken:
            self._errand = errand
            self._woken.notify()

    def _run(self) -> None:
        while True:
            try:
                self.report = self._look()
            # Everything: an end of this thread would go unseen, and its fault may not become OBS's.
            except Exception as error:  # noqa: BLE001
                self.report = Report(f"{type(error).__name__}: {error}", wrong=True)
            with self._woken:
                self._woken.wait_for(lambda: self._closed or self._wish or self._errand, POLL_S)
                if self._closed:
                    return

    def _look(self) -> Report:
        """Do what is wanted, then see how the program is."""
        with self._woken:
            wish, self._wish = self._wish, {}
            errand, self._errand = self._errand, None
        if wish or errand:
            self._note = ""
        try:
            if errand is not None:
                errand()
            if wish:
                self._carry_out(wish)
        except Trouble as trouble:
            self._note = str(trouble)
        self._note = self._program.epitaph() or self._note
        return self._see()

    def _carry_out(self, wish: dict[str, Any]) -> None:
        if wish.pop("bypass", False):
            # By what is on air now, not by what was a second ago.
            wish.update(_bypass(str(self._program.ask("/api/state").get("show"))))
        try:
            self._program.ask("/api/apply", wish)
        except NotRunning:
            # Then the properties are what Start will begin with, and only a deed is in vain.
            if not set(wish) <= set(CHANGES):
                raise

    def _see(self) -> Report:
        try:
            state = self._program.ask("/api/state")
        except Trouble as trouble:
            if isinstance(trouble, NotRunning) and self._program.starting:
                return Report(f"starting; what it prints is in {_log_path()}")
            return Report(
                self._note or str(trouble), wrong=bool(self._note) or not isinstance(trouble, NotRunning)
            )
        on_air = ON_AIR.get(str(state.get("show")), str(state.get("show")))
        line = f"running: {state.get('preset')}, {on_air}" + (f"; {self._note}" if self._note else "")
        return Report(line, figures(state), state, wrong=bool(self._note))


def _bypass(on_air: str) -> dict[str, Any]:
    """The change from the effect to the camera or back; a hidden picture stays hidden.

    Raises:
        Trouble: it is hidden.
    """
    if on_air not in ("effect", "camera"):
        raise Trouble("the picture is hidden: go back to the effect before the bypass")
    return {"show": "effect"} if on_air == "camera" else {"show": "camera", "consent": True}


def figures(state: Mapping[str, Any]) -> str:
    """Speed and latency of the last seconds; empty before there are any."""
    recent = (state.get("stats") or {}).get("recent") or {}
    latency = recent.get("latency_ms") or {}
    if not latency.get("count"):
        return ""
    return f"{float(recent.get('fps_out', 0)):.0f} fps, latency {float(latency.get('p50', 0)):.0f} ms"


def _log_path() -> Path:
    return state_folders()[0] / "obs-script.log"


def _open_log() -> int:
    """A new log, for its owner alone: the program prints the dock's address with the token."""
    path = _log_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _last_words() -> str:
    """The last line of the log without the token: users publish OBS's own log, where this goes."""
    try:
        with _log_path().open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return "it left no log"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "token" not in line]
    return re.sub(r"[^\x20-\x7e]", "?", lines[-1])[:300] if lines else "it said nothing"


def _require_no_sandbox() -> None:
    if os.path.exists("/.flatpak-info"):
        raise Trouble("OBS runs in a Flatpak, out of which nothing is started or stopped: use a terminal")


# OBS's side. It calls these functions by name, from its window's and its graphics thread, one at a time.


class Script:
    """What lives from script_load to script_unload.

    Args:
        settings: the script's own, of OBS; the same object for as long.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.worker = Worker()
        self.logged = ""
        # What the user sees in the properties; what differs from it was just set by hand.
        self.seen = read_settings(settings)
        self.hotkeys: dict[str, Any] = {}


_script: Script | None = None

Returned = TypeVar("Returned")


def _kept_from_obs(
    default: Callable[[], Returned],
) -> Callable[[Callable[..., Returned]], Callable[..., Returned]]:
    """Turn any error of a callback into the status line; `default` makes what OBS gets then."""

    def wrap(function: Callable[..., Returned]) -> Callable[..., Returned]:
        @functools.wraps(function)
        def call(*arguments: Any) -> Returned:
            try:
                return function(*arguments)
            # Everything: OBS would print a traceback into a window that pops up over the show.
            except Exception as error:  # noqa: BLE001
                reason = f"{function.__name__}: {type(error).__name__}: {error}"
                if _script is None:
                    obs.script_log(obs.LOG_INFO, reason)
                else:
                    _script.worker.refuse(reason)
                return default()

        return call

    return wrap


def _nothing() -> None:
    return None


def script_description() -> str:
    """What OBS shows above the properties."""
    return DESCRIPTION


@_kept_from_obs(_nothing)
def script_defaults(settings: Any) -> None:
    """Values of properties the user has not set; a list without one would crash some versions of OBS."""
    texts = {"preset": FIRST_LOOK, "panic_mode": "slate", "program": find_program()}
    texts.update(source="webcam", sink="virtual-camera", size="")
    for name, value in texts.items():
        obs.obs_data_set_default_string(settings, name, value)
    obs.obs_data_set_default_bool(settings, "allow_bypass", False)
    obs.obs_data_set_default_double(settings, "strength", 1.0)
    obs.obs_data_set_default_double(settings, "fade_s", 0.5)


@_kept_from_obs(_nothing)
def script_load(settings: Any) -> None:
    """Begin."""
    global _script
    _script = Script(settings)
    obs.timer_add(on_timer, TIMER_MS)
    for name, (title, change) in HOTKEYS.items():
        key = f"instantvision.{name}"
        hotkey = obs.obs_hotkey_register_frontend(key, f"Instant Vision: {title}", _hotkey(change))
        saved = obs.obs_data_get_array(settings, key)
        obs.obs_hotkey_load(hotkey, saved)
        obs.obs_data_array_release(saved)
        _script.hotkeys[key] = hotkey


@_kept_from_obs(_nothing)
def script_unload() -> None:
    """End the timer and the thread; the program runs on, and OBS takes back the hotkeys itself."""
    global _script
    ended, _script = _script, None
    obs.timer_remove(on_timer)
    if ended is not None:
        ended.worker.close()


@_kept_from_obs(_nothing)
def script_save(settings: Any) -> None:
    """Keep the keys that the user gave the hotkeys."""
    for key, hotkey in (_script.hotkeys if _script else {}).items():
        keys = obs.obs_hotkey_save(hotkey)
        obs.obs_data_set_array(settings, key, keys)
        obs.obs_data_array_release(keys)


@_kept_from_obs(_nothing)
def script_update(settings: Any) -> None:
    """Send what the user has just changed; OBS also calls this at the start, when nobody has changed anything."""
    if _script is not None:
        _send_changes(_script, settings)


@_kept_from_obs(lambda: obs.obs_properties_create())
def script_properties() -> Any:
    """The properties, filled with the state of the running program."""
    props = obs.obs_properties_create()
    obs.obs_properties_add_text(props, "status", "", obs.OBS_TEXT_INFO)
    obs.obs_properties_add_button(props, "refresh", "Refresh", on_refresh)
    _add_list(props, "preset", "Look")
    obs.obs_properties_add_float_slider(props, "strength", "Strength", 0.0, 1.0, 0.01)
    fade = obs.obs_properties_add_float(props, "fade_s", "Fade between looks", 0.0, 10.0, 0.1)
    obs.obs_property_float_set_suffix(fade, " s")
    obs.obs_properties_add_button(props, "panic", "Panic", on_panic)
    obs.obs_properties_add_button(props, "effect", "Back to the effect", on_effect)
    _add_list(props, "panic_mode", "Panic shows")
    obs.obs_properties_add_bool(props, "allow_bypass", "The bypass key may show the real camera")
    obs.obs_properties_add_path(props, "program", "Program", obs.OBS_PATH_FILE, "", "")
    obs.obs_properties_add_text(props, "source", "Source", obs.OBS_TEXT_DEFAULT)
    obs.obs_properties_add_text(props, "sink", "Sink", obs.OBS_TEXT_DEFAULT)
    size = obs.obs_properties_add_text(props, "size", "Size", obs.OBS_TEXT_DEFAULT)
    obs.obs_property_set_long_description(size, "Such as 512 or 1280x720; empty: what suits this computer.")
    obs.obs_properties_add_button(props, "start", "Start", on_start)
    obs.obs_properties_add_button(props, "stop", "Stop", on_stop)
    _refresh(props)
    return props


@_kept_from_obs(_nothing)
def on_timer() -> None:
    """Tell OBS's log of every change of the status, once; as information, since a warning would open its window."""
    if _script is not None and _script.worker.report.line != _script.logged:
        _script.logged = _script.worker.report.line
        obs.script_log(obs.LOG_INFO, _script.logged)


@_kept_from_obs(lambda: False)
def on_refresh(props: Any, _prop: Any) -> bool:
    """Show what has become of the last button."""
    return _refresh(props)


@_kept_from_obs(lambda: False)
def on_panic(props: Any, _prop: Any) -> bool:
    """Hide the picture as chosen."""
    return _pressed(props, {"panic": True})


@_kept_from_obs(lambda: False)
def on_effect(props: Any, _prop: Any) -> bool:
    """End panic and privacy."""
    return _pressed(props, {"show": "effect"})


@_kept_from_obs(lambda: False)
def on_start(props: Any, _prop: Any) -> bool:
    """Start the program with what the properties say."""
    if _script is not None:
        _script.worker.start_program(command(_script.settings))
    return _refresh(props)


@_kept_from_obs(lambda: False)
def on_stop(props: Any, _prop: Any) -> bool:
    """Stop the program."""
    if _script is not None:
        _script.worker.stop_program()
    return _refresh(props)


def command(settings: Any) -> list[str]:
    """The command line that the properties make; values stay one argument each, whatever they begin with."""

    def text(name: str) -> str:
        return str(obs.obs_data_get_string(settings, name)).strip()

    values = read_settings(settings)
    options = {name: text(name) for name in ("sink", "source", "size")}
    options.update({name: str(values[name]) for name in ("preset", "strength")})
    options.update({"fade": str(values["fade_s"]), "panic-mode": values["panic_mode"]})
    given = [f"--{name}={value}" for name, value in options.items() if value]
    return [text("program") or find_program(), "run", *given]


def read_settings(settings: Any) -> dict[str, Any]:
    """The properties that are changes of the program's API."""
    return {
        "preset": str(obs.obs_data_get_string(settings, "preset")),
        # A slider's steps come with the noise of floating point.
        "strength": round(float(obs.obs_data_get_double(settings, "strength")), 4),
        "fade_s": round(float(obs.obs_data_get_double(settings, "fade_s")), 4),
        "panic_mode": str(obs.obs_data_get_string(settings, "panic_mode")),
    }


def _send_changes(script: Script, settings: Any) -> dict[str, Any]:
    values = read_settings(settings)
    changed = {key: value for key, value in values.items() if value != script.seen[key]}
    script.seen = values
    if changed:
        script.worker.want(changed)
    return changed


def _hotkey(change: Mapping[str, Any]) -> Callable[..., None]:
    @_kept_from_obs(_nothing)
    def on_hotkey(pressed: bool) -> None:
        if not pressed or _script is None:
            return
        if "bypass" in change and not obs.obs_data_get_bool(_script.settings, "allow_bypass"):
            _script.worker.refuse("the bypass key is off: tick its box in Tools → Scripts")
        else:
            _script.worker.want(change)

    return on_hotkey


def _pressed(props: Any, change: Mapping[str, Any]) -> bool:
    if _script is not None:
        _script.worker.want(change)
    return _refresh(props)


def _add_list(props: Any, name: str, title: str) -> None:
    obs.obs_properties_add_list(props, name, title, obs.OBS_COMBO_TYPE_LIST, obs.OBS_COMBO_FORMAT_STRING)


def _refresh(props: Any) -> bool:
    """Bring the properties to the program's state; True has OBS draw them anew."""
    if _script is None:
        return False
    report, settings = _script.worker.report, _script.settings
    # OBS tells of a slider up to half a second late: what was just set by hand is sent, not overwritten.
    changed = _send_changes(_script, settings)
    _take_over({key: value for key, value in report.state.items() if key not in changed}, settings)
    _script.seen = read_settings(settings)
    names = [str(preset["name"]) for preset in report.state.get("presets", [])] or looks()
    _fill(props, "preset", {name: name for name in names}, _script.seen["preset"])
    _fill(props, "panic_mode", PANIC_MODES, _script.seen["panic_mode"])
    status = obs.obs_properties_get(props, "status")
    line = report.line[:1].upper() + report.line[1:]
    obs.obs_property_set_description(status, f"{line} ({report.figures})" if report.figures else line)
    kind = obs.OBS_TEXT_INFO_WARNING if report.wrong else obs.OBS_TEXT_INFO_NORMAL
    obs.obs_property_text_set_info_type(status, kind)
    return True


def _take_over(state: Mapping[str, Any], settings: Any) -> None:
    """Show what another front end has changed."""
    for name in CHANGES:
        if isinstance(state.get(name), str):
            obs.obs_data_set_string(settings, name, state[name])
        elif isinstance(state.get(name), (int, float)):
            obs.obs_data_set_double(settings, name, state[name])


def _fill(props: Any, name: str, titles: Mapping[str, str], current: str) -> None:
    """Fill a list; what is set elsewhere, such as a mix of looks, is in it too."""
    found = obs.obs_properties_get(props, name)
    obs.obs_property_list_clear(found)
    for value, title in {**titles, current: titles.get(current, f"{current} (set elsewhere)")}.items():
        obs.obs_property_list_add_string(found, title, value)
