"""What we have changed in OBS, on disk, so that it can be put back after a crash too.

Written before a change is made: whoever puts back must bear that the change never came about.
"""

import json
import os
from pathlib import Path
from typing import Any

from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.outputs import write_whole

PROFILE, SETUP = "obs-profile.json", "obs-setup.json"


class Journal:
    """A JSON object in a file that only this user can read.

    Args:
        path: of the file; its folder is made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """The object; None if there is nothing to put back.

        Raises:
            ConfigError: the file is damaged or may not be read.
        """
        try:
            entry = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(self._damaged()) from error
        if not isinstance(entry, dict):
            raise ConfigError(self._damaged())
        return entry

    def write(self, entry: dict[str, Any]) -> None:
        """Replace the object, whole or not at all.

        Raises:
            SinkError: the folder takes no files.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.path, json.dumps(entry, indent=2).encode("utf-8"))

    def clear(self) -> None:
        """There is nothing to put back any more."""
        self.path.unlink(missing_ok=True)

    def _damaged(self) -> str:
        return f"{self.path} cannot be read: put OBS in order by hand, then delete that file"


def journal(name: str) -> Journal:
    """The journal of that file name, PROFILE or SETUP, in the user's state folder."""
    import platformdirs

    return Journal(Path(platformdirs.user_state_dir("instantvision", appauthor=False)) / name)


def port_is_free(port: int) -> bool:
    """Whether nobody listens on a port of this computer: how a live run is told from one that crashed."""
    import socket

    with socket.socket() as probe:
        if os.name == "posix":
            # Connections that a crashed program left closing do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
