"""A running program and a real OBS: its scenes switch our looks, and its death does not stop our pictures."""

# The passwords here open nothing.
# ruff: noqa: S105, S106

import logging
import queue
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from obswebsocket import requests

from instantvision.integrations.base import require_sendable
from instantvision.integrations.clock import SYSTEM_CLOCK
from instantvision.integrations.obs_client import ObsClient, connect
from instantvision.integrations.obs_controller import ObsController
from instantvision.integrations.obs_credentials import ObsSettings, find_settings
from instantvision.integrations.obs_session import WrongPassword
from instantvision.pipeline.config import LiveConfig, Mix, Settings, Size
from instantvision.pipeline.control import Control
from instantvision.pipeline.errors import ObsError
from instantvision.pipeline.frames import Frame, Origin, Pixels
from instantvision.pipeline.stages import LiveParts, run_live
from tests.obs_lab import PASSWORD, ObsLab

log = logging.getLogger(__name__)

SIZE = Size(64, 64)
# What the stand-in for the engine paints for each look.
STAMPS = {"oil": 50, "ink": 150, "neon": 250}
SCENES = {"Talk": "oil", "Break": "ink"}
# Nothing here takes that long, even beside a busy neighbour; it only keeps a broken test from hanging.
LONG_S = 60.0
# Control has to be back by then, counted from the moment OBS answers again.
BACK_S = 10.0
PACE = LiveConfig(fps=60.0, duration_s=240.0)
CAMERA_HZ = 60.0
SWITCHES = 20
# So many may take longer: a busy machine now and then halts the engine's thread while the output's goes on.
HALTS = 2


class Camera:
    """Grey pictures at CAMERA_HZ until the run stops."""

    def __init__(self, stop: threading.Event) -> None:
        self.name, self.status, self._stop, self._index = "grey", "", stop, 0

    def open(self) -> None:
        """Nothing to do."""

    def read(self, timeout_s: float) -> Frame:
        self._stop.wait(1 / CAMERA_HZ)
        self._index += 1
        now_s = SYSTEM_CLOCK.now_s()
        return Frame(
            pixels=np.full((64, 64, 3), 128, np.uint8), index=self._index, captured_s=now_s, origin=Origin.RAW
        )

    def close(self) -> None:
        """Nothing to do."""


