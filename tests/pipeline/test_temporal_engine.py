"""What the frames of an engine take over from each other, on the CPU and, where there is one, on a GPU."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.errors import ConfigError, UnknownPreset
from instantvision.pipeline.frame_inputs import Course, LatentMemory
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.temporal import SETTLE_FRAMES, Plan, Work
from instantvision.pipeline.transition import Look, blend

SETTINGS = Settings(temporal="warm", size=Size(256, 192), epsilon=0.0, steps_ceiling=4)


@pytest.fixture
def make_engine(make_engine):
    return lambda **changes: make_engine(replace(SETTINGS, **changes))


def scene(seed=0):
    coarse = np.random.default_rng(seed).integers(30, 220, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, (256, 192), interpolation=cv2.INTER_CUBIC)


def with_hand(pixels, left):
    picture = pixels.copy()
    picture[120:170, left : left + 40] = (220, 170, 140)
    return picture


def noisy(pixels, seed):
    noise = np.random.default_rng(seed).normal(0, 3, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def play(engine, pictures):
    """Every picture's result and steps, with two on their way."""
    pendings, results = [], []
    for picture in pictures:
        pendings.append(engine.submit(picture))
        results += [pending.result() for pending in pendings[-2:-1]]
    return [*results, pendings[-1].result()], [pending.steps for pending in pendings]


def test_a_still_scene_costs_nothing_and_does_not_drift(make_engine):
    results, steps = play(make_engine(), [noisy(scene(), seed) for seed in range(100)])
    assert steps == [8] + [0] * 99
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_still_scene_after_motion_is_painted_once_more_and_then_stays(make_engine):
    pictures = [scene(), with_hand(scene(), 60)] + [noisy(with_hand(scene(), 60), seed) for seed in range(60)]
    results, steps = play(make_engine(), pictures)
    assert steps == [8, 4] + [0] * (SETTLE_FRAMES - 1) + [8] + [0] * (60 - SETTLE_FRAMES)
    settled = results[1 + SETTLE_FRAMES :]
    assert all(np.array_equal(result, settled[0]) for result in settled)


def test_a_cut_is_the_frame_that_nothing_came_before(make_engine):
    results, steps = play(make_engine(), [scene(), with_hand(scene(), 60), scene(5)])
    assert steps == [8, 4, 8]
    assert np.array_equal(results[2], make_engine(temporal="noise").stylise(scene(5)))


def test_what_does_not_move_stays_bit_by_bit_and_what_moves_is_painted(make_engine):
    first, second = play(make_engine(), [noisy(scene(), 1), noisy(with_hand(scene(), 200), 2)])[0]
    # The hand begins at column 200: the gate's softness and reach are four positions of 16 pixels.
    assert np.array_equal(first[:, :112], second[:, :112])
    alone = make_engine(temporal="noise").stylise(noisy(with_hand(scene(), 200), 2))
    hand = np.s_[128:160, 208:232]
    assert (
        np.abs(second[hand].astype(int) - alone[hand]).mean()
        < np.abs(second[hand].astype(int) - first[hand]).mean() / 4
    )


def test_nothing_stays_behind_where_something_was(make_engine):
    pictures = [with_hand(scene(), left) for left in range(20, 200, 6)]
    last = play(make_engine(), [*pictures, scene()])[0][-1]
    alone = make_engine(temporal="noise").stylise(scene())
    # Motion below the gate's limits may be a few levels behind.
    assert np.abs(last.astype(int) - alone).mean() < 4


def test_fresh_noise_differs_from_frame_to_frame_and_not_from_run_to_run(make_engine):
    one, steps = play(make_engine(temporal="off"), [scene()] * 3)
    other, _ = play(make_engine(temporal="off"), [scene()] * 3)
    assert steps == [8] * 3
    assert not np.array_equal(one[0], one[1])
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("solver", ["2m", "lcm", "tcd"])
def test_other_solvers_run_in_every_kind_of_frame(make_engine, solver):
    alone = make_engine(temporal="noise", solver=solver)
    pictures = [scene(), scene(), with_hand(scene(), 100), scene(5)]
    results, steps = play(make_engine(solver=solver), pictures)
    assert steps == [8, 0, 4, 8]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[1], results[2])
    assert np.array_equal(results[3], alone.stylise(scene(5)))
    assert not np.array_equal(results[3], make_engine(temporal="noise").stylise(scene(5)))


