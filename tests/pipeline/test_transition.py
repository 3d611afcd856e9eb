import pytest
from hypothesis import given
from hypothesis import strategies as st

from instantvision.pipeline.config import Mix
from instantvision.pipeline.transition import Fade, Look, apart, blend

OIL = Look(mix=Mix.parse("oil"), strength=1.0)
INK = Look(mix=Mix.parse("ink"), strength=0.5)
FADE = Fade(start=OIL, target=INK, begin_s=10.0, duration_s=2.0)

mixes = st.dictionaries(st.sampled_from(["oil", "ink", "photo"]), st.floats(1e-3, 1e3), min_size=1).map(
    lambda weights: Mix(tuple(weights.items()))
)
looks = st.builds(Look, mix=mixes, strength=st.floats(0, 1))


def test_a_quarter_of_the_way() -> None:
    look = FADE.at(10.5)
    assert dict(look.mix.parts) == pytest.approx({"oil": 0.75, "ink": 0.25})
    assert look.strength == pytest.approx(0.875)


def test_both_ends_are_exact() -> None:
    assert FADE.at(9.0) is FADE.at(10.0) is OIL
    assert FADE.at(12.0) is FADE.at(1e9) is INK


def test_looks_are_apart_by_what_they_do_not_share() -> None:
    half = Look(mix=Mix.parse("oil:0.5,ink:0.5"), strength=0.9)
    assert apart(OIL, OIL) == 0
    assert apart(OIL, half) == apart(half, OIL) == pytest.approx(0.5)
    assert apart(OIL, INK) == pytest.approx(1)
    assert apart(OIL, Look(mix=OIL.mix, strength=0.7)) == pytest.approx(0.3)


def test_no_duration_is_a_cut() -> None:
    assert Fade(start=OIL, target=INK, begin_s=10.0, duration_s=0.0).at(10.0) is INK


@given(looks, looks, st.floats(0, 1))
def test_every_look_on_the_way_is_a_valid_one(start: Look, target: Look, share: float) -> None:
    look = blend(start, target, share)
    assert sum(weight for _, weight in look.mix.parts) == pytest.approx(1)
    low, high = sorted((start.strength, target.strength))
    assert low <= look.strength <= high


@given(mixes, looks, st.floats(0, 1))
def test_a_strength_above_0_stays_above_0(mix: Mix, target: Look, share: float) -> None:
    """At 0 the denoiser's buffers vanish: a GPU would record another graph in the middle of the fade."""
    if target.strength > 0:
        assert blend(Look(mix=mix, strength=0.5), target, share).strength > 0
