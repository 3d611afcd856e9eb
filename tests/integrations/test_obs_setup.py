import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from instantvision.integrations import devices, obs_client, obs_journal
from instantvision.integrations.devices import Device
from instantvision.integrations.mjpeg_server import MjpegSink
from instantvision.integrations.obs_client import ObsClient, connect
from instantvision.integrations.obs_credentials import ObsSettings
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_setup import NAME, Wanted, own_camera, set_up, status, undo
from instantvision.integrations.obs_source import ObsSource
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import ConfigError, ObsError
from instantvision.pipeline.frames import Frame
from instantvision.plugin.obs_commands import app
from instantvision.plugin.running import measured_latency_ms
from tests.integrations.fake_obs import FakeObs
from tests.obs_lab import ObsLab

GREEN = (40, 200, 40)
PATIENCE_S = 20.0


@pytest.fixture
def obs() -> FakeObs:
    return FakeObs()


@pytest.fixture
def changes(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "obs-setup.json")


def test_set_up_twice_then_undo_leaves_the_collection_as_it_was(obs: FakeObs, changes: Journal) -> None:
    before = obs.collection()
    wanted = Wanted(scene="Break", audio="Mic", latency_ms=180.4)
    first = set_up(obs, changes, wanted)
    assert first.scenes == ("Break",)
    assert first.offsets_ms == {"Mic": 180}
    assert first.shows == "http://127.0.0.1:8766/v.mjpg"
    made = obs.collection()
    assert set_up(obs, changes, wanted) == first
    assert obs.collection() == made
    assert undo(obs, changes)
    assert obs.collection() == before
    assert undo(obs, changes) == ()


def test_the_scene_on_air_is_the_default_and_others_can_be_added(obs: FakeObs, changes: Journal) -> None:
    before = obs.collection()
    assert set_up(obs, changes, Wanted()).scenes == ("Talk",)
    assert set_up(obs, changes, Wanted(scene="Break")).scenes == ("Talk", "Break")
    undo(obs, changes)
    assert obs.collection() == before


def test_another_latency_keeps_the_first_old_value(obs: FakeObs, changes: Journal) -> None:
    set_up(obs, changes, Wanted(audio="Mic", latency_ms=100))
    assert set_up(obs, changes, Wanted(audio="Mic", latency_ms=250)).offsets_ms == {"Mic": 250}
    undo(obs, changes)
    assert obs.inputs["Mic"]["offset"] == 20


def test_what_the_user_has_changed_since_stays(obs: FakeObs, changes: Journal) -> None:
    set_up(obs, changes, Wanted(audio="Mic", latency_ms=100))
    obs.inputs["Mic"]["offset"] = 70
    obs.request("RemoveInput", {"inputName": NAME})
    told = undo(obs, changes)
    assert told == ("sync offset of 'Mic' has been changed since and stays",)
    assert obs.inputs["Mic"]["offset"] == 70


def test_an_audio_source_that_is_gone_is_no_error(obs: FakeObs, changes: Journal) -> None:
    set_up(obs, changes, Wanted(audio="Mic", latency_ms=100))
    obs.request("RemoveInput", {"inputName": "Mic"})
    assert "gone" in undo(obs, changes)[0]
    assert obs.inputs == {}


def test_a_source_that_was_there_before_us_gets_its_settings_back(obs: FakeObs, changes: Journal) -> None:
    obs.inputs[NAME] = {
        "kind": "ffmpeg_source",
        "settings": {"input": "mine", "hw_decode": True},
        "offset": 0,
    }
    obs.scenes["Talk"].append((5, NAME))
    before = obs.collection()
    set_up(obs, changes, Wanted(scene="Break"))
    set_up(obs, changes, Wanted(port=9999))
    assert obs.inputs[NAME]["settings"]["input"] == "http://127.0.0.1:9999/v.mjpg"
    undo(obs, changes)
    assert obs.collection() == before


def test_a_source_of_another_kind_is_not_touched(obs: FakeObs, changes: Journal) -> None:
    obs.inputs[NAME] = {"kind": "color_source", "settings": {}, "offset": 0}
    with pytest.raises(ConfigError, match="is a color_source, expected ffmpeg_source"):
        set_up(obs, changes, Wanted())
    assert changes.read() is None


