"""How much work a frame is given: on synthetic motion, deterministic, without a model."""

import itertools

import cv2
import numpy as np
import pytest

from instantvision.pipeline.config import Settings
from instantvision.pipeline.temporal import (
    SETTLE_FRAMES,
    SKIP_PATIENCE,
    Plan,
    Planner,
    Skipper,
    View,
    Watch,
    Work,
    correlation,
    shrunken,
)

SIZE = 256


def scene(seed=0):
    """A smooth picture with edges, uint8 [256, 256, 3]."""
    coarse = np.random.default_rng(seed).integers(30, 220, (9, 9, 3), np.uint8)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def noisy(pixels, seed, levels=3.0):
    noise = np.random.default_rng(seed).normal(0, levels, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def lit(pixels, gain):
    return np.clip(pixels * gain, 0, 255).astype(np.uint8)


def with_hand(pixels, left):
    picture = pixels.copy()
    picture[120:170, left : left + 40] = (220, 170, 140)
    return picture


def view(before, now):
    watch = Watch()
    watch.look(before)
    watch.painted()
    return watch.look(now)


def planner(**changes):
    settings = Settings(**{"steps_ceiling": 4} | changes)
    return Planner(settings, settings.steps)


def works(planner, pictures):
    return [planner.plan(picture).work for picture in pictures]


def test_the_noise_of_a_camera_is_no_motion():
    assert all(view(noisy(scene(), 1), noisy(scene(), seed)) is View.STILL for seed in range(2, 20))


@pytest.mark.parametrize("step_px", [2, 8, 40])
def test_a_hand_that_moves_is_motion(step_px):
    assert view(with_hand(scene(), 60), with_hand(scene(), 60 + step_px)) is View.MOVED


@pytest.mark.parametrize("shift_px", [2, 8])
def test_a_camera_that_turns_is_motion(shift_px):
    assert view(scene(), np.roll(scene(), shift_px, 1)) is View.MOVED


@pytest.mark.parametrize("gain", [0.6, 0.9, 1.1])
def test_light_that_flickers_is_no_cut(gain):
    assert view(noisy(scene(), 1), noisy(lit(scene(), gain), 2)) is View.MOVED


@pytest.mark.parametrize("seed", range(1, 9))
def test_another_scene_is_a_cut(seed):
    assert view(scene(), scene(seed)) is View.CUT


def test_the_first_picture_and_another_size_are_cuts():
    assert Watch().look(scene()) is View.CUT
    assert view(scene(), scene()[:128]) is View.CUT


def test_to_and_from_black_is_a_cut_and_black_stays_still():
    black = np.zeros_like(scene())
    assert view(scene(), black) is View.CUT
    assert view(black, scene()) is View.CUT
    assert view(black, black) is View.STILL
    # A covered lens that gets a little lighter all over.
    assert view(black, black + 20) is View.MOVED


def test_correlation_knows_nothing_of_light():
    small = shrunken(scene())
    assert small.shape == (32, 32, 3)
    assert correlation(small, lit(small, 0.7)) == pytest.approx(1, abs=1e-3)
    assert correlation(small, 255 - small) == pytest.approx(-1, abs=1e-3)


def test_a_cut_has_all_steps_at_once_and_the_next_frame_few():
    ours = planner()
    frames = [scene(), with_hand(scene(), 60), scene(5), with_hand(scene(5), 60)]
    assert works(ours, frames) == [Work.FULL, Work.WARM, Work.FULL, Work.WARM]


def test_a_fade_needs_no_full_frame_before_the_scene_is_another():
    shares = np.linspace(0, 1, 30)
    fade = [((1 - share) * scene() + share * scene(3)).astype(np.uint8) for share in shares]
    done = works(planner(), fade)
    assert done[0] is Work.FULL
    assert Work.FULL not in done[1:]
    assert done.count(Work.WARM) > 10


def test_a_still_scene_is_one_frame_of_work():
    ours = planner()
    assert works(ours, [scene(), with_hand(scene(), 60)]) == [Work.FULL, Work.WARM]
    still = [noisy(with_hand(scene(), 60), seed) for seed in range(8)]
    done = [ours.plan(still[i % 8]).work for i in range(600)]
    assert done.count(Work.SETTLE) == 1
    assert done.index(Work.SETTLE) == SETTLE_FRAMES - 1
    assert done.count(Work.REPEAT) == 599


def test_after_a_full_frame_there_is_nothing_to_settle():
    assert works(planner(), [scene()] * 60) == [Work.FULL] + [Work.REPEAT] * 59


def test_the_first_changed_frame_is_painted():
    assert works(planner(), [scene()] * 30 + [with_hand(scene(), 60)])[-1] is Work.WARM


def test_what_changes_too_slowly_for_two_frames_to_tell_is_noticed():
    darker = [lit(scene(), 1 - i / 1000) for i in range(100)]
    done = works(planner(), darker)
    assert 2 <= done.count(Work.WARM) < 50


def test_without_steps_there_is_nothing_to_take_over():
    frames = [scene(), scene(), with_hand(scene(), 60)]
    assert works(Planner(Settings(strength=0.0), 0), frames) == [Work.FULL, Work.REPEAT, Work.FULL]


@pytest.mark.parametrize(("steps", "expected"), [(8, 4), (2, 2), (1, 1)])
def test_a_warm_frame_never_has_more_steps_than_a_full_one(steps, expected):
    ours = planner(steps=steps, epsilon=0.0)
    ours.plan(scene())
    assert ours.plan(with_hand(scene(), 60)) == Plan(Work.WARM, tuple(range(expected)))


def test_a_look_that_changes_is_painted_all_over_in_few_steps_and_once_with_all_when_it_is_reached():
    ours = planner(steps_ceiling=3)
    ours.plan(scene())
    plans = []
    for frame in range(8):
        if frame < 5:
            ours.change_look()
        plans.append(ours.plan(scene()))
    assert plans[:5] == [Plan(Work.FADE, (0, 1, 2))] * 5
    assert [plan.work for plan in plans[5:]] == [Work.SETTLE, Work.REPEAT, Work.REPEAT]


def test_a_fade_ends_in_all_steps_while_something_moves_too():
    ours = planner()
    ours.plan(scene())
    ours.change_look()
    frames = [with_hand(scene(), left) for left in (60, 80, 100)]
    assert works(ours, frames) == [Work.FADE, Work.SETTLE, Work.WARM]


def test_a_cut_within_a_fade_has_all_steps():
    ours = planner()
    ours.plan(scene())
    ours.change_look()
    assert works(ours, [scene(5), scene(5)]) == [Work.FULL, Work.REPEAT]


def wholes(planner, pictures, moved=0.1):
    """Which step of each frame is whole, where so much of every picture is measured to have moved."""
    plans = []
    for picture in pictures:
        plans.append(planner.plan(picture))
        planner.measured(plans[-1], [moved, *[0.5] * 3])
    return [plan.whole for plan in plans]


def hand_in(frames):
    return [with_hand(scene(), 20 + 4 * i) for i in range(frames)]


def test_deep_features_are_renewed_a_step_a_frame_in_turn():
    assert wholes(planner(temporal="full"), hand_in(9)) == [None, 1, 2, 3, 0, 1, 2, 3, 0]
    assert wholes(planner(temporal="warm"), hand_in(5)) == [None] * 5


def test_deep_features_are_all_renewed_while_most_of_the_picture_moves():
    ours = planner(temporal="full")
    assert wholes(ours, hand_in(4), moved=0.9) == [None, 1, None, None]
    assert wholes(ours, hand_in(3)[::-1]) == [None, 2, 3]


def test_with_deep_features_no_step_is_left_out():
    ours = planner(temporal="full", epsilon=1.0)
    for picture in hand_in(60):
        plan = ours.plan(picture)
        ours.measured(plan, [0.1, 0, 0, 0])
    assert plan.kept == (0, 1, 2, 3)


def test_every_step_is_whole_where_the_look_changes():
    ours = planner(temporal="full")
    ours.plan(scene())
    ours.change_look()
    assert ours.plan(with_hand(scene(), 60)) == Plan(Work.FADE, (0, 1, 2, 3), None)


def feed(skipper, changes_of, frames):
    """Numbers of so many frames; the count of steps each of them was made with."""
    counts = []
    for _ in range(frames):
        counts.append(len(skipper.kept))
        skipper.measured(skipper.kept, changes_of(skipper.kept))
    return counts


def merged(change):
    """A step does the work of those left out before it."""
    return lambda kept: [change * (step - before) for before, step in itertools.pairwise(kept)]


def test_steps_that_change_little_are_left_out_down_to_the_floor():
    counts = feed(Skipper(4, 2, 0.1), merged(0.01), 40)
    assert counts == [4] * SKIP_PATIENCE + [3] * SKIP_PATIENCE + [2] * (40 - 2 * SKIP_PATIENCE)


def test_the_smallest_change_goes_first():
    skipper = Skipper(4, 1, 0.1)
    feed(skipper, lambda kept: [0.5, 0.02, 0.5], SKIP_PATIENCE)
    assert skipper.kept == (0, 1, 3)


def test_steps_come_back_at_once_one_a_frame():
    skipper = Skipper(4, 2, 0.1)
    feed(skipper, merged(0.01), 40)
    assert feed(skipper, merged(0.4), 4) == [2, 3, 4, 4]


@pytest.mark.parametrize("change", np.linspace(0.01, 0.4, 14))
def test_the_count_comes_to_rest_whatever_the_change(change):
    counts = feed(Skipper(6, 1, 0.1), merged(change), 300)
    assert len(set(counts[100:])) == 1


def test_one_quiet_frame_is_not_enough():
    skipper = Skipper(4, 2, 0.1)
    for _ in range(20):
        feed(skipper, merged(0.01), SKIP_PATIENCE - 1)
        feed(skipper, merged(0.2), 1)
    assert len(skipper.kept) == 4


def test_no_epsilon_leaves_nothing_out():
    assert feed(Skipper(4, 1, 0.0), merged(0.0), 50) == [4] * 50


def test_numbers_of_a_frame_made_otherwise_are_not_taken():
    skipper = Skipper(4, 2, 0.1)
    for _ in range(20):
        skipper.measured((0, 1), [0.01])
    assert len(skipper.kept) == 4
