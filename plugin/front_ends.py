"""What changes a running program from outside: the control server with its dock, OBS, and keys at the terminal.

Started around a run and closed with it. A front end that cannot start is a warning, not the end of the show.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from instantvision.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from instantvision.integrations.obs_controller import ObsController, ObsState
    from instantvision.pipeline.control import Control, ControlState
    from instantvision.pipeline.meter import LiveStats
    from instantvision.pipeline.preview import Preview

log = logging.getLogger(__name__)

DEFAULT_PORT = 8765


@dataclass(frozen=True, kw_only=True)
class FrontEnds:
    """Which front ends a run has.

    Args:
        port: of the control server and its dock; 0 takes a free one, None does without.
        obs: follow OBS Studio through its websocket.
        scenes: what a scene of OBS brings: a preset or mix by scene name.
    """

    port: int | None = DEFAULT_PORT
    obs: bool = False
    scenes: Mapping[str, str] = field(default_factory=dict)


class Board(Protocol):
    """Where the user reads how the run is doing; plugin.status_line.StatusLine is one."""

    def say(self, subject: str, words: str) -> None:
        """Say this of a subject from now on, "" for nothing; from any thread."""

    def tell(self, words: str) -> None:
        """Write a line that stays; from any thread."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What front ends are given of a run.

    Args:
        control: what the user wants.
        preview: pictures for the dock.
        stop: ends the run.
    """

    control: "Control"
    preview: "Preview"
    stop: threading.Event


@contextmanager
def open_front_ends(wanted: FrontEnds, run: Run, board: Board) -> Iterator[Callable[["LiveStats"], None]]:
    """Start what is wanted, and keys where there is a terminal; closed at the end of the block.

    Args:
        wanted: which.
        run: of this program.
        board: told what is on air, how OBS does, what the keys are, and the dock's address once the run is under way.

    Yields:
        What to tell the figures of the run to.

    Raises:
        ConfigError: a scene's preset is malformed or unknown.
    """
    from instantvision.plugin.keys import open_keys
    from instantvision.plugin.status_line import KEYS, OBS, ON_AIR

    with ExitStack() as stack:
        obs = _follow_obs(wanted.scenes, run.control, stack) if wanted.obs or wanted.scenes else None
        offer = _no_offer if wanted.port is None else _serve(wanted.port, run, obs, stack, board)
        stack.callback(run.control.subscribe(lambda state: board.say(ON_AIR, on_air(state))))
        stack.enter_context(open_keys(run.control, run.stop, lambda words: board.say(KEYS, words)))

        def tell(stats: "LiveStats") -> None:
            if obs is not None:
                board.say(OBS, obs_words(obs.state))
            offer(stats)

        yield tell


def _no_offer(_stats: "LiveStats") -> None:
    """Nobody to offer the figures to."""


def on_air(state: "ControlState") -> str:
    """What viewers get instead of the effect, in words; "" if they get the effect."""
    return {
        "effect": "",
        "slate": "THE SLATE IS ON AIR",
        "freeze": "THE PICTURE IS FROZEN",
        "last-look": "THE LAST LOOK STAYS",
        "camera": "THE REAL CAMERA IS ON AIR",
    }[state.show.value]


def obs_words(state: "ObsState") -> str:
    """How OBS does, in words."""
    if not state.connected:
        return f"OBS: {state.status}"
    doing = [word for word in ("streaming", "recording") if getattr(state, word)]
    return ", ".join([f"OBS: {state.scene}" if state.scene else "OBS: connected", *doing])


def parse_scenes(pairs: list[str]) -> dict[str, str]:
    """Read `SCENE=PRESET` pairs.

    Raises:
        ConfigError: one is not of that form, or names a scene twice.
    """
    scenes: dict[str, str] = {}
    for pair in pairs:
        scene, _, preset = pair.rpartition("=")
        if not scene or not preset:
            raise ConfigError(f"scene is {pair!r}, expected SCENE=PRESET, as in --scene 'Just chatting=oil'")
        if scene in scenes:
            raise ConfigError(f"scene {scene!r} is given twice: give it one preset or mix")
        scenes[scene] = preset
    return scenes


def _serve(
    port: int, run: Run, obs: "ObsController | None", stack: ExitStack, board: Board
) -> Callable[["LiveStats"], None]:
    from instantvision.plugin.control_file import ControlFile, read_token, state_folder
    from instantvision.plugin.server import ControlServer

    try:
        folder = state_folder()
        token = read_token(folder)
        server = ControlServer(run.control, run.preview, port=port, token=token, obs=lambda: _obs_json(obs))
        server.start()
        stack.callback(server.close)
        stack.enter_context(ControlFile(folder, url=server.url, token=token, port=server.port))
    except ConfigError as error:
        # Another run may hold the port, or the home be read-only: the camera matters more than its controls.
        log.warning("no dock: %s", error)
        return _no_offer
    untold = [server.url]

    def tell(stats: "LiveStats") -> None:
        # With the first figures: a run that cannot start says why and nothing else.
        if untold:
            board.tell(f"controls: {untold.pop()}")
        server.offer_stats(stats)

    return tell


def _obs_json(obs: "ObsController | None") -> dict[str, Any] | None:
    return None if obs is None else obs.state.to_json()


def _follow_obs(scenes: Mapping[str, str], control: "Control", stack: ExitStack) -> "ObsController":
    from instantvision.integrations.obs_client import ObsClient
    from instantvision.integrations.obs_controller import ObsController
    from instantvision.integrations.obs_credentials import find_settings

    client = ObsClient(find_settings(), refresh=find_settings)
    controller = ObsController(control, scenes, client)
    stack.callback(client.close)
    stack.callback(controller.close)
    controller.start()
    client.start()
    return controller
