from pathlib import Path

import pytest

from instantvision.pipeline.config import Mix
from instantvision.pipeline.errors import ConfigError, UnknownPreset
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.presets import (
    Preset,
    find,
    load_presets,
    read_preset,
    read_presets,
    resolve,
    settings_for,
)

OIL = Preset(name="oil", description="Oil.", styles={"oil": 1.0})
DAWN = Preset(name="dawn", description="Dawn.", styles={"oil": 3.0, "neon": 1.0}, strength=0.5, seed=7)
LOOKS = {"oil": OIL, "dawn": DAWN}


def test_every_packaged_preset_is_valid_and_uses_styles_that_the_weights_have() -> None:
    presets, styles = load_presets(), set(Mini.load().style_names)
    assert len(presets) >= 9
    assert "photo" in presets
    for name, preset in presets.items():
        assert set(preset.styles) <= styles, f"{name} wants {set(preset.styles) - styles}"


def test_a_file_is_a_preset_with_the_name_of_the_file(tmp_path: Path) -> None:
    text = 'description = "Warm."\nstrength = 0.8\nseed = 3\n[styles]\noil = 0.5\nink = 1\n'
    (tmp_path / "warm-day.toml").write_text(text)
    preset = read_presets(tmp_path)["warm-day"]
    assert preset == Preset(
        name="warm-day", description="Warm.", styles={"oil": 0.5, "ink": 1}, strength=0.8, seed=3
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a", "description = ", "cannot read preset file"),
        ("a", 'description = "A."', "styles is missing"),
        ("a", "[styles]\noil = 1.0", "description is missing"),
        ("a", 'description = "A."\ncolour = 1\n[styles]\noil = 1.0', "unknown key colour"),
        ("a", 'description = "A."\nstyles = 3', "styles is 3"),
        ("a", 'description = "A."\n[styles]', r"styles is \{\}"),
        ("a", 'description = "A."\n[styles]\noil = -1.0', "weight -1.0"),
        ("a", 'description = "A."\n[styles]\noil = "much"', "weight 'much'"),
        ("a", 'description = "A."\n[styles]\noil = nan', "weight nan"),
        ("a", 'description = "A."\nstrength = 2.0\n[styles]\noil = 1.0', "strength is 2.0"),
        ("a", 'description = "A."\nstrength = true\n[styles]\noil = 1.0', "strength is True"),
        ("a", 'description = "A."\nseed = 1.5\n[styles]\noil = 1.0', "seed is 1.5"),
        ("a", 'description = "A."\nseed = -1\n[styles]\noil = 1.0', "seed is -1"),
        ("a", 'description = "no full stop"\n[styles]\noil = 1.0', "expected one sentence"),
        ("a", 'description = ["A."]\n[styles]\noil = 1.0', "expected one sentence"),
        ("Not A Slug", 'description = "A."\n[styles]\noil = 1.0', "preset name is 'Not A Slug'"),
    ],
)
def test_a_malformed_file_is_refused_with_the_reason(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_preset(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read preset file .*none\.toml"):
        read_preset(tmp_path / "none.toml")


def test_an_unknown_preset_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(UnknownPreset, match=r"no preset 'Oli': did you mean oil\? There are: oil, dawn"):
        find("Oli", LOOKS)


def test_an_unknown_preset_that_is_like_none_only_lists_all() -> None:
    with pytest.raises(UnknownPreset, match=r"^no preset 'xyz'\. There are: oil, dawn$"):
        find("xyz", LOOKS)


def test_a_mix_of_presets_becomes_style_weights_that_add_up_to_one() -> None:
    assert resolve(Mix.parse("oil"), LOOKS) == {"oil": 1.0}
    assert resolve(Mix.parse("dawn"), LOOKS) == {"oil": 0.75, "neon": 0.25}
    assert resolve(Mix.parse("oil:1,dawn:3"), LOOKS) == pytest.approx(
        {"oil": 0.25 + 0.75 * 0.75, "neon": 0.1875}
    )


def test_what_the_user_leaves_out_comes_from_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instantvision.pipeline.presets.load_presets", lambda: LOOKS)
    settings = settings_for(Mix.parse("dawn:1,oil:3"))
    assert (settings.strength, settings.seed) == (pytest.approx(0.875), 7)
    settings = settings_for(Mix.parse("dawn"), strength=0.25, seed=1)
    assert (settings.strength, settings.seed) == (0.25, 1)


def test_the_mean_of_full_strengths_is_the_full_strength() -> None:
    names = list(load_presets())[:7]
    mix = Mix(tuple((name, 0.1 + index / 7) for index, name in enumerate(names)))
    assert settings_for(mix).strength == pytest.approx(1.0)
