"""Puts our picture into OBS, in step with the sound, and takes it out again.

Every change is written into a journal first, with what was there before: a second set-up changes nothing that the first
has done, and undo leaves the scene collection as it was. Only the websocket is used, OBS's files are not touched.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from instantvision.integrations import devices
from instantvision.integrations.mjpeg_address import DEFAULT_PORT, address
from instantvision.integrations.obs_journal import Journal
from instantvision.integrations.obs_link import ObsLink
from instantvision.pipeline.errors import ConfigError, ObsError

NAME = "Instant Vision"
MEDIA_SOURCE, CAMERA_SOURCE = "ffmpeg_source", "v4l2_input"
# What obs-websocket takes.
OFFSET_MIN_MS, OFFSET_MAX_MS = -950, 20000
# Measured from the pacer's picture to OBS's canvas.
MEDIA_SOURCE_MS = 100.0
# obs-websocket's code for a thing that does not exist.
NOT_FOUND = 600
BOUNDS = "OBS_BOUNDS_SCALE_INNER"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What OBS shall have.

    Args:
        scene: that gets our picture; None for the one on air.
        camera: device file of our virtual camera; None to send the picture over `port`.
        port: of the sink `obs`.
        audio: name of the audio source to keep in step; None to leave the sound alone.
        latency_ms: by how much the sound is to be later.

    Raises:
        ConfigError: the latency is out of OBS's range, or missing.
    """

    scene: str | None = None
    camera: str | None = None
    port: int = DEFAULT_PORT
    audio: str | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        if self.audio is not None and self.latency_ms is None:
            raise ConfigError(
                "the latency is not known: start instantvision run and try again, or give --latency-ms"
            )
        if self.latency_ms is not None and not OFFSET_MIN_MS <= self.latency_ms <= OFFSET_MAX_MS:
            raise ConfigError(
                f"latency is {self.latency_ms:g} ms, expected {OFFSET_MIN_MS} to {OFFSET_MAX_MS}: see --latency-ms"
            )

    @property
    def kind(self) -> str:
        """OBS's name for the kind of input."""
        return CAMERA_SOURCE if self.camera else MEDIA_SOURCE

    @property
    def settings(self) -> dict[str, Any]:
        """The input's settings."""
        if self.camera:
            return {"device_id": self.camera, "buffering": False, "auto_reset": True}
        return {
            "is_local_file": False,
            "input": address(self.port),
            "input_format": "mpjpeg",
            # Without it OBS plays at 25 pictures a second, later and later.
            "ffmpeg_options": "use_wallclock_as_timestamps=1",
            "buffering_mb": 0,
            "reconnect_delay_sec": 1,
            "restart_on_activate": False,
        }


@dataclass(frozen=True, kw_only=True)
class ObsStatus:
    """What is set up.

    Args:
        input_kind: of our input: `ffmpeg_source`, `v4l2_input`; None if OBS has none.
        shows: its address or device.
        scenes: that show it.
        offsets_ms: sync offset of each audio source we have set one for.
        undo: there is something that undo would put back.
    """

    input_kind: str | None
    shows: str | None
    scenes: tuple[str, ...]
    offsets_ms: dict[str, float]
    undo: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if self.input_kind is None:
            return f"OBS has no source {NAME!r}: instantvision obs setup makes one"
        lines = [f"source {NAME!r} ({self.input_kind}) shows {self.shows}"]
        lines.append(f"in {', '.join(self.scenes)}" if self.scenes else "in no scene")
        lines += [f"sound of {name!r} is {offset:g} ms later" for name, offset in self.offsets_ms.items()]
        return "\n".join(lines)


def own_camera() -> str | None:
    """Device file of our virtual camera; None where there is none."""
    own = [each.path for each in devices.list_virtual_cameras() if devices.is_own(each.name)]
    return own[0] if own else None


