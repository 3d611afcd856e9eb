"""The user's own presets as files: saved from a mix, taken in from elsewhere, given away.

A file is validated as a whole before anything is written, and nothing is replaced unless the caller says so.
"""

import json
from pathlib import Path

from instantvision.pipeline.config import Settings
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.outputs import check_output, write_whole
from instantvision.pipeline.presets import (
    Preset,
    check_own,
    find,
    read_own_preset,
    reload_presets,
    resolve,
    user_folder,
)


def save(name: str, settings: Settings, description: str | None = None, *, force: bool = False) -> Path:
    """Save the look of some settings as a preset of the user's own; returns its file.

    Args:
        name: slug.
        settings: whose mix, strength and seed the preset gets.
        description: one sentence; None says what it is mixed of.
        force: replace a preset of that name.

    Raises:
        ConfigError: the name or description is malformed, the name the package's, or taken and not `force`.
        UnknownPreset: the mix names a preset that does not exist.
        SinkError: the file cannot be written.
    """
    preset = Preset(
        name=name,
        description=f"A mix of {settings.mix}." if description is None else description,
        # Rounded, as a person would write them; resolve makes their sum 1 again.
        styles={style: round(weight, 4) or weight for style, weight in resolve(settings.mix).items()},
        strength=settings.strength,
        seed=settings.seed,
    )
    return _keep(preset, force)


def take_in(path: Path, *, force: bool = False) -> Path:
    """Copy a preset file into the user's folder; returns the copy. Its name is the file's.

    Raises:
        ConfigError: the file is no valid preset, its name the package's, or taken and not `force`.
        SinkError: the copy cannot be written.
    """
    return _keep(read_own_preset(path), force)


def give_away(name: str, path: Path, *, force: bool = False) -> None:
    """Write any preset to a file.

    Raises:
        UnknownPreset: there is none of that name.
        ConfigError: the file exists and not `force`.
        SinkError: it cannot be written.
    """
    text = to_toml(find(name))
    check_output(path, (".toml",))
    _require_free(path, force)
    write_whole(path, text.encode())


def to_toml(preset: Preset) -> str:
    """The text of a preset's file."""
    lines = [
        f"description = {_quoted(preset.description)}",
        f"strength = {float(preset.strength)!r}",
        f"seed = {preset.seed}",
        "",
        "[styles]",
        *(f"{_quoted(style)} = {float(weight)!r}" for style, weight in preset.styles.items()),
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for this one sign that only TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _keep(preset: Preset, force: bool) -> Path:
    check_own(preset)
    folder = user_folder()
    path = folder / f"{preset.name}.toml"
    # The name is a slug already; this holds even if slugs are ever defined otherwise.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{path} is a link out of {folder}: remove it")
    _require_free(path, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}: check its owner") from error
    write_whole(path, to_toml(preset).encode())
    reload_presets()
    return path


def _require_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: choose another name, or replace it with --force")
