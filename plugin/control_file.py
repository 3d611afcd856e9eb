"""What the running program leaves in the user's state folder: its token, and where it is to be found.

`control-token` stays, so that the dock's address survives a restart; `control.json` is there while the program runs,
for the OBS script and other commands. Both are readable by their owner alone. Knows nothing of HTTP.
"""

import json
import os
import re
import secrets
import stat
from pathlib import Path

from instantvision.pipeline.errors import ConfigError

TOKEN_FILE = "control-token"  # noqa: S105 - a file's name
CONTROL_FILE = "control.json"
TOKEN_BYTES = 32
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def state_folder() -> Path:
    """The user's folder for both files; made if it is missing.

    Raises:
        ConfigError: it cannot be made.
    """
    import platformdirs

    folder = Path(platformdirs.user_state_dir("instantvision", appauthor=False))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}: check its owner") from error
    return folder


def read_token(folder: Path) -> str:
    """The token of this user; a new one the first time, or if others could have read the old one.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    path = folder / TOKEN_FILE
    try:
        if path.exists() and not _is_open_to_others(path):
            token = path.read_text(encoding="ascii", errors="replace").strip()
            if TOKEN.fullmatch(token):
                return token
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}: check its owner") from error
    token = secrets.token_urlsafe(TOKEN_BYTES)
    _write_private(path, token)
    return token


class ControlFile:
    """`control.json` while a program runs; a context manager.

    Args:
        folder: as state_folder.
        url: of the dock, with the token in its fragment.
        token: for the header `Authorization: Bearer`.
        port: of the control server.
    """

    def __init__(self, folder: Path, *, url: str, token: str, port: int) -> None:
        self._path = folder / CONTROL_FILE
        self._text = json.dumps({"url": url, "token": token, "pid": os.getpid(), "port": port})

    def __enter__(self) -> "ControlFile":
        _write_private(self._path, self._text)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # A program that was started later has put its own in place: that one stays.
            if self._path.read_text(encoding="utf-8") == self._text:
                self._path.unlink()
        except FileNotFoundError:
            return


def _is_open_to_others(path: Path) -> bool:
    # Windows has no such bits: there the user's profile is closed to others.
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def _write_private(path: Path, text: str) -> None:
    """Write a file that is whole from the moment it has its name, and never readable by others."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}: check the folder's owner") from error
    finally:
        partial.unlink(missing_ok=True)
