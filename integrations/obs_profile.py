"""OBS's program sent to a port of ours, under a profile that exists only for that time.

OBS's custom FFmpeg output can be chosen in a profile only, and a profile is read when it is switched to: so one is
made, filled, left and entered again. The user's own profile is never written to. While ours is active the Record
button of OBS is ours, and its Stream button has no service: whoever streams is captured by screenshots instead.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from instantvision.integrations.obs_journal import Journal, port_is_free
from instantvision.integrations.obs_link import ObsLink
from instantvision.pipeline.errors import InstantVisionError, ObsError, SourceError

log = logging.getLogger(__name__)

NAME = "Instant Vision capture"
# What is asked, and what OBS is doing if the answer is yes.
OUTPUTS = {
    "GetRecordStatus": "recording",
    "GetStreamStatus": "streaming",
    "GetVirtualCamStatus": "showing its virtual camera",
    "GetReplayBufferStatus": "keeping a replay buffer",
}
STARTED, STOPPED = "OBS_WEBSOCKET_OUTPUT_STARTED", "OBS_WEBSOCKET_OUTPUT_STOPPED"
# OBS needs a tenth of a second; a busy computer more.
START_S, STOP_S = 8.0, 3.0
# Time for the pictures in the making to be sent, and how often OBS's connection is emptied meanwhile.
PAUSE_S, POLL_S = 0.15, 0.05
# Enough for clean pictures at 1920x1080 and 60 Hz.
BITRATE_KBPS = "40000"

Drain = Callable[[], object]
"""Reads and forgets what OBS has sent by now: its output does not end while nobody reads."""


class StreamProfile:
    """The temporary profile and the output that runs under it.

    Args:
        link: to OBS.
        journal: where the next start finds what a crash left.
    """

    def __init__(self, link: ObsLink, journal: Journal) -> None:
        self._link, self._journal = link, journal
        self._entry: dict[str, Any] = {}

    def start(self, port: int) -> None:
        """Have OBS connect to 127.0.0.1:`port` and send its program as MJPEG.

        Raises:
            SourceError: OBS has an output of its own running, or does not start ours; everything is as it was.
        """
        busy = active_output(self._link)
        if busy:
            raise SourceError(f"OBS is {busy}, which must not be disturbed")
        previous = self._users_profile()
        self._entry = {"previous": previous, "temporary": NAME, "port": port, "started": False}
        self._journal.write(self._entry)
        try:
            self._enter(previous, port)
            self._start_output()
        except InstantVisionError as error:
            self.stop(lambda: None)
            if isinstance(error, ObsError):
                raise SourceError(f"OBS does not give us its output ({error})") from error
            raise

    def stop(self, drain: Drain) -> None:
        """End the output and put the user's profile back.

        Raises:
            InstantVisionError: OBS cannot be reached; the journal stays for the next start.
        """
        put_back(self._link, self._journal, drain)

    def _start_output(self) -> None:
        with _Output(self._link) as output:
            # Before it is so: what a crash leaves running has to be stopped.
            self._journal.write(self._entry | {"started": True})
            if not _granted(self._link, "StartRecord"):
                # Its user was faster: that recording is not ours to stop.
                self._journal.write(self._entry)
                raise SourceError("OBS has just begun to record, which must not be disturbed")
            if not output.reaches(STARTED, START_S):
                raise SourceError(f"OBS's output has not started within {START_S:g} s")

    def _users_profile(self) -> str:
        """The current one; any other if ours is still the current one though the journal is gone."""
        profiles = self._link.request("GetProfileList")
        names = [profiles["currentProfileName"], *profiles["profiles"]]
        return next((each for each in names if each != NAME), NAME)

    def _enter(self, previous: str, port: int) -> None:
        """Make the profile the current one, with its output read in."""
        values = parameters(self._link.request("GetVideoSettings"), port)
        if NAME in self._link.request("GetProfileList")["profiles"]:
            self._link.request("SetCurrentProfile", {"profileName": NAME})
        else:
            self._link.request("CreateProfile", {"profileName": NAME})
        for (category, name), value in values.items():
            self._link.request(
                "SetProfileParameter",
                {"parameterCategory": category, "parameterName": name, "parameterValue": value},
            )
        for profile in (previous, NAME):
            self._link.request("SetCurrentProfile", {"profileName": profile})


class _Output:
    """Follows OBS's record output; a context manager."""

    def __init__(self, link: ObsLink) -> None:
        self._condition, self._state = threading.Condition(), ""
        self._unsubscribe = link.on("RecordStateChanged", self._changed)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()

    def reaches(self, state: str, timeout_s: float, drain: Drain = lambda: None) -> bool:
        """Wait for a state, emptying the connection; False if it did not come in time."""
        for _ in range(round(timeout_s / POLL_S)):
            drain()
            with self._condition:
                if self._condition.wait_for(lambda: self._state == state, POLL_S):
                    return True
        return False

    def _changed(self, data: dict[str, Any]) -> None:
        with self._condition:
            self._state = data["outputState"]
            self._condition.notify_all()


