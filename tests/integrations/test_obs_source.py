import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from instantvision.integrations.clock import SYSTEM_CLOCK
from instantvision.integrations.factory import parse_source
from instantvision.integrations.mjpeg_stream import BUFFER_BYTES_MAX, MjpegListener, StreamEndedError
from instantvision.integrations.obs_capture import covering_width
from instantvision.integrations.obs_client import ObsClient, connect
from instantvision.integrations.obs_credentials import ObsSettings
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_profile import NAME, parameters, put_back_after_a_crash
from instantvision.integrations.obs_source import ObsSource, Way
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import ConfigError, ObsError, SourceError
from instantvision.pipeline.frames import Frame, Origin
from tests.integrations.fake_obs import GREEN, FakeObs, mpjpeg
from tests.obs_lab import ObsLab, free_port

# Only keeps a broken source from hanging the tests.
PATIENCE_S = 20.0


@pytest.fixture
def obs() -> FakeObs:
    return FakeObs()


@pytest.fixture
def changes(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "obs-profile.json")


@pytest.fixture
def stream(obs: FakeObs, changes: Journal) -> Iterator[ObsSource]:
    source = ObsSource(make_link=lambda: obs, changes=changes)
    source.open()
    yield source
    source.close()


def read(source: ObsSource) -> Frame:
    frame = source.read(PATIENCE_S)
    assert frame is not None
    return frame


def untouched(obs: FakeObs, changes: Journal) -> bool:
    """Nothing of ours is left in OBS."""
    return (obs.profile, list(obs.profiles), obs.sender, changes.read()) == ("Mine", ["Mine"], None, None)


@pytest.mark.parametrize(
    ("text", "name", "way"),
    [
        ("obs", "obs", "stream"),
        ("OBS?via=screenshots", "obs", "screenshots"),
        ("obs?via=stream", "obs", "stream"),
        ("obs:Camera: left", "obs:Camera: left", "screenshots"),
        ("obs:What?", "obs:What?", "screenshots"),
        ("obs:Camera?via=screenshots", "obs:Camera", "screenshots"),
    ],
)
def test_the_way_is_chosen_by_name(text: str, name: str, way: str) -> None:
    source = parse_source(text, size=Size(512, 512))
    assert isinstance(source, ObsSource)
    assert (source.name, source.way) == (name, way)