def test_frozen_noise_gives_one_picture_for_one_picture(make_engine):
    results, steps = play(make_engine(temporal="noise"), [scene()] * 3)
    assert steps == [8] * 3
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("change", [{"mix": Mix.parse("ink")}, {"seed": 3}, {"mirror": True}])
def test_a_changed_look_shows_at_once_on_a_still_scene(make_engine, change):
    engine = make_engine()
    before, _ = play(engine, [scene()] * 5)
    engine.update(replace(engine.settings, **change))
    after, steps = play(engine, [scene()] * 2)
    assert steps == [8, 0]
    assert not np.array_equal(before[-1], after[0])
    assert np.array_equal(after[0], make_engine(temporal="noise", **change).stylise(scene()))


def faded(engine, pictures, looks):
    """Results and steps of pictures, each in a look of its own."""
    results, steps = [], []
    for picture, look in zip(pictures, looks, strict=True):
        engine.update(replace(engine.settings, mix=look.mix, strength=look.strength))
        pending = engine.submit(picture)
        results.append(pending.result())
        steps.append(pending.steps)
    return results, steps


def fade(start, target, frames):
    looks = Look(mix=Mix.parse(start), strength=1.0), Look(mix=Mix.parse(target), strength=0.8)
    return [blend(*looks, share) for share in np.linspace(0, 1, frames)]


def test_a_fade_costs_what_moving_frames_do_and_leaves_nothing_of_the_old_look(make_engine):
    frames = 12
    # A hand in a corner; most of the picture never moves.
    pictures = [noisy(with_hand(scene(), 20 + 4 * i), i) for i in range(frames + 2)]
    ends = []
    for old in ("oil", "comic"):
        looks = fade(old, "ink", frames)
        results, steps = faded(make_engine(), pictures, [*looks, *looks[-1:] * 2])
        assert steps == [8, *[4] * (frames - 1), 8, 4]
        ends.append(results)
    assert not np.array_equal(ends[0][frames - 2], ends[1][frames - 2])
    # From the last frame of the fade on there is no telling what look it came from.
    assert all(
        np.array_equal(*pair) for pair in zip(ends[0][frames - 1 :], ends[1][frames - 1 :], strict=True)
    )


def test_a_fade_over_a_still_picture_ends_in_exactly_the_new_look(make_engine):
    looks = fade("oil", "ink", 6)
    results, steps = faded(make_engine(), [scene()] * 9, [*looks, *looks[-1:] * 3])
    assert steps == [8, 4, 4, 4, 4, 4, 8, 0, 0]
    alone = make_engine(temporal="noise", mix=looks[-1].mix, strength=looks[-1].strength).stylise(scene())
    assert np.array_equal(results[-1], alone)
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(results[:6]))


def test_a_look_that_does_not_exist_leaves_the_one_before(make_engine):
    engine = make_engine()
    before = engine.stylise(scene())
    with pytest.raises(UnknownPreset):
        engine.update(replace(engine.settings, mix=Mix.parse("oil:0.9,unknown:0.1")))
    pending = engine.submit(scene())
    assert (pending.steps, np.array_equal(pending.result(), before)) == (0, True)


def test_a_fade_draws_no_noise_and_prepares_no_full_frame(toy_model):
    course = Course(toy_model, SETTINGS)
    faded = course.with_look(replace(SETTINGS, mix=Mix.parse("ink")))
    plan = Plan(Work.FADE, (0, 1, 2, 3))
    assert faded.inputs(plan).noise.data_ptr() == course.full.noise.data_ptr()
    assert "full" not in faded.__dict__
    assert faded.inputs(plan) is faded.inputs(plan)
    assert faded.inputs(plan).shapes == course.warm(plan.kept).shapes


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def layered_model(request):
    on = request.param
    return request.getfixturevalue("layered_toy_model" if on == "cpu" else "layered_toy_model_on_gpu")


