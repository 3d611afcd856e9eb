"""OBS at the controls: a scene brings its look, a custom event any change; our state goes back the same way.

What OBS and whoever is connected to it may send, by BroadcastCustomEvent of obs-websocket:

    {"instantvision": {"preset": "oil", "strength": 0.7}}        any change that Control.apply takes
    {"instantvision": {"panic": true}}

What we broadcast:

    {"instantvision_state": {...}}      after each change, and when the connection is made; ControlState.to_json()
    {"instantvision_error": "..."}      why a change was refused, in one line

Knows nothing of pictures.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from instantvision.integrations.obs_client import CONNECTED
from instantvision.pipeline.control import Control, ControlState, read_change
from instantvision.pipeline.errors import ConfigError, InstantVisionError, ObsError
from instantvision.pipeline.frames import Closed, Latest

log = logging.getLogger(__name__)

CHANGE, STATE, ERROR = "instantvision", "instantvision_state", "instantvision_error"
BY = "obs"
# Often enough to see OBS begin to skip pictures, rarely enough not to be the cause.
STATISTICS_S = 2.0
JOIN_S = 2.0
# At the beginning of a transition, OBS may answer for some milliseconds with the scene before: then it is asked again.
ASK_AFTER_S = (0.0, 0.005, 0.02)


class Client(Protocol):
    """What is needed of ObsClient."""

    @property
    def status(self) -> str:
        """`connected`, or why not."""

    @property
    def connected(self) -> bool:
        """Whether requests reach OBS."""

    def request(self, name: str, data: Mapping[str, Any] | None = None, /, **fields: Any) -> dict[str, Any]:
        """Send a request; raises ObsError."""

    def on(self, event: str, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Call a listener with the data of each such event; returns what ends that."""


@dataclass(frozen=True, kw_only=True)
class ObsState:
    """What OBS is doing; all but the first two as of the last time it was connected.

    Args:
        connected: whether it can be reached.
        status: `connected`, or in one line why not.
        scene: the one on air, "" before the first connection.
        streaming, recording: whether it is.
        fps: of its canvas, as measured by OBS.
        render_skipped: pictures it left out because drawing was too slow, since it was started.
        output_skipped: pictures it left out because encoding was too slow, since the stream or recording began.
    """

    connected: bool = False
    status: str = ""
    scene: str = ""
    streaming: bool = False
    recording: bool = False
    fps: float = 0.0
    render_skipped: int = 0
    output_skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """The state as plain values."""
        return asdict(self)


class ObsController:
    """Ties a Control to an OBS.

    Args:
        control: is changed, and followed.
        scenes: what a scene brings: a mix of presets (`oil`, `oil:0.7,ink:0.3`) or a change for Control.apply; the
            scenes it does not name change nothing.
        client: started and closed by the caller.

    Raises:
        ConfigError: a scene's value is of neither kind, or would be refused by Control.apply.
        UnknownPreset: a scene names a preset that does not exist.
    """

    def __init__(
        self, control: Control, scenes: Mapping[str, str | Mapping[str, object]], client: Client
    ) -> None:
        self._control, self._client = control, client
        self._changes = {scene: _as_change(scene, value) for scene, value in scenes.items()}
        self._news: Latest[ControlState] = Latest()
        self._seen = ObsState()
        self._lock = threading.Lock()
        self._endings: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @property
    def state(self) -> ObsState:
        """What OBS is doing, as far as is known."""
        return replace(self._seen, connected=self._client.connected, status=self._client.status)

    def start(self) -> None:
        """Follow OBS from now on; returns at once."""
        listeners: dict[str, Callable[[dict[str, Any]], None]] = {
            CONNECTED: lambda _: self._meet(),
            # Comes with the first picture of the transition, but names no scene.
            "SceneTransitionStarted": lambda _: self._follow(self._ask_next_scene()),
            # Comes with the last one; at once where there is no transition.
            "CurrentProgramSceneChanged": lambda event: self._follow(event["sceneName"]),
            "CustomEvent": self._take_custom,
            "StreamStateChanged": lambda event: self._note(streaming=event["outputActive"]),
            "RecordStateChanged": lambda event: self._note(recording=event["outputActive"]),
        }
        self._endings = [self._client.on(event, listener) for event, listener in listeners.items()]
        self._endings.append(self._control.subscribe(self._news.put))
        self._thread = threading.Thread(target=self._report, name="obs-controller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no longer; may be called twice."""
        for end in self._endings:
            end()
        self._endings = []
        self._closed.set()
        self._news.close()
        if self._thread:
            self._thread.join(JOIN_S)

    def _report(self) -> None:
        """Tell the newest state, in a thread of its own: whoever changed it must not wait for OBS."""
        if self._client.connected:
            self._attempt(self._meet)
        while True:
            try:
                state = self._news.take(STATISTICS_S)
            except Closed:
                return
            if state is not None:
                self._attempt(lambda: self._broadcast(STATE, self._control.state.to_json()))
            elif self._client.connected:
                self._attempt(self._count)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ObsError as error:
            # The client tells its user; what was missed comes with the next connection.
            log.debug("%s", error)

    def _meet(self) -> None:
        """Catch up with an OBS that has just been reached."""
        self._note(
            streaming=self._client.request("GetStreamStatus")["outputActive"],
            recording=self._client.request("GetRecordStatus")["outputActive"],
        )
        self._follow(self._ask_scene())
        self._news.put(self._control.state)
        self._count()

    def _count(self) -> None:
        figures = self._client.request("GetStats")
        self._note(
            fps=round(figures["activeFps"], 2),
            render_skipped=figures["renderSkippedFrames"],
            output_skipped=figures["outputSkippedFrames"],
        )

    def _ask_scene(self) -> str:
        return str(self._client.request("GetCurrentProgramScene")["currentProgramSceneName"])

    def _ask_next_scene(self) -> str:
        scene = self._seen.scene
        for wait_s in ASK_AFTER_S:
            if scene != self._seen.scene or self._closed.wait(wait_s):
                break
            scene = self._ask_scene()
        return scene

    def _follow(self, scene: str) -> None:
        """Once a scene: what the user changes by hand while it is on air stays, even if the connection is lost."""
        with self._lock:
            known, self._seen = self._seen.scene, replace(self._seen, scene=scene)
        if scene != known and scene in self._changes:
            self._apply(self._changes[scene])

    def _take_custom(self, event: Mapping[str, Any]) -> None:
        # Our own broadcasts come back as well, under other keys.
        if CHANGE in event:
            self._apply(event[CHANGE])

    def _apply(self, change: Mapping[str, object]) -> None:
        try:
            self._control.apply(change, by=BY)
        except InstantVisionError as error:
            log.warning("OBS asked for what cannot be done: %s", error)
            self._broadcast(ERROR, str(error))

    def _broadcast(self, key: str, value: object) -> None:
        self._client.request("BroadcastCustomEvent", eventData={key: value})

    def _note(self, **facts: Any) -> None:
        with self._lock:
            self._seen = replace(self._seen, **facts)


def _as_change(scene: str, value: str | Mapping[str, object]) -> Mapping[str, object]:
    change = {"preset": value} if isinstance(value, str) else value
    # Found out now, and not in the middle of a show.
    try:
        read_change(change)
    except ConfigError as error:
        raise type(error)(f"scene {scene!r}: {error}") from error
    return change
