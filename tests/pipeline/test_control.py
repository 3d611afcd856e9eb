import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instantvision.pipeline import presets
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.control import READERS, Control, ControlState, Show
from instantvision.pipeline.errors import ConfigError, UnknownPreset
from instantvision.pipeline.presets import Preset, load_presets, settings_for

OIL = settings_for(Mix.parse("oil"))


class HandClock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        self.time_s += timeout_s
        return stop.is_set()


def make(settings: Settings = OIL, **options: Any) -> Control:
    return Control(settings, clock=HandClock(), **options)


def test_a_change_is_made_as_a_whole_and_counted() -> None:
    control = make()
    state = control.apply(
        {"preset": "oil:3,ink:1", "strength": 0.5, "steps": 4, "size": 256, "fit": "letterbox", "fade_s": 2}
        | {"temporal": "warm"},
        by="dock",
    )
    assert state is control.state
    assert (state.version, state.changed_by, state.fade_s) == (1, "dock", 2.0)
    assert dict(state.settings.mix.parts) == {"oil": 0.75, "ink": 0.25}
    assert state.settings.size == Size(256, 256)
    assert (state.settings.strength, state.settings.steps, state.settings.fit) == (0.5, 4, "letterbox")
    assert state.settings.temporal == "warm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"strength": 2}, "strength is 2"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": True}, "strength is True"),
        ({"seed": 10**5000}, "a number of very many digits"),
        ({"size": "9" * 30}, "size is"),
        ({"size": "500"}, "multiple of 16"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"mirror": 1}, "mirror is 1, expected true or false"),
        ({"preset": "oil\nink"}, "a text on one line"),
        ({"preset": "oil:1e308,ink:1e-320"}, "vanishes"),
        ({"look": "up"}, "expected next or previous"),
        ({"fade_s": 11}, "expected 0 to 10"),
        ({"panic_mode": "effect"}, "panic_mode"),
        ({"show": "slate", "panic": True}, "contradict"),
        ({"preset": "oil", "look": "next"}, "contradict"),
    ],
)  # fmt: skip
def test_what_is_wrong_changes_nothing(change: dict[str, object], message: str) -> None:
    control = make()
    before = control.state
    with pytest.raises(ConfigError, match=message) as caught:
        control.apply({"mirror": True, **change}, by="dock")
    assert "\n" not in str(caught.value)
    assert control.state is before


def test_an_unknown_preset_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownPreset, match="did you mean oil"):
        make().apply({"preset": "oill"}, by="dock")


def test_nothing_new_is_no_change() -> None:
    control = make()
    heard: list[ControlState] = []
    control.subscribe(heard.append)
    assert control.apply({"preset": "oil"}, by="dock").version == 0
    assert heard == []


# The camera


@pytest.mark.parametrize("change", [{"show": "camera"}, {"bypass": True}, {"panic_mode": "camera"}])
def test_the_camera_needs_consent_in_the_same_change(change: dict[str, object]) -> None:
    control = make()
    control.apply({"consent": True}, by="dock")
    for consent in ({}, {"consent": False}):
        with pytest.raises(ConfigError, match="consent"):
            control.apply({**change, **consent}, by="dock")
    assert control.state.show is Show.EFFECT
    state = control.apply({**change, "consent": True}, by="dock")
    assert Show.CAMERA in (state.show, state.panic)


@pytest.mark.parametrize("mode", ["slate", "freeze", "last-look"])
def test_panic_shows_what_was_chosen(mode: str) -> None:
    control = make()
    control.apply({"panic_mode": mode}, by="dock")
    assert control.apply({"panic": True}, by="cli").show is Show(mode)
    assert control.apply({"panic": False}, by="cli").show is Show.EFFECT


def test_panic_is_no_look_to_start_with() -> None:
    with pytest.raises(ConfigError, match="panic_mode is effect"):
        make(panic=Show.EFFECT)


# Presets


def test_strength_and_seed_follow_the_preset_until_set_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = Preset(name="soft", description="Soft.", styles={"oil": 1.0}, strength=0.6, seed=7)
    looks = {**load_presets(), "soft": soft}
    monkeypatch.setattr(presets, "load_presets", lambda: looks)
    control = make()
    settings = control.apply({"preset": "soft"}, by="dock").settings
    assert (settings.strength, settings.seed) == (0.6, 7)
    control.apply({"strength": 0.123}, by="dock")
    settings = control.apply({"preset": "oil"}, by="dock").settings
    assert (settings.strength, settings.seed) == (0.123, OIL.seed)
    assert control.apply({"preset": "soft", "seed": 3}, by="dock").settings.seed == 3