def parameters(video: dict[str, Any], port: int) -> dict[tuple[str, str], str]:
    """What the profile says, by section and name: OBS's own canvas and rate, and MJPEG to a port of this computer.

    Args:
        video: the reply to GetVideoSettings.
        port: that we listen on.
    """
    output = {
        "RecType": "FFmpeg",
        "FFOutputToFile": "false",
        "FFURL": f"tcp://127.0.0.1:{port}",
        "FFFormat": "mpjpeg",
        "FFVEncoder": "mjpeg",
        "FFVBitrate": BITRATE_KBPS,
        "FFVGOPSize": "30",
        "FFAudioMixes": "0",
        "FFIgnoreCompat": "true",
    }
    canvas = {
        "BaseCX": video["baseWidth"],
        "BaseCY": video["baseHeight"],
        "OutputCX": video["outputWidth"],
        "OutputCY": video["outputHeight"],
        # 2: a fraction, which holds any rate.
        "FPSType": 2,
        "FPSNum": video["fpsNumerator"],
        "FPSDen": video["fpsDenominator"],
        # The matrix that our reader decodes by.
        "ColorSpace": 709,
    }
    values = {("Output", "Mode"): "Advanced"}
    values |= {("AdvOut", name): value for name, value in output.items()}
    return values | {("Video", name): str(value) for name, value in canvas.items()}


def active_output(link: ObsLink) -> str:
    """What OBS is doing that a change of its profile would disturb: `recording`; "" if nothing."""
    return next((doing for name, doing in OUTPUTS.items() if _is_active(link, name)), "")


def put_back_after_a_crash(link: ObsLink, journal: Journal) -> bool:
    """Undo what a run that is no more has left in OBS; False if there was nothing.

    Raises:
        SourceError: another run is capturing OBS at this moment.
        InstantVisionError: OBS cannot be reached.
    """
    entry = journal.read()
    if entry is None:
        return False
    if not port_is_free(entry["port"]):
        raise SourceError("another run is capturing OBS: end it first")
    put_back(link, journal)
    log.warning("OBS's profile %s is back: an earlier run had no time to do that", entry["previous"])
    return True


def put_back(link: ObsLink, journal: Journal, drain: Drain = lambda: None) -> None:
    """Stop the output, return to the user's profile, remove ours; whatever of that is still to do.

    Raises:
        InstantVisionError: OBS cannot be reached; the journal stays.
    """
    entry = journal.read()
    if entry is None:
        return
    profiles = link.request("GetProfileList")
    if profiles["currentProfileName"] == entry["temporary"]:
        if entry["started"]:
            _stop_output(link, drain)
        if entry["previous"] in profiles["profiles"]:
            link.request("SetCurrentProfile", {"profileName": entry["previous"]})
    if entry["temporary"] in profiles["profiles"]:
        link.request("RemoveProfile", {"profileName": entry["temporary"]})
    journal.clear()


def _stop_output(link: ObsLink, drain: Drain) -> None:
    with _Output(link) as output:
        # Stopped while it encodes a picture, OBS 29.0.2 now and then uses what it has just freed, and crashes.
        if not _granted(link, "PauseRecord"):
            return
        output.reaches(STOPPED, PAUSE_S, drain)
        # A run that crashed has left an output that notices only now that nobody reads, and stops by itself.
        if _granted(link, "StopRecord") and not output.reaches(STOPPED, STOP_S, drain):
            log.warning("OBS's output has not stopped within %g s", STOP_S)


def _granted(link: ObsLink, request: str) -> bool:
    """Ask for something; False if OBS refuses, because no output runs."""
    try:
        link.request(request)
    except ObsError as error:
        if error.code is None:
            raise
        return False
    return True


def _is_active(link: ObsLink, request: str) -> bool:
    try:
        return bool(link.request(request)["outputActive"])
    except ObsError as error:
        if error.code is None:
            raise
        # Refused: this OBS has no such output.
        return False
