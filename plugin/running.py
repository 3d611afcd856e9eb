"""The program that runs at this moment, as seen from another process: found by its control file, asked over HTTP."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from instantvision.plugin.control_file import CONTROL_FILE, state_folder

PATIENCE_S = 2.0


def measured_latency_ms(folder: Path | None = None) -> float | None:
    """Median time from the source's picture to the sink's, of the last seconds; None if nothing runs or was measured.

    Args:
        folder: of the control file; the user's state folder if None.
    """
    latency = ((running_state(folder).get("stats") or {}).get("recent") or {}).get("latency_ms") or {}
    return float(latency["p50"]) if latency.get("count") else None


def running_state(folder: Path | None = None) -> dict[str, Any]:
    """The running program's answer to GET /api/state; empty if there is none.

    Args:
        folder: of the control file; the user's state folder if None.
    """
    try:
        control = json.loads(((folder or state_folder()) / CONTROL_FILE).read_text(encoding="utf-8"))
        address = urlsplit(control["url"])
        connection = http.client.HTTPConnection(address.hostname or "", address.port or 0, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/api/state", headers={"Authorization": f"Bearer {control['token']}"})
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == http.client.OK else {}
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        # The file of a run that crashed, or no file at all: nothing runs.
        return {}
