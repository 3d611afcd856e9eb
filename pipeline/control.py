"""What the user wants, and the one way to change it: dock, OBS, script and keys all end in Control.apply.

Knows nothing of torch, http, OBS or pictures. The engine stage asks between two pictures, the output at every tick.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, get_args

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.pipeline.config import Mix, Settings, Size, Temporal
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.presets import find, load_presets, settings_for
from instantvision.pipeline.transition import Fade, Look

log = logging.getLogger(__name__)

FADE_S, FADE_MAX_S = 0.5, 10.0
# No sensible value is longer; int() and str() refuse digits by the thousand with errors of their own.
TEXT_MAX, NUMBER_BITS_MAX = 1000, 64


class Show(Enum):
    """What the sink gets.

    EFFECT: the stylised picture. SLATE: the privacy slate. FREEZE: the picture of this moment stays. LAST_LOOK: the
    last stylised picture stays and the engine rests. CAMERA: the raw picture, by the user's deliberate act only.
    """

    EFFECT = "effect"
    SLATE = "slate"
    FREEZE = "freeze"
    LAST_LOOK = "last-look"
    CAMERA = "camera"


@dataclass(frozen=True, kw_only=True)
class ControlState:
    """What is wanted at a moment.

    Args:
        version: one more with every change.
        settings: where cross-fades lead to.
        fade_s: how long they take, 0..10.
        show: what the sink gets.
        panic: what it gets when the panic button is pressed; anything but EFFECT.
        changed_by: who changed it last: dock, obs, script, cli or start.
    """

    version: int = 0
    settings: Settings
    fade_s: float = FADE_S
    show: Show = Show.EFFECT
    panic: Show = Show.SLATE
    changed_by: str = "start"

    def __post_init__(self) -> None:
        if not 0 <= self.fade_s <= FADE_MAX_S:
            raise ConfigError(f"fade_s is {self.fade_s:g} s, expected 0 to {FADE_MAX_S:g}")
        if self.panic is Show.EFFECT:
            raise ConfigError(f"panic_mode is effect, expected {_choices(PANIC_MODES)}")

    def to_json(self) -> dict[str, Any]:
        """As plain values; mix and size as the user writes them."""
        settings = self.settings
        return {
            "version": self.version,
            "preset": str(settings.mix),
            "strength": settings.strength,
            "seed": settings.seed,
            "steps": settings.steps,
            "size": str(settings.size),
            "fit": settings.fit,
            "mirror": settings.mirror,
            "temporal": settings.temporal,
            "fade_s": self.fade_s,
            "show": self.show.value,
            "panic_mode": self.panic.value,
            "changed_by": self.changed_by,
        }


PANIC_MODES = tuple(show.value for show in Show if show is not Show.EFFECT)


class Control:
    """The owner of what the user wants; every method may be called from any thread.

    Args:
        settings: at the start.
        fade_s: duration of cross-fades, 0..10.
        panic: what the panic button shows. CAMERA here is the deliberate act of whoever started the program.
        clock: the one that settings_now is asked by.

    Raises:
        ConfigError: fade_s is out of range, or panic is EFFECT.
        UnknownPreset: the settings name a preset that does not exist.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        fade_s: float = FADE_S,
        panic: Show = Show.SLATE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        for name, _ in settings.mix.parts:
            find(name)
        self._clock = clock
        self._lock = threading.Lock()
        look = _look(settings)
        # One reference to both, so that a reader without the lock never sees a new state with an old fade.
        self._now = _Now(
            state=ControlState(settings=settings, fade_s=fade_s, panic=panic),
            fade=Fade(start=look, target=look, begin_s=0.0, duration_s=0.0),
        )
        self._listeners: list[Callable[[ControlState], None]] = []

    @property
    def state(self) -> ControlState:
        """What is wanted now; never waits."""
        return self._now.state

    def apply(self, change: Mapping[str, object], *, by: str) -> ControlState:
        """Change something; all of it or, with an error, nothing.

        Args:
            change: any of these keys, as plain values.
                preset: `oil`, or a mix such as `oil:0.7,ink:0.3`. Strength and seed follow the preset's own, unless
                    they are given too or had been set to something else than the preset before asks for.
                look: `next` or `previous`, among all presets by name.
                strength, seed, steps, size, fit, mirror, temporal: as in Settings; the size as text or a number.
                fade_s: seconds, 0..10.
                show: `effect`, `slate`, `freeze`, `last-look` or `camera`.
                bypass: True shows the camera, False the effect.
                panic: True shows what panic_mode says, False the effect.
                panic_mode: what panic will show.
                consent: True, without which show, bypass and panic_mode refuse the camera.
            by: who wants it: dock, obs, script or cli.

        Returns:
            The state after it; the same one if that changed nothing.

        Raises:
            ConfigError: a key is unknown, a value out of range, keys contradict each other, or consent is missing.
            UnknownPreset: a preset does not exist.
        """
        asked = read_change(change)
        with self._lock:
            before = self._now
            state = _changed(before.state, asked)
            if state == before.state:
                return state
            state = replace(state, version=state.version + 1, changed_by=by)
            self._now = _Now(state=state, fade=self._next_fade(before, state))
            listeners = tuple(self._listeners)
        # Outside of the lock: a listener may apply a change itself.
        for listener in listeners:
            _tell(listener, state)
        return state

    def settings_now(self, now_s: float) -> Settings:
        """What the next picture is made with: the settings, with the cross-fade as far as it is at `now_s`."""
        now = self._now
        look = now.fade.at(now_s)
        return replace(now.state.settings, mix=look.mix, strength=look.strength)

    def subscribe(self, listener: Callable[[ControlState], None]) -> Callable[[], None]:
        """Call `listener` after every change, in the thread that made it; returns what ends that.

        Two threads may tell of their changes in either order: the higher `version` is the newer state.
        """
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def _next_fade(self, before: "_Now", state: ControlState) -> Fade:
        target = _look(state.settings)
        if target == before.fade.target:
            return before.fade
        now_s = self._clock.now_s()
        # From where the running fade is, so that a change in its middle is no jump.
        return Fade(start=before.fade.at(now_s), target=target, begin_s=now_s, duration_s=state.fade_s)


