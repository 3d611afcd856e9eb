"""What OBS's events do to the controls, and what OBS is told; the client is a stand-in, the controls are real."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

from instantvision.integrations.obs_client import CONNECTED
from instantvision.integrations.obs_controller import ASK_AFTER_S, ObsController
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.control import Control, Show
from instantvision.pipeline.errors import ConfigError, ObsError, UnknownPreset

# Nothing here takes that long; it only keeps a broken test from hanging.
LONG_S = 20.0


class FakeClient:
    """An OBS of a few facts; what is broadcast lands in `broadcasts`."""

    def __init__(self) -> None:
        self.connected, self.status, self.scene = True, "connected", "Talk"
        self.streaming = self.recording = False
        self.broadcasts: queue.Queue[dict[str, Any]] = queue.Queue()
        self.before_request: Callable[[str], None] = lambda name: None
        self._listeners: dict[str, list[Callable[[dict[str, Any]], None]]] = {}

    def request(self, name: str, data: Mapping[str, Any] | None = None, /, **fields: Any) -> dict[str, Any]:
        self.before_request(name)
        if not self.connected:
            raise ObsError("nothing listens")
        if name == "BroadcastCustomEvent":
            self.broadcasts.put(fields["eventData"])
            return {}
        return {
            "GetCurrentProgramScene": {"currentProgramSceneName": self.scene},
            "GetStreamStatus": {"outputActive": self.streaming},
            "GetRecordStatus": {"outputActive": self.recording},
            "GetStats": {"activeFps": 59.987, "renderSkippedFrames": 3, "outputSkippedFrames": 4},
        }[name]

    def on(self, event: str, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        self._listeners.setdefault(event, []).append(listener)
        return lambda: self._listeners[event].remove(listener)

    def fire(self, event: str, **data: Any) -> None:
        for listener in list(self._listeners.get(event, ())):
            listener(data)

    def next_broadcast(self, key: str) -> Any:
        while True:
            event = self.broadcasts.get(timeout=LONG_S)
            if key in event:
                return event[key]

    def switch(self, scene: str) -> None:
        """As OBS does without a transition."""
        self.scene = scene
        self.fire("CurrentProgramSceneChanged", sceneName=scene, sceneUuid="")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def control() -> Control:
    return Control(Settings(mix=Mix.parse("oil"), size=Size(64, 64), strength=0.5))


@pytest.fixture
def controller(client: FakeClient, control: Control) -> Iterator[ObsController]:
    """Started, and acquainted with its OBS, which shows the scene Talk."""
    scenes = {
        "Break": "ink",
        "Night": {"preset": "neon", "strength": 0.9, "fade_s": 2},
        "Face": {"show": "camera", "consent": True},
    }
    with closing(ObsController(control, scenes, client)) as controller:
        controller.start()
        client.next_broadcast("instantvision_state")
        yield controller


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert {thread for thread in threading.enumerate() if thread.is_alive()} - before == set()


def test_a_scene_brings_its_preset(client: FakeClient, control: Control, controller: ObsController) -> None:
    client.switch("Break")

    assert str(control.state.settings.mix) == "ink"
    assert control.state.changed_by == "obs"


def test_a_scene_brings_a_change(client: FakeClient, control: Control, controller: ObsController) -> None:
    client.switch("Night")

    state = control.state
    assert (str(state.settings.mix), state.settings.strength, state.fade_s) == ("neon", 0.9, 2)


def test_a_scene_without_a_look_changes_nothing(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    before = control.state

    client.switch("Credits")

    assert control.state == before
    assert controller.state.scene == "Credits"


def test_the_beginning_of_a_transition_is_enough(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    client.scene = "Break"
    client.fire("SceneTransitionStarted", transitionName="Fade")
    assert str(control.state.settings.mix) == "ink"

    control.apply({"preset": "oil"}, by="dock")
    # Its end says the same once more, and does not undo what the user has chosen since.
    client.fire("CurrentProgramSceneChanged", sceneName="Break")
    assert str(control.state.settings.mix) == "oil"


def test_an_obs_that_has_not_yet_noticed_its_own_transition_is_asked_again(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    asked: list[str] = []

    def before_request(name: str) -> None:
        asked.append(name)
        if asked.count("GetCurrentProgramScene") == 2:
            client.scene = "Break"

    client.before_request = before_request
    client.fire("SceneTransitionStarted", transitionName="Fade")
    assert str(control.state.settings.mix) == "ink"
    assert asked.count("GetCurrentProgramScene") == 2

    # A transition from a scene to itself is no reason to ask for ever.
    asked.clear()
    client.fire("SceneTransitionStarted", transitionName="Fade")
    assert asked.count("GetCurrentProgramScene") == len(ASK_AFTER_S)


def test_the_scene_of_the_first_connection_counts(client: FakeClient, control: Control) -> None:
    client.scene = "Break"
    with closing(ObsController(control, {"Break": "ink"}, client)) as controller:
        controller.start()
        assert client.next_broadcast("instantvision_state")["preset"] == "ink"


def test_obs_is_reached_later(client: FakeClient, control: Control) -> None:
    client.connected = False
    with closing(ObsController(control, {"Break": "ink"}, client)) as controller:
        controller.start()
        assert not controller.state.connected
        client.connected, client.scene, client.streaming = True, "Break", True
        client.fire(CONNECTED)
        assert str(control.state.settings.mix) == "ink"
        assert controller.state.streaming
        assert client.next_broadcast("instantvision_state")["preset"] == "ink"


def test_a_connection_that_comes_back_leaves_the_look(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    client.switch("Break")
    control.apply({"preset": "oil"}, by="dock")

    client.fire(CONNECTED)
    assert str(control.state.settings.mix) == "oil"

    client.scene = "Night"
    client.fire(CONNECTED)
    assert str(control.state.settings.mix) == "neon"


def test_a_scene_switch_does_not_end_a_panic(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    control.apply({"panic": True}, by="cli")

    client.switch("Break")

    assert control.state.show is Show.SLATE


def test_the_camera_needs_consent(client: FakeClient, control: Control, controller: ObsController) -> None:
    client.fire("CustomEvent", instantvision={"show": "camera"})
    assert control.state.show is Show.EFFECT
    assert "consent" in client.next_broadcast("instantvision_error")

    client.fire("CustomEvent", instantvision={"show": "camera", "consent": True})
    assert control.state.show is Show.CAMERA


def test_a_scene_may_show_the_camera_if_its_user_wrote_so(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    client.switch("Face")
    assert control.state.show is Show.CAMERA

    with pytest.raises(ConfigError, match=r"scene 'Face': .* consent"):
        ObsController(control, {"Face": {"show": "camera"}}, client)


def test_a_custom_event_changes_what_it_says(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    client.fire("CustomEvent", instantvision={"strength": 0.25, "preset": "oil:0.5,ink:0.5"})

    assert control.state.settings.strength == 0.25
    assert client.next_broadcast("instantvision_state")["strength"] == 0.25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preset": "oli"}, "did you mean oil?"),
        ({"strength": 2}, "strength is 2"),
        ({"volume": 1}, "volume"),
        ("oil", "the change is a str"),
        (None, "the change is a NoneType"),
    ],
)
def test_a_refused_change_is_told(
    client: FakeClient, control: Control, controller: ObsController, change: object, words: str
) -> None:
    before = control.state

    client.fire("CustomEvent", instantvision=change)

    error = client.next_broadcast("instantvision_error")
    assert words in error
    assert "\n" not in error
    assert control.state == before


def test_other_events_and_our_own_are_left_alone(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    before = control.state

    client.fire("CustomEvent", instantvision_state=before.to_json())
    client.fire("CustomEvent", instantvision_error="strength is 2")
    client.fire("CustomEvent", another_program={"preset": "ink"})

    assert control.state == before
    assert client.broadcasts.empty()


def test_every_change_is_told_whoever_made_it(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    control.apply({"preset": "ink"}, by="dock")

    told = client.next_broadcast("instantvision_state")
    assert told == control.state.to_json()
    assert told["changed_by"] == "dock"


def test_whoever_changes_something_does_not_wait_for_obs(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    freed = threading.Event()
    client.before_request = lambda name: freed.wait(LONG_S) and None

    # Would hang here: OBS answers only afterwards.
    control.apply({"preset": "ink"}, by="dock")
    control.apply({"preset": "neon"}, by="dock")
    freed.set()

    while client.next_broadcast("instantvision_state")["preset"] != "neon":
        pass


def test_obs_is_away_when_something_changes(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    client.connected = False
    control.apply({"preset": "ink"}, by="dock")
    client.connected = True
    client.fire(CONNECTED)

    assert client.next_broadcast("instantvision_state")["preset"] == "ink"


def test_the_state_of_obs(client: FakeClient, controller: ObsController) -> None:
    client.fire("StreamStateChanged", outputActive=True, outputState="OBS_WEBSOCKET_OUTPUT_STARTED")
    client.fire("RecordStateChanged", outputActive=True, outputState="OBS_WEBSOCKET_OUTPUT_STARTED")
    client.fire("StreamStateChanged", outputActive=False, outputState="OBS_WEBSOCKET_OUTPUT_STOPPED")
    # The figures come with the greeting, which the fixture has seen begin.
    client.fire(CONNECTED)
    client.recording = True

    assert controller.state.to_json() == {
        "connected": True,
        "status": "connected",
        "scene": "Talk",
        "streaming": False,
        "recording": False,
        "fps": 59.99,
        "render_skipped": 3,
        "output_skipped": 4,
    }


def test_the_state_of_an_obs_that_is_gone(client: FakeClient, controller: ObsController) -> None:
    client.connected, client.status = False, "nothing listens on 127.0.0.1:4455"

    assert not controller.state.connected
    assert controller.state.status == "nothing listens on 127.0.0.1:4455"
    assert controller.state.scene == "Talk"


def test_a_closed_controller_does_nothing(
    client: FakeClient, control: Control, controller: ObsController
) -> None:
    controller.close()
    controller.close()
    control.apply({"preset": "neon"}, by="dock")
    client.switch("Break")

    assert str(control.state.settings.mix) == "neon"
    assert client.broadcasts.empty()


def test_a_scene_map_is_checked_before_the_show(client: FakeClient, control: Control) -> None:
    with pytest.raises(UnknownPreset, match=r"scene 'Break': .* did you mean oil"):
        ObsController(control, {"Break": "oli"}, client)
    with pytest.raises(ConfigError, match=r"scene 'Break': the change is a int"):
        ObsController(control, {"Break": 3}, client)
