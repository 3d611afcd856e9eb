"""Presets: named looks, one TOML file each, and what a mix of them asks of the model.

Those of the package lie in the folder `looks`, the user's own in `user_folder()`. A file NAME.toml is the whole
definition of the preset NAME:

    description = "One sentence."
    strength = 1.0          # optional, as in Settings
    seed = 0                # optional, as in Settings
    [styles]                # the model's styles, weighted
    oil = 1.0

Knows nothing of the model: which styles exist is checked by whoever holds the weights.
"""

import difflib
import logging
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.errors import ConfigError, UnknownPreset

log = logging.getLogger(__name__)

LOOKS = Path(__file__).parent / "looks"
# A preset is a few lines; whatever is much longer is something else, and is not read.
FILE_MAX_BYTES = 65536
HINTS = {"description": 'add description = "One sentence."', "styles": "add [styles] and below it oil = 1.0"}

# Names come in from files, URLs and hotkeys: a slug can never be a path.
SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named look.

    Args:
        name: slug, as in `--preset NAME`.
        description: one sentence for the person who chooses.
        styles: weight of each of the model's styles, positive.
        strength: how far from the picture to start unless the user says otherwise, 0..1.
        seed: of the noise field unless the user says otherwise.
    """

    name: str
    description: str
    styles: Mapping[str, float]
    strength: float = Settings.strength
    seed: int = Settings.seed

    def __post_init__(self) -> None:
        if not SLUG.fullmatch(self.name):
            raise ConfigError(
                f"preset name is {self.name!r}, expected lower-case letters, digits and single dashes"
            )
        _check_description(self.description)
        _check_styles(self.styles)
        _check_start(self.strength, self.seed)

    def to_json(self) -> dict[str, Any]:
        """The preset as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        styles = ", ".join(f"{style} {weight:g}" for style, weight in self.styles.items())
        lines = (f"{self.name}: {self.description}", f"styles    {styles}", f"strength  {self.strength:g}")
        return "\n".join((*lines, f"seed      {self.seed}"))


# The values come out of a file: whatever their annotations say, their types are checked as well.


def _check_description(description: object) -> None:
    if not isinstance(description, str) or not re.fullmatch(r"\S[^\n]*\.", description):
        raise ConfigError(f"description is {description!r}, expected one sentence with a full stop")


def _check_styles(styles: object) -> None:
    if not isinstance(styles, Mapping) or not styles:
        raise ConfigError(f"styles is {styles!r}, expected a table such as [styles] oil = 1.0")
    for style, weight in styles.items():
        if not (_is_number(weight) and weight > 0):
            raise ConfigError(f"style {style} has weight {weight!r}, expected a positive number")