@dataclass(frozen=True, kw_only=True)
class _Now:
    state: ControlState
    fade: Fade


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A change with every value read and checked by itself; None and empty where nothing is asked."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    mix: Mix | None = None
    walk: int = 0
    fade_s: float | None = None
    show: Show | None = None
    panic_mode: Show | None = None
    panic: bool | None = None
    consent: bool = False


def read_change(change: Mapping[str, object]) -> Asked:
    """Read what a front end wants.

    Raises:
        ConfigError: a key is unknown, a value is of the wrong kind, or keys contradict each other.
        UnknownPreset: a preset does not exist.
    """
    if not isinstance(change, Mapping):
        raise ConfigError(
            f'the change is a {type(change).__name__}, expected a table such as {{"preset": "oil"}}'
        )
    for key in change:
        if key not in READERS:
            raise ConfigError(f"unknown key {_shown(key)}, expected {', '.join(READERS)}")
    values = {key: READERS[key](key, value) for key, value in change.items()}
    for group in (("preset", "look"), ("show", "bypass", "panic")):
        if len(given := [key for key in group if key in values]) > 1:
            raise ConfigError(f"{' and '.join(given)} contradict each other: give one of them")
    show = values.get("show")
    if "bypass" in values:
        show = Show.CAMERA if values["bypass"] else Show.EFFECT
    consent = bool(values.get("consent"))
    for wanted in (show, values.get("panic_mode")):
        if wanted is Show.CAMERA and not consent:
            raise ConfigError(
                "this shows the real camera, expected consent: send consent true in the same change"
            )
    return Asked(
        settings={key: values[key] for key in SETTINGS_KEYS if key in values},
        mix=values.get("preset"),
        walk={"next": 1, "previous": -1}.get(values.get("look", ""), 0),
        fade_s=values.get("fade_s"),
        show=show,
        panic_mode=values.get("panic_mode"),
        panic=values.get("panic"),
        consent=consent,
    )


def _changed(state: ControlState, asked: Asked) -> ControlState:
    panic = asked.panic_mode or state.panic
    show = asked.show or state.show
    if asked.panic is not None:
        show = panic if asked.panic else Show.EFFECT
    return replace(
        state,
        settings=_changed_settings(state.settings, asked),
        fade_s=state.fade_s if asked.fade_s is None else asked.fade_s,
        show=show,
        panic=panic,
    )


