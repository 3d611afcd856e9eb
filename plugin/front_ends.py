"""What changes a running program from outside: the control server with its dock, and OBS.

Started around a run and closed with it. A front end that cannot start is a warning, not the end of the show.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from instantvision.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from instantvision.pipeline.control import Control
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


@contextmanager
def open_front_ends(
    wanted: FrontEnds, control: "Control", preview: "Preview", announce: Callable[[str], None]
) -> Iterator[Callable[["LiveStats"], None]]:
    """Start what is wanted; closed at the end of the block.

    Args:
        wanted: which.
        control: of the run.
        preview: of the run.
        announce: told the dock's address, for the user, once the run is under way.

    Yields:
        What to tell the figures of the run to.

    Raises:
        ConfigError: a scene's preset is malformed or unknown.
    """
    with ExitStack() as stack:
        if wanted.obs or wanted.scenes:
            _follow_obs(wanted.scenes, control, stack)
        if wanted.port is None:
            yield lambda _stats: None
        else:
            yield _serve(wanted.port, control, preview, stack, announce)


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
    port: int, control: "Control", preview: "Preview", stack: ExitStack, announce: Callable[[str], None]
) -> Callable[["LiveStats"], None]:
    from instantvision.plugin.control_file import ControlFile, read_token, state_folder
    from instantvision.plugin.server import ControlServer

    try:
        folder = state_folder()
        token = read_token(folder)
        server = ControlServer(control, preview, port=port, token=token)
        server.start()
        stack.callback(server.close)
        stack.enter_context(ControlFile(folder, url=server.url, token=token, port=server.port))
    except ConfigError as error:
        # Another run may hold the port, or the home be read-only: the camera matters more than its controls.
        log.warning("no dock: %s", error)
        return lambda _stats: None
    untold = [server.url]

    def tell(stats: "LiveStats") -> None:
        # With the first figures: a run that cannot start says why and nothing else.
        if untold:
            announce(untold.pop())
        server.offer_stats(stats)

    return tell


def _follow_obs(scenes: Mapping[str, str], control: "Control", stack: ExitStack) -> None:
    from instantvision.integrations.obs_client import ObsClient
    from instantvision.integrations.obs_controller import ObsController
    from instantvision.integrations.obs_credentials import find_settings

    client = ObsClient(find_settings(), refresh=find_settings)
    controller = ObsController(control, scenes, client)
    stack.callback(client.close)
    stack.callback(controller.close)
    controller.start()
    client.start()
