"""Where OBS is and what its websocket's password is, asked of the places that may know it, in this order.

1. the variable INSTANTVISION_OBS_PASSWORD
2. the file `obs-password` in the user's configuration folder, which nobody else may read
3. the system's keyring, if the package `keyring` is installed: service "instantvision", user "obs"
4. OBS's own settings, if OBS runs on this computer: whoever may read them may control OBS already

Never the command line, which other users of the computer can see. Knows nothing of the websocket.
"""

import configparser
import importlib
import ipaddress
import json
import logging
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from instantvision.pipeline.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "INSTANTVISION_OBS_PASSWORD"
FILE = "obs-password"
SERVICE, USER = "instantvision", "obs"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 4455


@dataclass(frozen=True, kw_only=True)
class ObsSettings:
    """How to reach an OBS.

    Args:
        host: name or address.
        port: of obs-websocket, 1..65535.
        password: "" if it wants none; neither printed nor logged.
        timeout_s: how long OBS may take for an answer, positive.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    password: str = field(default="", repr=False)
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError(f"the host of OBS is empty: {DEFAULT_HOST} is this computer")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"the port of OBS is {self.port}, expected 1 to 65535: {DEFAULT_PORT} is usual")
        if not self.timeout_s > 0:
            raise ConfigError(f"the time-out of OBS is {self.timeout_s:g} s, expected more than 0")

    @property
    def address(self) -> str:
        """`host:port`, as in messages and URLs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ObsOwnSettings:
    """What OBS has written down about its websocket; the password is "" where it wants none."""

    enabled: bool
    port: int
    password: str = field(repr=False)


def find_settings(host: str = DEFAULT_HOST, port: int | None = None) -> ObsSettings:
    """Settings for the OBS at `host`.

    Args:
        host: name or address; OBS's own settings are read if it is this computer.
        port: None takes the one in OBS's own settings, else 4455.

    Raises:
        ConfigError: the host or port is malformed, or others may read the password file.
    """
    own = read_own_settings() if is_this_computer(host) else None
    if port is None:
        port = own.port if own else DEFAULT_PORT
    password = os.environ.get(VARIABLE) or _from_file() or _from_keyring() or (own.password if own else "")
    return ObsSettings(host=host, port=port, password=password)


def password_file() -> Path:
    """The file that the user may put the password into."""
    return platformdirs.user_config_path("instantvision", appauthor=False) / FILE


def is_this_computer(host: str) -> bool:
    """Whether that is a name or address of the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_own_settings() -> ObsOwnSettings | None:
    """OBS's own settings, those of the newest kind first; None where there are none that can be read."""
    for folder in _obs_folders():
        for read in (_read_json, _read_ini):
            # A damaged or foreign file is no reason to fail: it is read for comfort alone.
            try:
                return read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, configparser.Error):
                continue
    return None


def _obs_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming") / "obs-studio"]
    if sys.platform == "darwin":
        return [home / "Library" / "Application Support" / "obs-studio"]
    flatpak = home / ".var" / "app" / "com.obsproject.Studio" / "config"
    return [
        folder / "obs-studio"
        for folder in (Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config"), flatpak)
    ]


def _read_json(folder: Path) -> ObsOwnSettings:
    """Of obs-websocket 5.5 and later."""
    path = folder / "plugin_config" / "obs-websocket" / "config.json"
    table = json.loads(path.read_text(encoding="utf-8-sig"))
    return ObsOwnSettings(
        enabled=bool(table["server_enabled"]),
        port=int(table["server_port"]),
        password=str(table["server_password"]) if table["auth_required"] else "",
    )


def _read_ini(folder: Path) -> ObsOwnSettings:
    """Of earlier ones, which keep them among OBS's."""
    ini = configparser.RawConfigParser(strict=False)
    # Begins with a byte order mark.
    ini.read_string((folder / "global.ini").read_text(encoding="utf-8-sig"))
    section = ini["OBSWebSocket"]
    return ObsOwnSettings(
        enabled=section.getboolean("ServerEnabled", fallback=False),
        port=section.getint("ServerPort", fallback=DEFAULT_PORT),
        password=section["ServerPassword"] if section.getboolean("AuthRequired", fallback=True) else "",
    )


def _from_file() -> str:
    path = password_file()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        # Windows has no such bits: the user's folders are private there.
        if os.name == "posix" and mode & 0o077:
            raise ConfigError(f"others may use the password file {path} (mode {mode:04o}): chmod 600 {path}")
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the password file {path}: {error}") from error


def _from_keyring() -> str:
    try:
        keyring = importlib.import_module("keyring")
        return keyring.get_password(SERVICE, USER) or ""
    except ImportError:
        return ""
    # Backends fail in ways of their own (no session bus, locked, no backend); there are other places to ask.
    except Exception as error:  # noqa: BLE001
        log.warning("the keyring could not be asked for OBS's password: %s", type(error).__name__)
        return ""