@pytest.mark.parametrize(
    "moment", ["CreateInput", "SetSceneItemTransform", "GetInputAudioSyncOffset", "SetInputAudioSyncOffset"]
)
def test_a_crash_at_any_moment_can_be_undone(obs: FakeObs, changes: Journal, moment: str) -> None:
    before = obs.collection()

    def crash(name: str) -> None:
        obs.gone = name == moment

    obs.after = crash
    with pytest.raises(ObsError):
        set_up(obs, changes, Wanted(audio="Mic", latency_ms=100))
    obs.gone, obs.after = False, lambda name: None
    undo(obs, changes)
    assert obs.collection() == before


def test_a_virtual_camera_is_shown_where_there_is_one(
    obs: FakeObs, changes: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Device(name="Instant_Vision", path="/dev/video10", index=10, driver="v4l2 loopback")
    others = Device(name="OBS Virtual Camera", path="/dev/video11", index=11, driver="v4l2 loopback")
    monkeypatch.setattr(devices, "list_virtual_cameras", lambda: (others, ours))
    found = set_up(obs, changes, Wanted(camera=own_camera()))
    assert (found.input_kind, found.shows) == ("v4l2_input", "/dev/video10")
    monkeypatch.setattr(devices, "list_virtual_cameras", lambda: (others,))
    assert own_camera() is None


def test_what_does_not_exist_is_named_with_what_does(obs: FakeObs, changes: Journal) -> None:
    obs.inputs["Logo"] = {"kind": "image_source", "settings": {}, "offset": 0}
    with pytest.raises(ConfigError, match="no scene 'Stage', there is Talk, Break"):
        set_up(obs, changes, Wanted(scene="Stage"))
    with pytest.raises(ConfigError, match="no audio source 'Logo', there is Mic: "):
        set_up(obs, changes, Wanted(audio="Logo", latency_ms=1))
    assert changes.read() is None


@pytest.mark.parametrize("latency_ms", [-951, 20001, float("nan"), None])
def test_a_latency_that_obs_does_not_take_is_refused(latency_ms: float | None) -> None:
    with pytest.raises(ConfigError, match="--latency-ms"):
        Wanted(audio="Mic", latency_ms=latency_ms)


class Running(BaseHTTPRequestHandler):
    """A running program's answer to GET /api/state."""

    def do_GET(self) -> None:
        good = self.path == "/api/state" and self.headers["Authorization"] == "Bearer secret"
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(
            json.dumps({"stats": {"recent": {"latency_ms": {"count": 9, "p50": 84.5}}}}).encode()
        )

    # The parameter's name is the base class's.
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nothing."""


def test_the_latency_is_asked_of_the_running_program(tmp_path: Path) -> None:
    assert measured_latency_ms(tmp_path) is None
    server = HTTPServer(("127.0.0.1", 0), Running)
    url = f"http://127.0.0.1:{server.server_address[1]}/#token=secret"
    threading.Thread(target=server.serve_forever).start()
    try:
        (tmp_path / "control.json").write_text(json.dumps({"url": url, "token": "secret"}))
        assert measured_latency_ms(tmp_path) == 84.5
        (tmp_path / "control.json").write_text(json.dumps({"url": url, "token": "wrong"}))
        assert measured_latency_ms(tmp_path) is None
    finally:
        server.shutdown()
        server.server_close()
    assert measured_latency_ms(tmp_path) is None


@pytest.fixture
def command(obs: FakeObs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`instantvision obs ...` on the OBS in memory: its standard output."""
    monkeypatch.setattr(obs_client, "connect", lambda: obs)
    monkeypatch.setattr(obs_journal, "journal", lambda name: Journal(tmp_path / name))
    monkeypatch.setattr(devices, "list_virtual_cameras", lambda: ())

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0
        assert obs.closed
        return done.stdout

    return run


def test_the_commands_set_up_show_and_undo(command: Callable[..., str], obs: FakeObs) -> None:
    before = obs.collection()
    assert "obs setup" in command("status")
    assert "in Break" in command("setup", "--scene", "Break", "--audio", "Mic", "--latency-ms", "90")
    shown = json.loads(command("status", "--json"))
    assert shown["offsets_ms"] == {"Mic": 90}
    assert shown == json.loads(
        command("setup", "--json", "--scene", "Break", "--audio", "Mic", "--latency-ms", "90")
    )
    assert len(json.loads(command("undo", "--json"))["done"]) == 2
    assert command("undo") == "nothing to undo\n"
    assert obs.collection() == before


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObsLab]:
    with ObsLab(tmp_path_factory.mktemp("obs"), scenes=("Talk", "Break")) as lab:
        made = {
            "sceneName": "Talk",
            "inputName": "Mic",
            "inputKind": "pulse_input_capture",
            "inputSettings": {},
        }
        lab.call("CreateInput", **made)
        lab.call("SetInputAudioSyncOffset", inputName="Mic", inputAudioSyncOffset=35)
        yield lab