def _check_start(strength: object, seed: object) -> None:
    if not isinstance(strength, int | float) or isinstance(strength, bool):
        raise ConfigError(f"strength is {strength!r}, expected a number from 0 to 1")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"seed is {seed!r}, expected a whole number")
    # The ranges are defined where the engine reads them.
    Settings(strength=strength, seed=seed)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_preset(path: Path) -> Preset:
    """Read one preset file; the preset's name is the file's.

    Raises:
        ConfigError: the file is no TOML, has an unknown key, lacks one, or a value is out of range.
    """
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes, expected a preset of a few lines")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read preset file {path}: {error}") from error
    known = {field.name for field in fields(Preset)} - {"name"}
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"{path}: unknown key {unknown[0]}, expected {', '.join(sorted(known))}")
    for key, hint in HINTS.items():
        if key not in table:
            raise ConfigError(f"{path}: {key} is missing: {hint}")
    try:
        return Preset(name=path.stem, **table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_presets(folder: Path) -> dict[str, Preset]:
    """Read every preset file of a folder, sorted by name.

    Raises:
        ConfigError: one of the files is malformed.
    """
    return {path.stem: read_preset(path) for path in sorted(folder.glob("*.toml"))}


def user_folder() -> Path:
    """Where the user's own presets lie, if there are any."""
    import platformdirs

    return Path(platformdirs.user_config_dir("instantvision", appauthor=False)) / "presets"


@cache
def packaged_presets() -> Mapping[str, Preset]:
    """The presets of the package, read once."""
    return MappingProxyType(read_presets(LOOKS))


def read_own_preset(path: Path) -> Preset:
    """Read a preset that is not of the package: it has a name of its own, and styles that there are.

    Raises:
        ConfigError: as read_preset, or the name is taken, or a style unknown.
    """
    preset = read_preset(path)
    try:
        check_own(preset)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return preset


def check_own(preset: Preset) -> None:
    """Check what a preset of the user's must not have in common with the package's, and what it must.

    Raises:
        ConfigError: its name is one of the package's, or it asks for a style that none of those has.
    """
    if preset.name in packaged_presets():
        raise ConfigError(f"{preset.name} is a preset of the package: choose another name")
    styles = sorted({style for look in packaged_presets().values() for style in look.styles})
    for style in preset.styles:
        if style not in styles:
            raise ConfigError(f"no style {style!r}{_nearest(style, styles)} There are: {', '.join(styles)}")


@dataclass(frozen=True)
class _Loaded:
    presets: Mapping[str, Preset]
    faults: Mapping[str, ConfigError]


@cache
def _loaded() -> _Loaded:
    presets, faults = dict(packaged_presets()), dict[str, ConfigError]()
    for path in sorted(user_folder().glob("*.toml")):
        try:
            presets[path.stem] = read_own_preset(path)
        except ConfigError as error:
            # A slip in one file must not end a show that uses others; who asks for this one is told again.
            log.warning("preset left out: %s", error)
            faults[path.stem] = error
    by_name = dict(sorted(presets.items()))
    return _Loaded(MappingProxyType(by_name), MappingProxyType(faults))


def load_presets() -> Mapping[str, Preset]:
    """The presets of the package and the user's own, sorted by name; read once, a broken file of the user left out."""
    return _loaded().presets


def reload_presets() -> None:
    """Read the user's own again when they are next asked for."""
    _loaded.cache_clear()


def find(name: str, presets: Mapping[str, Preset] | None = None) -> Preset:
    """Return the preset of that name.

    Raises:
        UnknownPreset: there is none; the message names the nearest one and all others.
        ConfigError: its file is broken.
    """
    faults = _loaded().faults if presets is None else {}
    presets = load_presets() if presets is None else presets
    if name not in presets:
        if name in faults:
            raise faults[name]
        raise UnknownPreset(f"no preset {name!r}{_nearest(name, presets)} There are: {', '.join(presets)}")
    return presets[name]


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name.lower(), names, n=1)
    return f": did you mean {matches[0]}?" if matches else "."


def resolve(mix: Mix, presets: Mapping[str, Preset] | None = None) -> dict[str, float]:
    """Turn a mix of presets into weights of the model's styles, which add up to 1.

    Raises:
        UnknownPreset: the mix names a preset that does not exist.
    """
    weights: dict[str, float] = {}
    for name, share in mix.parts:
        styles = find(name, presets).styles
        total = sum(styles.values())
        for style, weight in styles.items():
            weights[style] = weights.get(style, 0.0) + share * weight / total
    return weights


def settings_for(
    mix: Mix,
    *,
    size: Size | None = None,
    steps: int = Settings.steps,
    strength: float | None = None,
    seed: int | None = None,
) -> Settings:
    """Settings for a mix, in which what is left None comes from its presets.

    The strength is their weighted mean, the seed the first one's; a size of None is the default, for the command
    to replace once it knows the device.

    Raises:
        UnknownPreset: the mix names a preset that does not exist.
        ConfigError: a value is out of range.
    """
    parts = [(find(name), share) for name, share in mix.parts]
    if strength is None:
        # The shares add up to 1 but for rounding, which may not carry a full strength beyond its range.
        strength = min(1.0, sum(preset.strength * share for preset, share in parts))
    seed = parts[0][0].seed if seed is None else seed
    return Settings(mix=mix, size=size or Settings().size, steps=steps, strength=strength, seed=seed)
