"""A real OBS Studio for tests: Debian's, without a screen, in a home folder of its own, with obs-websocket on.

    @pytest.fixture(scope="module")
    def obs(tmp_path_factory):
        with ObsLab(tmp_path_factory.mktemp("obs"), scenes=("Talk", "Break")) as lab:
            yield lab

Nothing of the user's own OBS is read or written.
"""

import configparser
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest
from obswebsocket import obsws, requests

# Nothing here takes that long, even on a busy machine; it only keeps a broken OBS from hanging the tests.
PATIENCE_S = 60.0
POLL_S = 0.05
# Of the websocket, until a test sets another one; opens nothing else.
PASSWORD = "lab-password"  # noqa: S105
# What would lead OBS to the user's session, or its embedded Python into this environment.
FOREIGN = (
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "WAYLAND_DISPLAY",
    "DBUS_SESSION_BUS_ADDRESS",
    "PULSE_SERVER",
)


def require_obs() -> None:
    """Skip the test where there is no OBS or no X server to run it on."""
    for program, package in (("obs", "obs-studio"), ("Xvfb", "xvfb")):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine: apt-get install --no-install-recommends {package}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ObsLab:
    """One OBS on one X server.

    Args:
        folder: empty; holds home, configuration and logs.
        scenes: of the scene collection, the first one live.
        scripts: absolute paths, loaded as Tools -> Scripts would.
        canvas: width and height, pixels.
        fps: of the canvas.

    Attributes:
        port, password: of obs-websocket; a new password counts from the next start.
        config: OBS's configuration folder, .../obs-studio.
        log: everything OBS printed since its last start.
        environment: more variables for OBS, from the next start on.
        pid: of OBS, or None while it does not run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scenes: Iterable[str] = ("Scene",),
        scripts: Iterable[Path] = (),
        canvas: tuple[int, int] = (640, 360),
        fps: int = 30,
    ) -> None:
        require_obs()
        self.folder, self.port, self.password = folder, free_port(), PASSWORD
        self.home = folder / "home"
        self.config = self.home / ".config" / "obs-studio"
        self.log = folder / "obs.log"
        self.environment: dict[str, str] = {}
        self._obs: subprocess.Popen[bytes] | None = None
        self._xvfb: subprocess.Popen[bytes] | None = None
        self._display = ""
        self._write_profile(canvas, fps)
        self._write_collection(tuple(scenes), tuple(scripts))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._obs.pid if self._obs and self._obs.poll() is None else None

    def start(self) -> None:
        """Start OBS and wait until it answers requests."""
        if self.pid:
            return
        self._write_settings()
        if self._xvfb is None:
            self._start_xvfb()
        command = ["obs", "--multi", "--disable-missing-files-check", "--websocket_ipv4_only"]
        with self.log.open("wb") as log:
            self._obs = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """End OBS as its user would: it saves the scene collection. SIGTERM would not."""
        _end(self._obs, signal.SIGINT)
        self._obs = None

    def kill(self) -> None:
        """End OBS as a crash would."""
        _end(self._obs, signal.SIGKILL)
        self._obs = None

    def restart(self) -> None:
        """Stop and start again with the same configuration and port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End OBS and its X server; may be called twice."""
        self.stop()
        _end(self._xvfb, signal.SIGTERM)
        self._xvfb = None

    def connect(self) -> obsws:
        """A connection of the plain library, independent of ours; the caller disconnects it."""
        client = obsws("127.0.0.1", self.port, self.password, timeout=10)
        try:
            client.connect()
        except Exception:
            if client.ws is not None:
                client.ws.shutdown()
            raise
        return client

    def call(self, name: str, **data: Any) -> dict[str, Any]:
        """One request on a connection of its own: the reply's data; AssertionError if OBS refuses it."""
        client = self.connect()
        try:
            answer = client.call(getattr(requests, name)(**data))
        finally:
            client.disconnect()
        assert answer.status, f"{name}{data}: {answer.datain}"
        return dict(answer.datain)

    def saved_collection(self) -> dict[str, Any]:
        """The scene collection as OBS last saved it: call stop first."""
        return json.loads((self.config / "basic" / "scenes" / "Untitled.json").read_text(encoding="utf-8"))

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if self.pid is None:
                break
            if "Server started successfully" in self.log.read_text(errors="replace") and self._answers():
                return
            time.sleep(POLL_S)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        self.close()
        raise RuntimeError(f"OBS did not answer on port {self.port}:\n{tail}")

    def _answers(self) -> bool:
        # While it loads, OBS answers with an error, and closes the connection if the port is not its own yet.
        try:
            return bool(self.call("GetSceneList")["scenes"])
        except Exception:  # noqa: BLE001
            return False

    def _start_xvfb(self) -> None:
        reader, writer = os.pipe()
        with (self.folder / "xvfb.log").open("wb") as log:
            command = f"Xvfb -displayfd {writer} -screen 0 1280x800x24 -nolisten tcp -noreset"
            self._xvfb = subprocess.Popen(
                command.split(),
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            # Comes once the server takes connections; an empty line means that it ended.
            self._display = pipe.readline().decode().strip()
        if not self._display:
            raise RuntimeError(f"Xvfb did not start: {(self.folder / 'xvfb.log').read_text()}")

    def _environment(self) -> dict[str, str]:
        runtime = self.folder / "run"
        runtime.mkdir(mode=0o700, exist_ok=True)
        own = {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_DATA_HOME": str(self.home / ".local" / "share"),
            "XDG_STATE_HOME": str(self.home / ".local" / "state"),
            "XDG_RUNTIME_DIR": str(runtime),
            "DISPLAY": f":{self._display}",
            "QT_QPA_PLATFORM": "xcb",
            "LIBGL_ALWAYS_SOFTWARE": "1",
        }
        return (
            {name: value for name, value in os.environ.items() if name not in FOREIGN}
            | own
            | self.environment
        )

    def _write_settings(self) -> None:
        """OBS 29 reads its websocket settings from global.ini, obs-websocket 5.5 and later from a file of its own."""
        ini = _ini()
        path = self.config / "global.ini"
        # Written with a byte order mark by OBS.
        ini.read(path, encoding="utf-8-sig")
        for section, values in _GLOBAL.items():
            if not ini.has_section(section):
                ini[section] = values
        ini["OBSWebSocket"].update({"ServerPort": str(self.port), "ServerPassword": self.password})
        _write_ini(path, ini)
        own = self.config / "plugin_config" / "obs-websocket" / "config.json"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(
            json.dumps(
                {
                    "alerts_enabled": False,
                    "auth_required": True,
                    "first_load": False,
                    "server_enabled": True,
                    "server_password": self.password,
                    "server_port": self.port,
                }
            )
        )

    def _write_profile(self, canvas: tuple[int, int], fps: int) -> None:
        ini = _ini()
        ini["General"] = {"Name": "Untitled"}
        width, height = (str(side) for side in canvas)
        # FPSType 1 takes any whole number; the list of type 0 silently falls back to 30.
        ini["Video"] = {
            "BaseCX": width,
            "BaseCY": height,
            "OutputCX": width,
            "OutputCY": height,
            "FPSType": "1",
            "FPSInt": str(fps),
        }
        _write_ini(self.config / "basic" / "profiles" / "Untitled" / "basic.ini", ini)

    def _write_collection(self, scenes: tuple[str, ...], scripts: tuple[Path, ...]) -> None:
        settings = {"custom_size": False, "id_counter": 0, "items": []}
        collection = {
            "name": "Untitled",
            "current_scene": scenes[0],
            "current_program_scene": scenes[0],
            "scene_order": [{"name": scene} for scene in scenes],
            "sources": [{"id": "scene", "name": scene, "settings": settings} for scene in scenes],
            "modules": {"scripts-tool": [{"path": str(script), "settings": {}} for script in scripts]},
        }
        path = self.config / "basic" / "scenes" / "Untitled.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(collection))


_GLOBAL = {
    # The version and FirstRun together suppress the wizard and the page of news.
    "General": {
        "FirstRun": "true",
        "LastVersion": str(29 << 24 | 2),
        "Pre19Defaults": "false",
        "Pre21Defaults": "false",
        "Pre23Defaults": "false",
        "Pre24.1Defaults": "false",
        "EnableAutoUpdates": "false",
        "ConfirmOnExit": "false",
    },
    "Basic": {
        "Profile": "Untitled",
        "ProfileDir": "Untitled",
        "SceneCollection": "Untitled",
        "SceneCollectionFile": "Untitled",
    },
    # A third of the load, with software rendering.
    "BasicWindow": {"PreviewEnabled": "false"},
    "OBSWebSocket": {
        "FirstLoad": "false",
        "ServerEnabled": "true",
        "AlertsEnabled": "false",
        "AuthRequired": "true",
    },
}


def _ini() -> configparser.RawConfigParser:
    ini = configparser.RawConfigParser(strict=False)
    ini.optionxform = str  # type: ignore[assignment,method-assign]
    return ini


def _write_ini(path: Path, ini: configparser.RawConfigParser) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        ini.write(file, space_around_delimiters=False)


def _end(process: subprocess.Popen[bytes] | None, first: signal.Signals) -> None:
    if process is None or process.poll() is not None:
        return
    process.send_signal(first)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)