@pytest.mark.parametrize(
    "text", ["obs:", "obs?via=", "obs?via=smoke", "obs:Cam?via=smoke", "obs?", "obs:?via=stream"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="source is"):
        parse_source(text)


def test_a_source_cannot_be_streamed() -> None:
    with pytest.raises(ConfigError, match="its program only, not 'Cam'"):
        parse_source("obs:Cam?via=stream")


def test_the_stream_brings_pictures_and_puts_everything_back(
    stream: ObsSource, obs: FakeObs, changes: Journal
) -> None:
    assert (obs.profile, changes.read()["previous"]) == (NAME, "Mine")
    obs.send()
    frame = read(stream)
    assert (frame.origin, frame.index, stream.status) == (Origin.RAW, 0, "")
    assert frame.pixels.shape == (48, 64, 3)
    stream.close()
    assert untouched(obs, changes)
    # Stopped while it encodes, OBS may crash.
    assert obs.requests.index("PauseRecord") < obs.requests.index("StopRecord")
    assert obs.closed
    assert stream.read(0.01) is None


def test_the_users_own_profile_is_never_written_to(stream: ObsSource, obs: FakeObs) -> None:
    assert obs.profiles["Mine"] == {}
    port = int(obs.profiles[NAME]["AdvOut", "FFURL"].rpartition(":")[2])
    assert obs.profiles[NAME] == parameters(obs.request("GetVideoSettings"), port)
    assert obs.profiles[NAME]["Video", "BaseCX"] == "1280"


def test_a_late_reader_gets_the_newest_picture(stream: ObsSource, obs: FakeObs) -> None:
    obs.send((200, 40, 40))
    read(stream)
    for level in (10, 100, 240):
        obs.send((level, level, level))
    # TCP may hand them over one by one; the last one always comes.
    assert any(read(stream).pixels[0, 0, 0] > 230 for _ in range(3))


@pytest.mark.parametrize("output", ["GetRecordStatus", "GetStreamStatus"])
def test_an_obs_in_use_is_not_touched(
    obs: FakeObs, changes: Journal, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    obs.busy = {output}
    source = ObsSource(make_link=lambda: obs, changes=changes)
    source.open()
    np.testing.assert_allclose(read(source).pixels[0, 0], GREEN, atol=6)
    source.close()
    assert not {"CreateProfile", "SetCurrentProfile", "StartRecord", "StopRecord"} & set(obs.requests)
    assert "must not be disturbed" in caplog.text
    assert "going on with screenshots" in caplog.text


def test_a_recording_that_its_user_starts_meanwhile_goes_on(obs: FakeObs, changes: Journal) -> None:
    def record(name: str) -> None:
        if name == "GetVideoSettings":
            obs.busy.add("GetRecordStatus")

    obs.after = record
    source = ObsSource(make_link=lambda: obs, changes=changes)
    source.open()
    read(source)
    source.close()
    assert "StopRecord" not in obs.requests
    assert untouched(obs, changes)


def test_an_output_that_does_not_start_is_put_back(
    obs: FakeObs, changes: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instantvision.integrations.obs_profile.START_S", 0.05)
    obs.silent = True
    source = ObsSource(make_link=lambda: obs, changes=changes)
    source.open()
    assert untouched(obs, changes)
    assert source.way == "screenshots"
    source.close()


@pytest.mark.parametrize(
    "moment", ["GetProfileList", "CreateProfile", "SetProfileParameter", "SetCurrentProfile", "StartRecord"]
)
def test_a_crash_at_any_moment_is_put_back_by_the_next_start(
    obs: FakeObs, changes: Journal, moment: str
) -> None:
    def crash(name: str) -> None:
        obs.gone = name == moment

    obs.after = crash
    dying = ObsSource(make_link=lambda: obs, changes=changes)
    with suppress(ObsError):
        dying.open()
    dying.close()
    assert changes.read() is not None
    obs.gone, obs.after = False, lambda name: None
    following = ObsSource(make_link=lambda: obs, changes=changes)
    following.open()
    obs.send()
    read(following)
    following.close()
    assert untouched(obs, changes)


def test_undo_leaves_a_live_run_alone(stream: ObsSource, obs: FakeObs, changes: Journal) -> None:
    with pytest.raises(SourceError, match="another run is capturing"):
        put_back_after_a_crash(obs, changes)
    assert obs.profile == NAME


def test_a_second_run_takes_screenshots(stream: ObsSource, obs: FakeObs, changes: Journal) -> None:
    second = ObsSource(make_link=lambda: obs, changes=changes)
    second.open()
    assert second.way == "screenshots"
    second.close()
    assert obs.profile == NAME


def test_an_output_that_its_user_stops_is_not_started_again(
    stream: ObsSource, obs: FakeObs, changes: Journal
) -> None:
    obs.send()
    read(stream)
    obs.request("StopRecord")
    np.testing.assert_allclose(read(stream).pixels[0, 0], GREEN, atol=6)
    assert obs.requests.count("StartRecord") == 1
    assert untouched(obs, changes)


def test_a_lost_obs_is_streamed_again_when_it_is_back(
    stream: ObsSource, obs: FakeObs, changes: Journal
) -> None:
    obs.send()
    read(stream)
    obs.gone = True
    assert obs.sender is not None
    obs.sender.close()
    obs.sender = None
    assert stream.read(0.05) is None
    assert "looking for OBS" in stream.status
    # Killed, OBS comes up in the profile it was in.
    obs.gone = False
    while obs.sender is None:
        stream.read(0.1)
    obs.send()
    read(stream)
    assert stream.status == ""
    stream.close()
    assert untouched(obs, changes)


def test_close_without_obs_leaves_the_journal(stream: ObsSource, obs: FakeObs, changes: Journal) -> None:
    obs.gone = True
    stream.close()
    assert changes.read() is not None
    obs.gone = False
    assert put_back_after_a_crash(obs, changes)
    assert untouched(obs, changes)
    assert not put_back_after_a_crash(obs, changes)


def test_a_damaged_journal_is_named(changes: Journal) -> None:
    changes.write({})
    changes.path.write_text("{")
    with pytest.raises(ConfigError, match=r"obs-profile.json cannot be read: .* delete that file"):
        changes.read()


def test_the_journal_is_private(changes: Journal) -> None:
    changes.write({"previous": "Mine"})
    assert changes.path.parent.stat().st_mode & 0o077 == 0 or os.name != "posix"


def test_screenshots_of_a_source_cover_the_engines_picture(obs: FakeObs, clock: object) -> None:
    source = ObsSource("Mic", size=Size(512, 512), make_link=lambda: obs, clock=clock)
    source.open()
    assert read(source).pixels.shape == (720, 1280, 3)
    assert [read(source).pixels.shape for _ in range(2)] == [(512, 911, 3)] * 2
    assert {each["sourceName"] for each in obs.screenshots} == {"Mic"}
    source.close()
    assert obs.listeners == []


def test_screenshots_come_no_faster_than_obs_draws(obs: FakeObs, clock: object) -> None:
    source = ObsSource("Mic", make_link=lambda: obs, clock=clock)
    source.open()
    start_s = clock.now_s()
    for _ in range(31):
        read(source)
    assert clock.now_s() - start_s == pytest.approx(1.0)
    source.close()


def test_screenshots_follow_the_program(obs: FakeObs) -> None:
    source = ObsSource(via="screenshots", make_link=lambda: obs)
    source.open()
    read(source)
    obs.tell("CurrentProgramSceneChanged", sceneName="Break")
    read(source)
    source.close()
    assert [each["sourceName"] for each in obs.screenshots] == ["Talk", "Break"]


def test_a_source_that_is_not_there_is_an_error_with_a_choice(obs: FakeObs) -> None:
    source = ObsSource("Cam", make_link=lambda: obs)
    with pytest.raises(SourceError, match="no source 'Cam', there is Mic, Break, Talk"):
        source.open()
    assert obs.closed


@pytest.mark.parametrize(
    ("width", "height", "size", "wanted"),
    [
        (1280, 720, None, None),
        (1280, 720, Size(512, 512), 911),
        (1280, 720, Size(640, 352), 640),
        (320, 240, Size(512, 512), None),
        (7680, 1088, Size(4096, 1088), None),
    ],
)
def test_screenshots_are_never_asked_for_larger_than_they_are(
    width: int, height: int, size: Size | None, wanted: int | None
) -> None:
    assert covering_width(width, height, size) == wanted


@pytest.fixture
def listener() -> Iterator[MjpegListener]:
    listener = MjpegListener(SYSTEM_CLOCK)
    yield listener
    listener.close()
    listener.close()


@pytest.fixture
def sender(listener: MjpegListener) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", listener.port)) as sender:
        yield sender


def test_a_picture_may_come_in_pieces(listener: MjpegListener, sender: socket.socket) -> None:
    data = mpjpeg() + mpjpeg((200, 40, 40))
    for piece in (data[:10], data[10:700]):
        sender.sendall(piece)
        assert listener.frame(0.05) is None
    sender.sendall(data[700:])
    pixels = listener.frame(PATIENCE_S)
    assert pixels is not None
    assert pixels[0, 0, 0] > 150


def test_a_damaged_picture_is_left_out(listener: MjpegListener, sender: socket.socket) -> None:
    sender.sendall(b"--ffmpeg\r\nContent-length: 4\r\n\r\nnone\r\n")
    assert listener.frame(PATIENCE_S) is None
    sender.sendall(mpjpeg())
    assert listener.frame(PATIENCE_S) is not None


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"Content-length: -1\r\n\r\n", bytes(BUFFER_BYTES_MAX)]
)
def test_something_else_than_pictures_ends_the_stream(
    listener: MjpegListener, sender: socket.socket, data: bytes
) -> None:
    got: list[Exception] = []

    def read_on() -> None:
        try:
            while True:
                listener.frame(PATIENCE_S)
        except StreamEndedError as error:
            got.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    sender.sendall(data + b"\r\n")
    reader.join(PATIENCE_S)
    assert [str(error) for error in got] == ["it sends something else than pictures"]


class Real:
    """A real OBS, a source that is a plain colour, and a journal."""

    def __init__(self, lab: ObsLab, folder: Path) -> None:
        self.lab, self.changes = lab, Journal(folder / "obs-profile.json")

    def link(self) -> ObsClient:
        return connect(ObsSettings(port=self.lab.port, password=self.lab.password, timeout_s=PATIENCE_S))

    def open(self, of: str | None = None, via: Way | None = None) -> ObsSource:
        source = ObsSource(of, via=via, make_link=self.link, changes=self.changes)
        source.open()
        return source

    def state(self) -> object:
        """Everything that a capture may have changed."""
        names = ("GetProfileList", "GetVideoSettings", "GetRecordStatus", "GetSceneList")
        # OBS lists the inputs in no particular order.
        inputs = sorted(each["inputName"] for each in self.lab.call("GetInputList")["inputs"])
        return inputs, [self.lab.call(name) for name in names]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObsLab]:
    with ObsLab(tmp_path_factory.mktemp("obs"), scenes=("Talk", "Break")) as lab:
        for scene, name, colour in (("Talk", "Green", 0xFF28C828), ("Break", "Blue", 0xFFC82828)):
            settings = {"color": colour, "width": 640, "height": 360}
            made = {
                "sceneName": scene,
                "inputName": name,
                "inputKind": "color_source_v3",
                "inputSettings": settings,
            }
            lab.call("CreateInput", **made)
        yield lab