class StampingEngine:
    """Paints the stamp of the look with the greatest share."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device_ms = settings, 1.0

    def update(self, settings: Settings) -> None:
        self.settings = settings

    def submit(self, pixels: Pixels) -> "Stamp":
        name, _ = max(self.settings.mix.parts, key=lambda part: part[1])
        return Stamp(STAMPS[name])

    def close(self) -> None:
        """Nothing to do."""


class Stamp:
    def __init__(self, value: int) -> None:
        self.device_ms, self.steps, self._value = 1.0, 1, value
        self.delay: int | None = 0

    def wait(self) -> None:
        """It is finished already."""

    def result(self) -> Pixels:
        return np.full((SIZE.height, SIZE.width, 3), self._value, np.uint8)


class CapturingSink:
    """Notes the stamp and the moment of every picture."""

    def __init__(self) -> None:
        self.name = "capturing"
        self.stamps: list[int] = []
        self.sent_s: list[float] = []
        self.origins: list[Origin] = []
        self._grown = threading.Condition()

    def open(self, size: Size, fps: float) -> None:
        """Nothing to do."""

    def send(self, frame: Frame) -> None:
        require_sendable(frame, SIZE)
        with self._grown:
            self.stamps.append(int(frame.pixels[0, 0, 0]))
            self.sent_s.append(SYSTEM_CLOCK.now_s())
            self.origins.append(frame.origin)
            self._grown.notify_all()

    def close(self) -> None:
        """Nothing to do."""

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._grown:
            assert self._grown.wait_for(condition, LONG_S)

    def first_with(self, stamp: int, since: int) -> int:
        """The index of the first picture from `since` on that has the stamp; waits for it."""
        self.wait_for(lambda: stamp in self.stamps[since:])
        return self.stamps.index(stamp, since)


class Show:
    """A running program, its controls and its output."""

    def __init__(self) -> None:
        settings = Settings(mix=Mix.parse("oil"), size=SIZE)
        self.stop, self.sink = threading.Event(), CapturingSink()
        # A cross-fade would hide the moment of the change.
        self.control = Control(settings, fade_s=0.0)
        self.errors: list[BaseException] = []
        parts = LiveParts(
            source=Camera(self.stop),
            sink=self.sink,
            make_engine=lambda: StampingEngine(settings),
            control=self.control,
            on_stats=lambda stats: None,
        )
        self._thread = threading.Thread(target=self._run, args=(parts,))

    def _run(self, parts: LiveParts) -> None:
        try:
            run_live(parts, SIZE, PACE, self.stop)
        except Exception as error:  # noqa: BLE001
            self.errors.append(error)

    def __enter__(self) -> "Show":
        self._thread.start()
        self.sink.wait_for(lambda: Origin.STYLISED in self.sink.origins)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()
        assert self.errors == []

    def measure(self, command: Callable[[], object], stamp: int) -> tuple[int, float]:
        """Do what leads to the stamp.

        Returns:
            How many pictures went out from the change of the controls to the first changed one, that one included; and
            the seconds from the command to that picture.
        """
        applied: queue.Queue[int] = queue.Queue()
        forget = self.control.subscribe(lambda state: applied.put(len(self.sink.stamps)))
        began_s = SYSTEM_CLOCK.now_s()
        command()
        at = applied.get(timeout=LONG_S)
        changed = self.sink.first_with(stamp, at)
        forget()
        return changed - at + 1, self.sink.sent_s[changed] - began_s


@pytest.fixture(scope="module")
def obs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObsLab]:
    with ObsLab(tmp_path_factory.mktemp("obs"), scenes=("Talk", "Break", "Credits")) as lab:
        yield lab


@pytest.fixture
def settings(obs: ObsLab) -> ObsSettings:
    """Of an OBS that runs and shows Talk, whatever the test before did to it."""
    if obs.password != PASSWORD:
        obs.password = PASSWORD
        obs.stop()
    obs.start()
    obs.call("SetCurrentProgramScene", sceneName="Talk")
    obs.call("SetCurrentSceneTransition", transitionName="Fade")
    return ObsSettings(port=obs.port, password=obs.password)


@pytest.fixture
def client(settings: ObsSettings) -> Iterator[ObsClient]:
    with closing(connect(settings)) as client:
        yield client


@contextmanager
def controlled(client: ObsClient) -> Iterator[Show]:
    with Show() as show, closing(ObsController(show.control, SCENES, client)) as controller:
        controller.start()
        show.sink.wait_for(lambda: controller.state.scene != "")
        yield show


def tell(title: str, latencies_s: list[float], frames: list[int]) -> None:
    p95_s = statistics.quantiles(latencies_s, n=20)[-1]
    log.info(
        "%s to first changed frame: p50 %.1f ms, p95 %.1f ms (%d times, %g fps); frames from the change: %s",
        title,
        statistics.median(latencies_s) * 1e3,
        p95_s * 1e3,
        len(latencies_s),
        PACE.fps,
        frames,
    )


def test_connect(client: ObsClient) -> None:
    assert client.status == "connected"
    assert client.request("GetVersion")["rpcVersion"] == 1
    assert {scene["sceneName"] for scene in client.request("GetSceneList")["scenes"]} == {
        "Talk",
        "Break",
        "Credits",
    }


def test_a_request_that_obs_refuses(client: ObsClient) -> None:
    with pytest.raises(ObsError, match=r"SetCurrentProgramScene: .*Nowhere.*code 600") as caught:
        client.request("SetCurrentProgramScene", sceneName="Nowhere")
    assert caught.value.code == 600


def test_a_wrong_password(settings: ObsSettings) -> None:
    with pytest.raises(WrongPassword, match="wrong password for OBS"):
        connect(replace(settings, password="other"))
    with pytest.raises(WrongPassword, match="no password for OBS"):
        connect(replace(settings, password=""))


def test_the_settings_that_obs_wrote_itself(
    obs: ObsLab, settings: ObsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(obs.home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(obs.config.parent))
    monkeypatch.delenv("INSTANTVISION_OBS_PASSWORD", raising=False)

    assert find_settings() == settings
    connect().close()


@pytest.mark.parametrize("transition", ["Cut", "Fade"])
def test_a_scene_switch_changes_the_preset_within_two_frames(
    obs: ObsLab, client: ObsClient, transition: str
) -> None:
    obs.call("SetCurrentSceneTransition", transitionName=transition)
    done: queue.Queue[object] = queue.Queue()
    # Of a transition's two ends, in picture and in sound, this is the later one.
    client.on("SceneTransitionEnded", done.put)
    with controlled(client) as show:
        measured = []
        for turn in range(SWITCHES):
            scene = ("Break", "Talk")[turn % 2]

            def switch(scene: str = scene) -> None:
                client.request("SetCurrentProgramScene", sceneName=scene)

            measured.append(show.measure(switch, STAMPS[SCENES[scene]]))
            # OBS may lose a scene that is asked for before the transition has ended.
            done.get(timeout=LONG_S)

    frames, latencies_s = [frames for frames, _ in measured], [latency for _, latency in measured]
    tell(f"scene switch by {transition}", latencies_s, frames)
    assert sorted(frames)[SWITCHES - HALTS - 1] <= 2


def test_a_custom_event_sets_the_look(obs: ObsLab, client: ObsClient) -> None:
    with controlled(client) as show, closing_library(obs) as other:
        measured = []
        for turn in range(SWITCHES):
            look = ("neon", "oil")[turn % 2]
            event = {"instantvision": {"preset": look, "strength": 0.25 + turn / 100}}
            request = requests.BroadcastCustomEvent(eventData=event)
            measured.append(show.measure(lambda request=request: other.call(request), STAMPS[look]))
            assert show.control.state.settings.strength == pytest.approx(0.25 + turn / 100)

    frames, latencies_s = [frames for frames, _ in measured], [latency for _, latency in measured]
    tell("custom event", latencies_s, frames)
    assert sorted(frames)[SWITCHES - HALTS - 1] <= 2


def test_a_third_program_follows_our_state(obs: ObsLab, client: ObsClient) -> None:
    heard: queue.Queue[dict[str, Any]] = queue.Queue()
    with closing_library(obs) as other, controlled(client) as show:
        other.register(lambda event: heard.put(event.datain) if event.name == "CustomEvent" else None)
        show.control.apply({"preset": "neon", "strength": 0.75}, by="dock")
        while (state := heard.get(timeout=LONG_S)["instantvision_state"])["preset"] != "neon":
            pass
        assert state == show.control.state.to_json()

        wrong = {"instantvision": {"strength": 7}}
        other.call(requests.BroadcastCustomEvent(eventData=wrong))
        while "instantvision_error" not in (event := heard.get(timeout=LONG_S)):
            pass
        assert "strength is 7" in event["instantvision_error"]


def test_two_clients(client: ObsClient, settings: ObsSettings) -> None:
    second = connect(settings)
    heard: queue.Queue[str] = queue.Queue()
    client.on("CustomEvent", lambda data: heard.put(f"first {data}"))
    second.on("CustomEvent", lambda data: heard.put(f"second {data}"))

    second.request("BroadcastCustomEvent", eventData={"n": 1})
    assert {heard.get(timeout=LONG_S) for _ in range(2)} == {"first {'n': 1}", "second {'n': 1}"}
    second.close()
    client.request("BroadcastCustomEvent", eventData={"n": 2})
    assert heard.get(timeout=LONG_S) == "first {'n': 2}"


def test_obs_is_killed_and_started_again_while_we_run(obs: ObsLab, client: ObsClient) -> None:
    with controlled(client) as show:
        before = len(show.sink.stamps)
        obs.kill()
        show.sink.wait_for(lambda: not client.connected and len(show.sink.stamps) > before + 30)
        with pytest.raises(ObsError):
            client.request("GetVersion")
        obs.start()
        returned_s = SYSTEM_CLOCK.now_s()
        assert client.wait_connected(BACK_S)
        log.info("control was back %.1f s after OBS answered", SYSTEM_CLOCK.now_s() - returned_s)

        obs.call("SetCurrentProgramScene", sceneName="Break")
        show.sink.first_with(STAMPS["ink"], before)
        show.sink.wait_for(lambda: show.sink.stamps[-1] == STAMPS["ink"])

    # The output went on: neither a slate, nor a raw picture, nor a gap that a watcher would call one.
    assert set(show.sink.origins[before:]) == {Origin.STYLISED}
    times_s = show.sink.sent_s[before:]
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    log.info("longest gap of the output: %.0f ms", max(gaps_s) * 1e3)
    assert max(gaps_s) < PACE.stale_s


def test_obs_ends_and_comes_back_with_another_password(obs: ObsLab, settings: ObsSettings) -> None:
    answers = [settings]
    with closing(ObsClient(settings, refresh=lambda: answers[-1])) as client:
        client.start()
        assert client.wait_connected(LONG_S)
        obs.password = "another-password"
        answers.append(replace(settings, password=obs.password))
        obs.restart()
        assert client.wait_connected(LONG_S)
        assert client.request("GetVersion")["rpcVersion"] == 1


def test_recording_is_seen(obs: ObsLab, client: ObsClient) -> None:
    with controlled(client) as show, closing(ObsController(show.control, {}, client)) as controller:
        controller.start()
        client.request("StartRecord")
        show.sink.wait_for(lambda: controller.state.recording)
        client.request("StopRecord")
        show.sink.wait_for(lambda: not controller.state.recording)
        show.sink.wait_for(lambda: controller.state.fps > 0)


@contextmanager
def closing_library(obs: ObsLab) -> Iterator[Any]:
    """A connection of the plain library."""
    other = obs.connect()
    try:
        yield other
    finally:
        other.disconnect()