def _changed_settings(settings: Settings, asked: Asked) -> Settings:
    mix = _neighbour(settings.mix, asked.walk) if asked.walk else asked.mix
    if mix is None or mix == settings.mix:
        return replace(settings, **asked.settings)
    own, other = settings_for(settings.mix), settings_for(mix)
    # What differs from the look's own value was set by hand, and stays.
    follows = {
        key: getattr(other, key)
        for key in ("strength", "seed")
        if getattr(settings, key) == getattr(own, key)
    }
    return replace(settings, **{**follows, **asked.settings, "mix": mix})


def _neighbour(mix: Mix, walk: int) -> Mix:
    """The look after or before the heaviest one of a mix."""
    names = list(load_presets())
    heaviest = max(mix.parts, key=lambda part: part[1])[0]
    return Mix(((names[(names.index(heaviest) + walk) % len(names)], 1.0),))


def _look(settings: Settings) -> Look:
    return Look(mix=settings.mix, strength=settings.strength)


def _tell(listener: Callable[[ControlState], None], state: ControlState) -> None:
    try:
        listener(state)
    # Everything: one front end's fault may neither undo the change nor keep the others from hearing of it.
    except Exception:
        log.exception("a listener failed after change %d", state.version)


# Values come from web pages and scripts: each is read by its kind, and its range checked where it is defined.


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX or not value.isprintable():
        raise ConfigError(f"{key} is {_shown(value)}, expected a text on one line")
    return value


def _bool(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {_shown(value)}, expected true or false")
    return value


def _whole(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > NUMBER_BITS_MAX:
        raise ConfigError(f"{key} is {_shown(value)}, expected a whole number")
    return value


def _number(key: str, value: object) -> float:
    return value if isinstance(value, float) else float(_whole(key, value))


def _size(key: str, value: object) -> Size:
    text = str(_whole(key, value)) if isinstance(value, int) else _text(key, value)
    # Four digits a side are enough for the largest size.
    if len(text) > 20:
        raise ConfigError(f"{key} is {_shown(value)}, expected N or WIDTHxHEIGHT, as in 512 or 1280x720")
    return Size.parse(text)


def _mix(key: str, value: object) -> Mix:
    mix = Mix.parse(_text(key, value))
    for name, weight in mix.parts:
        find(name)
        # Weights too far apart for the sum become 0.
        if not weight > 0:
            raise ConfigError(
                f"preset {name} vanishes beside the others in {_shown(value)}: try oil:0.7,ink:0.3"
            )
    return mix


def _one_of(*allowed: str) -> Callable[[str, object], str]:
    def read(key: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(f"{key} is {_shown(value)}, expected {_choices(allowed)}")
        return value

    return read


def _show_of(*allowed: str) -> Callable[[str, object], Show]:
    read = _one_of(*allowed)
    return lambda key, value: Show(read(key, value))


def _choices(values: tuple[str, ...]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}"


def _shown(value: object) -> str:
    """A foreign value for a message: short, on one line, and never an error itself."""
    if isinstance(value, str | bool | float) or value is None:
        text = repr(value if not isinstance(value, str) else value[:60])
        return text if len(text) <= 80 else f"{text[:79]}…"
    if isinstance(value, int) and value.bit_length() <= NUMBER_BITS_MAX:
        return str(value)
    return f"a {type(value).__name__}" if not isinstance(value, int) else "a number of very many digits"


SETTINGS_KEYS = ("strength", "seed", "steps", "size", "fit", "mirror", "temporal")
READERS: Mapping[str, Callable[[str, object], Any]] = {
    "preset": _mix,
    "look": _one_of("next", "previous"),
    "strength": _number,
    "seed": _whole,
    "steps": _whole,
    "size": _size,
    "fit": _one_of("cover", "letterbox"),
    "mirror": _bool,
    "temporal": _one_of(*get_args(Temporal)),
    "fade_s": _number,
    "show": _show_of(*(show.value for show in Show)),
    "bypass": _bool,
    "panic": _bool,
    "panic_mode": _show_of(*PANIC_MODES),
    "consent": _bool,
}