def set_up(link: ObsLink, changes: Journal, wanted: Wanted) -> ObsStatus:
    """Bring OBS to what is wanted; what is so already stays untouched.

    Raises:
        ConfigError: a scene or audio source does not exist, or a source of another kind has our name.
        InstantVisionError: OBS cannot be reached, or refuses.
    """
    scene = _scene(link, wanted.scene)
    if wanted.audio is not None:
        _require_audio(link, wanted.audio)
    entry = changes.read() or {"created": False, "settings": None, "items": [], "offsets": {}}
    _make_input(link, changes, entry, wanted, scene)
    _make_item(link, changes, entry, scene)
    if wanted.audio is not None and wanted.latency_ms is not None:
        _delay_sound(link, changes, entry, wanted.audio, round(wanted.latency_ms))
    return status(link, changes)


def status(link: ObsLink, changes: Journal) -> ObsStatus:
    """What is set up in OBS at this moment, by us or by hand.

    Raises:
        InstantVisionError: OBS cannot be reached.
    """
    entry = changes.read()
    kind = _inputs(link).get(NAME)
    settings = link.request("GetInputSettings", {"inputName": NAME})["inputSettings"] if kind else {}
    present = _inputs(link)
    offsets = {name: _offset(link, name) for name in (entry or {}).get("offsets", {}) if name in present}
    return ObsStatus(
        input_kind=kind,
        shows=settings.get("input") or settings.get("device_id"),
        scenes=tuple(scene for scene in _scenes(link) if kind and _items(link, scene)),
        offsets_ms=offsets,
        undo=entry is not None,
    )


def undo(link: ObsLink, changes: Journal) -> tuple[str, ...]:
    """Put back what set_up has changed; what the user has changed or removed since then stays as it is.

    Returns:
        A sentence for everything that was put back or left.

    Raises:
        InstantVisionError: OBS cannot be reached, or refuses; the journal stays for another attempt.
    """
    entry = changes.read()
    if entry is None:
        return ()
    present = _inputs(link)
    told = [
        _restore_offset(link, name, was) if name in present else f"{name!r} is gone, its sync offset with it"
        for name, was in entry["offsets"].items()
    ]
    if NAME in present and entry["created"]:
        _remove_input(link)
        told.append(f"source {NAME!r} removed")
    elif NAME in present:
        told += [_remove_item(link, item) for item in entry["items"]]
        if entry["settings"] is not None:
            told.append(_restore_settings(link, entry["settings"]))
    changes.clear()
    return tuple(told)


def _make_input(link: ObsLink, changes: Journal, entry: dict[str, Any], wanted: Wanted, scene: str) -> None:
    kind = _inputs(link).get(NAME)
    if kind is None:
        entry["created"], entry["items"] = True, []
        changes.write(entry)
        made = {
            "sceneName": scene,
            "inputName": NAME,
            "inputKind": wanted.kind,
            "inputSettings": wanted.settings,
        }
        item = link.request("CreateInput", made)["sceneItemId"]
        _fit_to_canvas(link, scene, item)
        return
    if kind != wanted.kind:
        raise ConfigError(
            f"OBS's source {NAME!r} is a {kind}, expected {wanted.kind}: run instantvision obs undo, or rename it"
        )
    _change_settings(link, changes, entry, wanted)


def _change_settings(link: ObsLink, changes: Journal, entry: dict[str, Any], wanted: Wanted) -> None:
    present = link.request("GetInputSettings", {"inputName": NAME})["inputSettings"]
    if present | wanted.settings == present:
        return
    if not entry["created"] and entry["settings"] is None:
        entry["settings"] = present
        changes.write(entry)
    link.request("SetInputSettings", {"inputName": NAME, "inputSettings": wanted.settings})


def _make_item(link: ObsLink, changes: Journal, entry: dict[str, Any], scene: str) -> None:
    if _items(link, scene):
        return
    entry["items"].append({"scene": scene})
    changes.write(entry)
    item = link.request("CreateSceneItem", {"sceneName": scene, "sourceName": NAME})["sceneItemId"]
    _fit_to_canvas(link, scene, item)