@pytest.fixture
def make_full_engine(layered_model):
    engines = []

    def make(**changes):
        engines.append(Engine(layered_model, replace(SETTINGS, **{"temporal": "full", **changes})))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_what_stands_still_stays_with_deep_features_too(make_full_engine):
    first, second = play(make_full_engine(), [noisy(scene(), 1), noisy(with_hand(scene(), 200), 2)])[0]
    assert np.array_equal(first[:, :112], second[:, :112])


def test_a_cut_fills_the_slots_that_later_frames_look_into(layered_toy_model):
    course = Course(layered_toy_model, replace(SETTINGS, temporal="full"))
    assert course.full.slots == (0, None, None, None, 1, 2, 3, None)
    engine = Engine(layered_toy_model, replace(SETTINGS, temporal="full"))
    engine.stylise(scene())
    assert (layered_toy_model.whole, layered_toy_model.shallow) == (4, 0)
    engine.stylise(with_hand(scene(), 60))
    assert (layered_toy_model.whole, layered_toy_model.shallow) == (5, 3)


def test_a_model_without_a_shallow_part_refuses_and_keeps_the_settings(make_engine):
    engine = make_engine()
    with pytest.raises(
        ConfigError, match="ToyModel has no shallow part to evaluate alone: pass --temporal warm"
    ):
        engine.update(replace(engine.settings, temporal="full"))
    assert engine.settings.temporal == "warm"
    assert engine.stylise(scene()).shape == (192, 256, 3)


def test_fades_with_deep_features_leave_nothing_of_the_old_look(make_full_engine):
    ends = []
    for old in ("oil", "comic"):
        looks = fade(old, "ink", 6)
        pictures = [with_hand(scene(), 20 + 4 * i) for i in range(8)]
        results, steps = faded(make_full_engine(), pictures, [*looks, *looks[-1:] * 2])
        assert steps == [8, 4, 4, 4, 4, 4, 8, 4]
        ends.append(results[5:])
    assert all(np.array_equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.gpu
def test_mini_paints_alike_with_deep_features_on_a_gpu():
    mini, settings = Mini.load("cuda"), replace(SETTINGS, size=Size(512, 384))
    pictures = [cv2.resize(with_hand(scene(), 20 + 6 * i), (512, 384)) for i in range(12)]
    videos = {}
    for temporal in ("warm", "full"):
        engine = Engine(mini, replace(settings, temporal=temporal))
        videos[temporal], steps = play(engine, pictures)
        engine.close()
        assert steps == [8] + [4] * 11
    differences = [
        np.abs(one.astype(int) - other).mean() for one, other in zip(*videos.values(), strict=True)
    ]
    assert differences[0] == 0
    # The same frames by another way: strokes at the hand's edge may differ.
    assert 0 < max(differences) < 4


def test_a_repeated_frame_is_the_callers_own(make_engine):
    engine = make_engine()
    first = engine.stylise(scene())
    again = engine.stylise(scene())
    assert not np.shares_memory(first, again)


def test_steps_that_do_little_are_left_out_of_later_frames(make_engine):
    engine = make_engine(epsilon=1.0, steps_floor=2)
    _, steps = play(engine, [with_hand(scene(), 20 + 6 * i) for i in range(30)])
    assert steps[1] == 4
    assert steps[-1] == 2


def test_numbers_tell_what_moved_and_what_each_step_did(toy_model):
    frame_pass, course = FramePass(toy_model), Course(toy_model, SETTINGS)
    memory = LatentMemory.empty(toy_model, SETTINGS)
    plans = [Plan(Work.FULL), Plan(Work.WARM, (0, 1, 2, 3)), Plan(Work.WARM, (0, 2))]
    numbers = []
    for plan, picture in zip(plans, (scene(), with_hand(scene(), 60), with_hand(scene(), 90)), strict=True):
        inputs, warm = course.inputs(plan), plan.work is Work.WARM
        with torch.inference_mode():
            frame_pass(torch.from_numpy(picture), inputs, mirror=False, memory=memory, warm=warm)
        numbers.append(memory.numbers.tolist())
    full, four, two = numbers
    assert full == [1, 0, 0, 0]
    assert 0 < four[0] < 0.5
    assert all(change > 0 for change in four[1:])
    assert two[1] > 0
    assert two[2:] == [0, 0]
