"""What the sink gets for what the user wants, tick by tick, without threads: the clock moves when it is waited on."""

import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instantvision.integrations.base import require_sendable
from instantvision.pipeline.config import LiveConfig, Mix, Size
from instantvision.pipeline.control import Control, Show
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.frames import Frame, Latest, Origin
from instantvision.pipeline.meter import Meter
from instantvision.pipeline.pacing import Finished, Pacer, Shown
from instantvision.pipeline.playout import Arrived, Director, Playout
from instantvision.pipeline.presets import settings_for
from instantvision.pipeline.stages import _Bypass

SIZE = Size(64, 64)
SETTINGS = settings_for(Mix.parse("oil"), size=SIZE)
PERIOD_S, STALE_S = 0.1, 1.0
RAW_VALUE, STYLISED_VALUE = 200, 100
CONSENT = {"show": "camera", "consent": True}


class Scene:
    """A camera, an engine and a sink at 10 Hz; `step` is one tick."""

    def __init__(self) -> None:
        self.now_s, self.number = 1000.0, 0
        self.control = Control(SETTINGS)
        self.camera: Latest[Frame] = Latest()
        self.bypass = _Bypass(self.control, SIZE, self.camera)
        self.director, self.pacer = Director(STALE_S), Pacer(1 / PERIOD_S, STALE_S, self.now_s)
        self.delay_s = 0.0

    def want(self, **change: object) -> None:
        self.control.apply(change, by="cli")

    def step(self, *, engine: bool = True, camera: bool = True) -> tuple[Shown, Frame | None]:
        self.now_s += PERIOD_S
        self.number += 1
        if camera:
            self.bypass.offer(picture(Origin.RAW, self.number, self.now_s))
        captured_s = self.now_s - self.delay_s
        done = Finished(frame=picture(Origin.STYLISED, self.number, captured_s), finished_s=self.now_s)
        arrived = Arrived(stylised=done if engine else None, camera=self.camera.take(timeout_s=0))
        shown, frame = self.director.choose(self.now_s, self.control.state.show, self.pacer, arrived)
        self.director.sent(frame or picture(Origin.SLATE, self.number, self.now_s))
        self.pacer.advance(self.now_s)
        return shown, frame


def picture(origin: Origin, index: int, captured_s: float) -> Frame:
    value = {Origin.RAW: RAW_VALUE, Origin.STYLISED: STYLISED_VALUE, Origin.SLATE: 0}[origin]
    return Frame(
        pixels=np.full((64, 64, 3), value, np.uint8), index=index, captured_s=captured_s, origin=origin
    )


def test_the_slate_is_in_the_next_picture_and_stays() -> None:
    scene = Scene()
    assert scene.step()[0] is Shown.FRESH
    scene.want(panic=True)
    assert [scene.step() for _ in range(30)] == [(Shown.SLATE, None)] * 30
    assert scene.director.private


def test_freeze_keeps_the_picture_of_the_moment_beyond_its_patience() -> None:
    scene = Scene()
    _, moment = scene.step()
    scene.want(show="freeze")
    for _ in range(30):
        shown, frame = scene.step()
        assert shown is Shown.HELD
        assert frame is moment


def test_the_last_look_stays_even_when_the_slate_was_shown_between() -> None:
    scene = Scene()
    _, moment = scene.step()
    scene.want(show="slate")
    scene.step()
    scene.want(show="last-look")
    assert [scene.step(engine=False)[1] for _ in range(30)] == [moment] * 30


@pytest.mark.parametrize("show", ["freeze", "last-look"])
def test_holding_before_the_first_picture_is_the_slate(show: str) -> None:
    scene = Scene()
    scene.want(show=show)
    assert scene.step() == (Shown.SLATE, None)


def test_the_camera_is_shown_on_consent_and_gone_in_the_next_picture() -> None:
    scene = Scene()
    scene.step()
    scene.want(**CONSENT)
    shown, frame = scene.step()
    assert shown is Shown.FRESH
    assert frame is not None
    assert (frame.origin, frame.pixels.max()) == (Origin.CAMERA, RAW_VALUE)
    assert scene.step(camera=False) == (Shown.HELD, frame)
    scene.want(show="freeze")
    # The raw picture is not what is frozen.
    assert scene.step() == (Shown.SLATE, None)


def test_a_camera_picture_that_waited_is_not_shown_later() -> None:
    scene = Scene()
    scene.want(**CONSENT)
    scene.bypass.offer(picture(Origin.RAW, 0, scene.now_s))
    scene.want(show="slate")
    assert scene.step(camera=False) == (Shown.SLATE, None)
    scene.want(**CONSENT)
    assert scene.step(camera=False) == (Shown.SLATE, None)


