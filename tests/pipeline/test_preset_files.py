import logging
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instantvision.pipeline.config import Mix, Settings
from instantvision.pipeline.control import Control
from instantvision.pipeline.errors import ConfigError, SinkError
from instantvision.pipeline.preset_files import give_away, save, take_in, to_toml
from instantvision.pipeline.presets import (
    Preset,
    find,
    load_presets,
    packaged_presets,
    read_preset,
    reload_presets,
    resolve,
    settings_for,
    user_folder,
)

WARM = Settings(mix=Mix.parse("oil:0.7,ink:0.3"), strength=0.6, seed=9)
INK = 'description = "Ink."\n[styles]\nink = 1.0\n'


def test_a_saved_mix_is_a_preset_like_any_other(own_presets: Path) -> None:
    path = save("warm-day", WARM)
    assert path == own_presets / "warm-day.toml"
    assert list(load_presets()) == sorted([*packaged_presets(), "warm-day"])
    made = settings_for(Mix.parse("warm-day"))
    assert (made.strength, made.seed) == (0.6, 9)
    assert resolve(made.mix) == pytest.approx({"oil": 0.7, "ink": 0.3})
    assert find("warm-day").description == "A mix of oil:0.7,ink:0.3."
    control = Control(Settings())
    assert str(control.apply({"preset": "warm-day:0.5,neon:0.5"}, by="dock").settings.mix).startswith(
        "warm-day"
    )
    control.apply({"preset": "photo"}, by="dock")
    while str(control.apply({"look": "next"}, by="cli").settings.mix) != "warm-day":
        assert str(control.state.settings.mix) != "anime", "walked past it"


@pytest.mark.parametrize(
    "name", ["../x", "..", "", "a/b", "a\\b", "/etc/x", "A", "a.b", "a b", "a--b", "a\n"]
)
def test_a_name_is_no_path(own_presets: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="preset name is"):
        save(name, WARM)
    assert list(own_presets.parents[1].rglob("*.toml")) == []


def test_a_link_out_of_the_folder_is_not_followed(own_presets: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.toml"
    outside.write_text("mine")
    (own_presets / "x.toml").symlink_to(outside)
    with pytest.raises(ConfigError, match="link"):
        save("x", WARM, force=True)
    assert outside.read_text() == "mine"


def test_nothing_is_replaced_silently(own_presets: Path, tmp_path: Path) -> None:
    path = save("mine", WARM)
    before, given_file = path.read_bytes(), tmp_path / "mine.toml"
    given_file.write_text(INK)
    for replace in (
        lambda force: save("mine", Settings(), force=force),
        lambda force: take_in(given_file, force=force),
    ):
        path.write_bytes(before)
        with pytest.raises(ConfigError, match=r"mine\.toml exists: .*--force"):
            replace(False)
        assert path.read_bytes() == before
        replace(True)
        assert path.read_bytes() != before
    with pytest.raises(ConfigError, match="exists"):
        give_away("oil", given_file)
    assert given_file.read_text() == INK
    give_away("oil", given_file, force=True)
    assert read_preset(given_file).styles == {"oil": 1.0}


def test_the_package_keeps_its_names(own_presets: Path) -> None:
    with pytest.raises(ConfigError, match="oil is a preset of the package: choose another name"):
        save("oil", WARM, force=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("description = ", "cannot read preset file"),
        ("[styles]\noil = 1.0", 'description is missing: add description = "One sentence."'),
        ('description = "A."', r"styles is missing: add \[styles\]"),
        (
            'description = "A."\ncolour = 1\n[styles]\noil = 1.0',
            "unknown key colour, expected description, seed",
        ),
        ('description = "A."\nstrength = 2.0\n[styles]\noil = 1.0', "strength is 2.0, expected 0 to 1"),
        ('description = "A."\n[styles]\noli = 1.0', r"no style 'oli': did you mean oil\? There are: anime"),
        ("# " + 70000 * "x", "bytes, expected a preset of a few lines"),
    ],
)
def test_a_broken_file_is_told_by_name_and_harms_no_other(
    own_presets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, words: str
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        take_in(broken)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(own_presets.iterdir()) == []

    # The same, put there by hand.
    broken.rename(own_presets / "broken.toml")
    reload_presets()
    with caplog.at_level(logging.WARNING):
        assert load_presets() == packaged_presets()
    assert str(own_presets / "broken.toml") in caplog.text
    with pytest.raises(ConfigError, match=words):
        find("broken")


@pytest.mark.parametrize("name", ["none.toml", "."])
def test_a_file_that_cannot_be_read(own_presets: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read preset file"):
        take_in(tmp_path / name)


def test_what_is_given_away_can_be_taken_in(own_presets: Path, tmp_path: Path) -> None:
    save("mine", WARM, 'Two "quoted" words.')
    give_away("mine", tmp_path / "theirs.toml")
    take_in(tmp_path / "theirs.toml")
    mine, theirs = find("mine"), find("theirs")
    assert mine.to_json() | {"name": ""} == theirs.to_json() | {"name": ""}


def test_it_is_not_given_to_a_folder_that_is_not_there(own_presets: Path, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="does not exist"):
        give_away("oil", tmp_path / "nowhere" / "oil.toml")
    with pytest.raises(SinkError, match=r"expected \.toml"):
        give_away("oil", tmp_path / "oil.txt")


def test_a_folder_that_cannot_be_made_is_told(own_presets: Path) -> None:
    own_presets.rmdir()
    own_presets.write_text("a file")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        save("mine", WARM)


def test_without_a_folder_there_are_the_packages(own_presets: Path) -> None:
    own_presets.rmdir()
    reload_presets()
    assert load_presets() == packaged_presets()
    assert user_folder().name == "presets"


@given(
    description=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=30),
    style=st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    weight=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    strength=st.floats(0, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_preset_survives_its_file(
    description: str, style: str, weight: float, strength: float, seed: int
) -> None:
    preset = Preset(
        name="a", description=f"A{description}.", styles={style: weight}, strength=strength, seed=seed
    )
    assert {"name": "a", **tomllib.loads(to_toml(preset))} == preset.to_json()
