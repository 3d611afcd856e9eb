"""Presets: named looks, one TOML file each in the folder `looks`, and what a mix of them asks of the model.

A file `looks/NAME.toml` is the whole definition of the preset NAME:

    description = "One sentence."
    strength = 1.0          # optional, as in Settings
    seed = 0                # optional, as in Settings
    [styles]                # the model's styles, weighted
    oil = 1.0

Knows nothing of the model: which styles exist is checked by whoever holds the weights.
"""

import difflib
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

LOOKS = Path(__file__).parent / "looks"

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
        try:
            _check_description(self.description)
            _check_styles(self.styles)
            _check_start(self.strength, self.seed)
        except ConfigError as error:
            raise ConfigError(f"preset {self.name}: {error}") from error

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
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read preset file {path}: {error}") from error
    known = {field.name for field in fields(Preset)} - {"name"}
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"{path}: unknown key {unknown[0]}, expected {', '.join(sorted(known))}")
    if missing := sorted({"description", "styles"} - set(table)):
        raise ConfigError(f"{path}: {missing[0]} is missing")
    return Preset(name=path.stem, **table)


def read_presets(folder: Path) -> dict[str, Preset]:
    """Read every preset file of a folder, sorted by name.

    Raises:
        ConfigError: one of the files is malformed.
    """
    return {path.stem: read_preset(path) for path in sorted(folder.glob("*.toml"))}


@cache
def load_presets() -> Mapping[str, Preset]:
    """The presets of the package, read once."""
    return MappingProxyType(read_presets(LOOKS))


def find(name: str, presets: Mapping[str, Preset] | None = None) -> Preset:
    """Return the preset of that name.

    Raises:
        UnknownPreset: there is none; the message names the nearest one and all others.
    """
    presets = load_presets() if presets is None else presets
    if name not in presets:
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