@pytest.fixture
def real(lab: ObsLab, tmp_path: Path) -> Real:
    lab.start()
    lab.call("SetCurrentProgramScene", sceneName="Talk")
    return Real(lab, tmp_path)


def shows(source: ObsSource, rgb: tuple[int, int, int], pictures: int = 300) -> bool:
    """Whether the source comes to show a colour."""
    for _ in range(pictures):
        frame = source.read(PATIENCE_S)
        if frame is not None and np.abs(frame.pixels[180, 320].astype(int) - rgb).max() <= 8:
            return True
    return False


GREEN_SCENE, BLUE_SCENE = (40, 200, 40), (40, 40, 200)


def test_real_screenshots_show_the_program_and_follow_it(real: Real) -> None:
    before = real.state()
    source = real.open(via="screenshots")
    assert shows(source, GREEN_SCENE)
    real.lab.call("SetCurrentProgramScene", sceneName="Break")
    assert shows(source, BLUE_SCENE)
    real.lab.call("SetCurrentProgramScene", sceneName="Talk")
    source.close()
    assert real.state() == before


def test_real_screenshots_of_a_source_that_is_not_on_air(real: Real) -> None:
    source = real.open("Blue")
    assert shows(source, BLUE_SCENE)
    source.close()


def test_real_stream_shows_the_program_in_its_true_colours(real: Real) -> None:
    before = real.state()
    source = real.open()
    assert source.way == "stream"
    assert shows(source, GREEN_SCENE)
    frame = source.read(PATIENCE_S)
    assert frame is not None
    assert frame.pixels.shape == (360, 640, 3)
    real.lab.call("SetCurrentProgramScene", sceneName="Break")
    assert shows(source, BLUE_SCENE)
    real.lab.call("SetCurrentProgramScene", sceneName="Talk")
    source.close()
    assert real.state() == before
    assert real.changes.read() is None