def test_walking_through_all_looks_comes_back() -> None:
    control = make()
    seen = [str(control.apply({"look": "next"}, by="cli").settings.mix) for _ in load_presets()]
    assert sorted(seen) == sorted(load_presets())
    assert seen[-1] == "oil"
    control.apply({"look": "previous"}, by="cli")
    assert str(control.state.settings.mix) == seen[-2]


# Cross-fades


def test_a_fade_is_made_of_mixes_and_ends_exactly() -> None:
    clock = HandClock()
    control = Control(OIL, fade_s=2.0, clock=clock)
    target = control.apply({"preset": "ink", "strength": 0.5}, by="dock").settings
    assert control.settings_now(100.0).mix == OIL.mix
    half = control.settings_now(101.0)
    assert dict(half.mix.parts) == pytest.approx({"oil": 0.5, "ink": 0.5})
    assert half.strength == pytest.approx((OIL.strength + 0.5) / 2)
    assert control.settings_now(102.0) == target


def test_a_change_during_a_fade_goes_on_from_where_it_is() -> None:
    clock = HandClock()
    control = Control(OIL, fade_s=2.0, clock=clock)
    control.apply({"preset": "ink"}, by="dock")
    clock.time_s = 101.0
    before = control.settings_now(101.0)
    control.apply({"preset": "oil"}, by="dock")
    assert control.settings_now(101.0) == before
    # What has nothing to do with looks does not begin it anew.
    control.apply({"mirror": True}, by="dock")
    assert control.settings_now(103.0).mix == OIL.mix


# Listeners


def test_listeners_hear_every_change_until_they_end_it(caplog: pytest.LogCaptureFixture) -> None:
    control = make()
    heard: list[int] = []

    def broken(_state: ControlState) -> None:
        raise RuntimeError("gone")

    control.subscribe(broken)
    end = control.subscribe(lambda state: heard.append(state.version))
    with caplog.at_level(logging.ERROR):
        control.apply({"mirror": True}, by="dock")
    end()
    end()
    control.apply({"mirror": False}, by="dock")
    assert heard == [1]
    assert "listener failed after change 1" in caplog.text


def test_a_listener_may_apply() -> None:
    control = make()
    control.subscribe(lambda state: control.apply({"steps": 3}, by="script") and None)
    control.apply({"mirror": True}, by="dock")
    assert (control.state.version, control.state.settings.steps) == (2, 3)


def test_the_state_as_plain_values() -> None:
    assert make(panic=Show.LAST_LOOK).state.to_json() == {
        "version": 0, "preset": "oil", "strength": OIL.strength, "seed": OIL.seed, "steps": 8, "size": "512x512",
        "fit": "cover", "mirror": False, "temporal": "warm", "fade_s": 0.5, "show": "effect",
        "panic_mode": "last-look", "changed_by": "start",
    }  # fmt: skip


# Whatever comes

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
likely = st.sampled_from(
    [
        "oil",
        "oil:0.7,ink:0.3",
        "oil:inf",
        "oil:1e-320,ink:1e308",
        "next",
        "camera",
        "slate",
        "512",
        "64x1e3",
        0,
        1,
        0.5,
    ]
)


keys = st.sampled_from(sorted(READERS)) | st.text() | st.integers()


@given(st.lists(st.dictionaries(keys, likely | plain), max_size=4))
def test_anything_is_refused_whole_or_taken_whole(changes: list[dict[Any, Any]]) -> None:
    control = make()
    for change in changes:
        before, fading = control.state, control.settings_now(100.2)
        refusal = refused(control, change)
        after = control.state
        if refusal is not None:
            assert "\n" not in refusal
            assert after is before
            assert control.settings_now(100.2) == fading
        assert after.version - before.version == (after != before)
        by_panic = change.get("panic") is True and before.panic is Show.CAMERA
        if after.show is Show.CAMERA is not before.show and not by_panic:
            assert change["consent"] is True
        assert sum(weight for _, weight in control.settings_now(100.2).mix.parts) == pytest.approx(1)


def refused(control: Control, change: dict[Any, Any]) -> str | None:
    """Why, or None if it was taken."""
    try:
        control.apply(change, by="dock")
    except ConfigError as error:
        return str(error)
    return None