@pytest.fixture
def link(lab: ObsLab) -> Iterator[ObsClient]:
    client = connect(ObsSettings(port=lab.port, password=lab.password, timeout_s=PATIENCE_S))
    yield client
    client.close()


def collection(lab: ObsLab) -> object:
    """Scenes, their items with all their settings, inputs and sync offset, as the websocket shows them."""
    scenes = lab.call("GetSceneList")
    items = [lab.call("GetSceneItemList", sceneName=each["sceneName"]) for each in scenes["scenes"]]
    inputs = sorted(lab.call("GetInputList")["inputs"], key=lambda each: each["inputName"])
    settings = [lab.call("GetInputSettings", inputName=each["inputName"]) for each in inputs]
    return scenes, items, inputs, settings, lab.call("GetInputAudioSyncOffset", inputName="Mic")


def test_real_obs_shows_our_picture_and_undo_leaves_no_trace(
    lab: ObsLab, link: ObsClient, changes: Journal, make_frame: Callable[..., Frame]
) -> None:
    before = collection(lab)
    sink = MjpegSink(0)
    sink.open(Size(640, 352), 30.0)
    wanted = Wanted(scene="Talk", port=sink.port, audio="Mic", latency_ms=150)
    first = set_up(link, changes, wanted)
    once = collection(lab)
    assert set_up(link, changes, wanted) == first
    assert collection(lab) == once != before
    assert first.offsets_ms == {"Mic": 150}
    # The whole way: our sink, OBS's media source, its scene, and back through the websocket.
    source = ObsSource("Talk", make_link=lambda: connect(link.settings))
    source.open()
    assert any(shows_green(sink, source, make_frame) for _ in range(600))
    source.close()
    undo(link, changes)
    sink.close()
    # A media source that is busy reading is let go of a moment after OBS has answered.
    waiting = threading.Event()
    assert any(is_again(lab, before) or waiting.wait(0.1) for _ in range(100))
    assert not status(link, changes).undo


def is_again(lab: ObsLab, before: object) -> bool:
    """Whether the collection is as it was; not while a source goes between being listed and being asked about."""
    try:
        return collection(lab) == before
    except AssertionError:
        return False


def shows_green(sink: MjpegSink, source: ObsSource, make_frame: Callable[..., Frame]) -> bool:
    sink.send(make_frame(640, 352, rgb=GREEN))
    frame = source.read(PATIENCE_S)
    if frame is None:
        return False
    height, width = frame.pixels.shape[:2]
    # The middle, and beside the edges that it is stretched to.
    spots = frame.pixels[[height // 2, height // 2], [width // 2, 24]]
    return bool(np.abs(spots.astype(int) - GREEN).max() <= 12)


def test_real_obs_saves_the_same_collection_as_before(lab: ObsLab, tmp_path: Path) -> None:
    """Also in OBS's own file: sources and items, with every setting OBS keeps for them."""
    lab.restart()
    lab.stop()
    before = saved(lab)
    lab.start()
    client = connect(ObsSettings(port=lab.port, password=lab.password, timeout_s=PATIENCE_S))
    changes = Journal(tmp_path / "obs-setup.json")
    for _ in range(2):
        set_up(client, changes, Wanted(scene="Break", audio="Mic", latency_ms=150))
    undo(client, changes)
    client.close()
    lab.stop()
    assert saved(lab) == before
    lab.start()


def saved(lab: ObsLab) -> object:
    """Scenes and sources of the saved collection; without the counter that numbers new items."""
    sources = {each["name"]: each for each in lab.saved_collection()["sources"]}
    for each in sources.values():
        each["settings"].pop("id_counter", None)
    return sources, lab.saved_collection()["scene_order"]