RUN = """
import sys
from pathlib import Path
from instantvision.integrations.obs_client import connect
from instantvision.integrations.obs_credentials import ObsSettings
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_source import ObsSource
port, password, journal = int(sys.argv[1]), sys.argv[2], Journal(Path(sys.argv[3]))
source = ObsSource(make_link=lambda: connect(ObsSettings(port=port, password=password)), changes=journal)
source.open()
try:
    while source.read(1.0) is None:
        pass
    print(source.way, flush=True)
    while True:
        source.read(1.0)
finally:
    source.close()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_real_stream_is_put_back_after_ctrl_c_and_after_a_crash(real: Real, end: signal.Signals) -> None:
    # One start of the output for each OBS process: cycling it is what crashes OBS.
    real.lab.restart()
    before = real.state()
    arguments = [str(real.lab.port), real.lab.password, str(real.changes.path)]
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"stream\n"
    assert real.state() != before
    run.send_signal(end)
    run.communicate(timeout=PATIENCE_S)
    if end == signal.SIGKILL:
        assert real.changes.read() is not None
        link = real.link()
        assert put_back_after_a_crash(link, real.changes)
        link.close()
    assert real.changes.read() is None
    assert real.state() == before


def test_real_stream_returns_after_obs_was_killed(real: Real) -> None:
    real.lab.restart()
    before = real.state()
    source = real.open()
    assert shows(source, GREEN_SCENE)
    real.lab.kill()
    while source.status == "":
        source.read(0.1)
    real.lab.start()
    real.lab.call("SetCurrentProgramScene", sceneName="Talk")
    assert shows(source, GREEN_SCENE, pictures=3000)
    assert source.way == "stream"
    source.close()
    assert real.state() == before


def test_real_recording_is_not_touched(real: Real) -> None:
    real.lab.restart()
    lab = real.lab
    lab.call("StartRecord")
    while not lab.call("GetRecordStatus")["outputBytes"]:
        pass
    try:
        source = real.open()
        assert source.way == "screenshots"
        assert shows(source, GREEN_SCENE)
        source.close()
        assert lab.call("GetRecordStatus")["outputActive"]
        assert lab.call("GetProfileList")["profiles"] == ["Untitled"]
    finally:
        lab.call("StopRecord")


def test_without_obs_the_error_names_the_next_step(tmp_path: Path) -> None:
    settings = ObsSettings(port=free_port())
    with pytest.raises(ObsError, match="start OBS"):
        ObsSource(make_link=lambda: connect(settings), changes=Journal(tmp_path / "j")).open()