def test_a_camera_that_stops_gives_way_to_the_slate() -> None:
    scene = Scene()
    scene.want(**CONSENT)
    scene.step()
    shown = [scene.step(camera=False)[0] for _ in range(12)]
    assert shown[0] is Shown.HELD
    assert shown[-1] is Shown.SLATE


@pytest.mark.parametrize("origin", [Origin.RAW, Origin.STYLISED, Origin.SLATE])
def test_the_director_takes_no_other_picture_for_the_camera(origin: Origin) -> None:
    scene = Scene()
    with pytest.raises(ValueError, match="expected one of origin camera"):
        scene.director.choose(0.0, Show.CAMERA, scene.pacer, Arrived(camera=picture(origin, 0, 0.0)))


@pytest.mark.parametrize("show", ["slate", "freeze", "last-look"])
def test_after_panic_nothing_captured_during_it_is_shown(show: str) -> None:
    scene = Scene()
    _, moment = scene.step()
    scene.want(show=show)
    scene.step()
    scene.want(panic=False)
    scene.delay_s = 2.5 * PERIOD_S
    # Three pictures were on their way through the engine: the slate or the held picture stays as long.
    expected = (Shown.SLATE, None) if show == "slate" else (Shown.HELD, moment)
    assert [scene.step() for _ in range(3)] == [expected] * 3
    assert scene.step()[0] is Shown.FRESH


def test_what_was_held_does_not_outlast_its_patience_after_panic() -> None:
    scene = Scene()
    scene.step()
    scene.want(show="freeze")
    scene.step()
    scene.want(panic=False)
    shown = [scene.step(engine=False)[0] for _ in range(13)]
    assert shown[0] is Shown.HELD
    assert shown[-1] is Shown.SLATE
    assert not scene.director.private


COMMANDS: list[dict[str, object]] = [
    {"panic": True}, {"panic": False}, CONSENT, {"bypass": True}, {"bypass": True, "consent": True}, {"bypass": False},
    *({"show": show.value} for show in Show), *({"panic_mode": show.value} for show in Show),
    {"panic_mode": "camera", "consent": True}, {"preset": "ink"},
]  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from([None, *COMMANDS]), st.booleans(), st.booleans(), st.floats(0, 0.5)))
)
def test_raw_pixels_reach_the_sink_only_while_the_camera_is_wanted(
    steps: list[tuple[dict[str, object] | None, bool, bool, float]],
) -> None:
    scene = Scene()
    for command, engine, camera, delay_s in steps:
        if command is not None:
            # A refusal is a part of the sequence.
            with suppress(ConfigError):
                scene.want(**command)
        scene.delay_s = delay_s
        shown, frame = scene.step(engine=engine, camera=camera)
        show = scene.control.state.show
        assert (frame is None) == (shown is Shown.SLATE)
        if frame is not None:
            require_sendable(frame, SIZE)
            is_raw = bool((frame.pixels == RAW_VALUE).any())
            assert is_raw == (frame.origin is Origin.CAMERA)
            assert not is_raw or show is Show.CAMERA
        if show is Show.SLATE:
            assert frame is None


# The whole of Playout


class World:
    """Clock and sink in one: `at_tick` is called before each wait with the number of pictures sent."""

    def __init__(self, at_tick: Callable[[int], None]) -> None:
        self.name, self.frames, self.time_s = "world", list[Frame](), 1000.0
        self._at_tick = at_tick

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        self.time_s += timeout_s
        self._at_tick(len(self.frames))
        return stop.is_set()

    def open(self, size: Size, fps: float) -> None:
        raise AssertionError("opened by run_live")

    def send(self, frame: Frame) -> None:
        require_sendable(frame, SIZE)
        self.frames.append(frame)

    def close(self) -> None:
        raise AssertionError("closed by run_live")


def test_every_command_is_effective_in_the_next_picture_sent() -> None:
    control = Control(SETTINGS)
    finished: Latest[Finished] = Latest()
    commands: dict[int, dict[str, object]] = {4: {"panic": True}, 6: CONSENT, 8: {"show": "last-look"}}

    def at_tick(number: int) -> None:
        if number in commands:
            control.apply(commands[number], by="obs")
        finished.put(Finished(frame=picture(Origin.STYLISED, number, world.time_s), finished_s=world.time_s))
        raw = picture(Origin.RAW, number, world.time_s)
        _Bypass(control, SIZE, playout.camera).offer(raw)

    world = World(at_tick)
    playout = Playout(world, SIZE, LiveConfig(fps=10, duration_s=1.0), Meter(), world, control)
    playout.run(finished, threading.Event(), lambda: "because", lambda: None)
    origins = [frame.origin.value for frame in world.frames]
    # The first tick is due at once, before anything was put.
    assert origins == [
        "slate",
        *["stylised"] * 3,
        "slate",
        "slate",
        "camera",
        "camera",
        "stylised",
        "stylised",
    ]
    assert world.frames[8].index == world.frames[9].index == 3