def _fit_to_canvas(link: ObsLink, scene: str, item: int) -> None:
    """As large as the canvas takes it, whatever the size of our picture becomes."""
    video = link.request("GetVideoSettings")
    transform = {"boundsType": BOUNDS, "boundsWidth": video["baseWidth"], "boundsHeight": video["baseHeight"]}
    link.request(
        "SetSceneItemTransform", {"sceneName": scene, "sceneItemId": item, "sceneItemTransform": transform}
    )


def _delay_sound(link: ObsLink, changes: Journal, entry: dict[str, Any], audio: str, latency_ms: int) -> None:
    present = _offset(link, audio)
    before = entry["offsets"].get(audio, {"before": present})["before"]
    if present == latency_ms and audio in entry["offsets"]:
        return
    entry["offsets"][audio] = {"before": before, "set": latency_ms}
    changes.write(entry)
    _set_offset(link, audio, latency_ms)


def _restore_offset(link: ObsLink, audio: str, was: dict[str, float]) -> str:
    if _offset(link, audio) != was["set"]:
        return f"sync offset of {audio!r} has been changed since and stays"
    _set_offset(link, audio, was["before"])
    return f"sync offset of {audio!r} is {was['before']:g} ms again"


def _restore_settings(link: ObsLink, settings: dict[str, Any]) -> str:
    link.request("SetInputSettings", {"inputName": NAME, "inputSettings": settings, "overlay": False})
    return f"settings of {NAME!r} are back"


def _remove_item(link: ObsLink, item: dict[str, str]) -> str:
    scene = item["scene"]
    found = _items(link, scene) if scene in _scenes(link) else []
    if found:
        # Ours was put on top, where the websocket lists items last.
        link.request("RemoveSceneItem", {"sceneName": scene, "sceneItemId": found[-1]})
    return f"{NAME!r} taken out of {scene!r}"


def _remove_input(link: ObsLink) -> None:
    """With its items one by one: those in scenes that are not on air would stay in OBS's file."""
    for scene in _scenes(link):
        for item in _items(link, scene):
            link.request("RemoveSceneItem", {"sceneName": scene, "sceneItemId": item})
    try:
        link.request("RemoveInput", {"inputName": NAME})
    except ObsError as error:
        # Mostly OBS has let go of it with its last item.
        if error.code != NOT_FOUND:
            raise


def _inputs(link: ObsLink) -> dict[str, str]:
    """Kind of each input, by name; without the version that newer kinds carry."""
    inputs = link.request("GetInputList")["inputs"]
    return {each["inputName"]: each["unversionedInputKind"] for each in inputs}


def _scenes(link: ObsLink) -> list[str]:
    """From the top of OBS's list."""
    return [each["sceneName"] for each in reversed(link.request("GetSceneList")["scenes"])]


def _scene(link: ObsLink, name: str | None) -> str:
    if name is None:
        return str(link.request("GetCurrentProgramScene")["currentProgramSceneName"])
    scenes = _scenes(link)
    if name not in scenes:
        raise ConfigError(f"OBS has no scene {name!r}, there is {', '.join(scenes)}: choose with --scene")
    return name


def _items(link: ObsLink, scene: str) -> list[int]:
    """Numbers of our items in a scene, from the bottom."""
    items = link.request("GetSceneItemList", {"sceneName": scene})["sceneItems"]
    return [each["sceneItemId"] for each in items if each["sourceName"] == NAME]


def _require_audio(link: ObsLink, name: str) -> None:
    names = [each for each in _inputs(link) if _has_sound(link, each)]
    if name not in names:
        there = f"there is {', '.join(names)}" if names else "and none of its sources has sound"
        raise ConfigError(f"OBS has no audio source {name!r}, {there}: choose with --audio")


def _has_sound(link: ObsLink, name: str) -> bool:
    try:
        _offset(link, name)
    except ObsError as error:
        if error.code is None:
            raise
        return False
    return True


def _offset(link: ObsLink, name: str) -> float:
    return float(link.request("GetInputAudioSyncOffset", {"inputName": name})["inputAudioSyncOffset"])


def _set_offset(link: ObsLink, name: str, offset_ms: float) -> None:
    link.request("SetInputAudioSyncOffset", {"inputName": name, "inputAudioSyncOffset": round(offset_ms)})
