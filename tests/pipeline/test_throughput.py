"""Several frames on their way at once: each comes out as if it had been alone, and none before it is finished."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.errors import ConfigError, EngineError
from instantvision.pipeline.frame_inputs import Belt, frame_inputs
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.mini import Mini

SETTINGS = Settings(size=Size(64, 96), steps=4, strength=0.7, seed=3, pipeline="throughput", temporal="noise")
ALONE = replace(SETTINGS, pipeline="latency")
# Batches are added up in another order; on a GPU bfloat16 keeps 8 bits.
CPU_LEVELS, GPU_LEVELS = 1, 8


def scene(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_LINEAR)


def play(engine, changes):
    """Submit scene i with the settings changes[i]; what came out, by the index of its scene."""
    results, waiting = {}, []
    for index, settings in enumerate(changes):
        engine.update(settings)
        waiting.append((index, engine.submit(scene(index))))
        if len(waiting) == 2:
            collect(*waiting.pop(0), results)
    collect(*waiting.pop(0), results)
    return results


def collect(index, pending, results):
    if pending.delay is None:
        with pytest.raises(EngineError, match="submit as many frames as there are steps"):
            pending.result()
    else:
        results[index - pending.delay] = pending.result()


def alike(one, other, model):
    levels = CPU_LEVELS if model.device.type == "cpu" else GPU_LEVELS
    return np.abs(one.astype(int) - other.astype(int)).max() <= levels


def test_every_frame_comes_out_as_if_it_were_alone(model, make_engine):
    results = play(make_engine(SETTINGS), [SETTINGS] * 9)
    alone = make_engine(ALONE)
    assert list(results) == list(range(6))
    assert all(alike(results[index], alone.stylise(scene(index)), model) for index in results)
    assert not alike(results[0], results[1], model)


@pytest.mark.parametrize("solver", ["2m", "lcm", "tcd"])
def test_every_solver_gives_each_frame_what_is_its_own(model, make_engine, solver):
    looks = [
        replace(SETTINGS, solver=solver, spacing="trailing", seed=seed) for seed in (3, 3, 4, 4, 4, 5, 5, 5)
    ]
    results = play(make_engine(looks[0]), looks)
    assert list(results) == list(range(5))
    for index, result in results.items():
        alone = make_engine(replace(looks[index], pipeline="latency"))
        assert alike(result, alone.stylise(scene(index)), model)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_picture_is_as_many_frames_late_as_there_are_further_steps(make_engine, steps):
    results = play(
        make_engine(replace(SETTINGS, steps=steps)), [replace(SETTINGS, steps=steps)] * (steps + 1)
    )
    assert list(results) == [0, 1]


def test_frames_on_their_way_keep_their_look(model, make_engine):
    looks = [
        replace(SETTINGS, mix=Mix.parse(mix), strength=strength, seed=seed)
        for mix, strength, seed in [
            ("oil", 0.7, 3), ("oil", 0.7, 3), ("ink", 0.7, 3), ("ink:0.5,oil:0.5", 0.4, 3), ("oil", 1.0, 8),
            ("oil", 1.0, 8), ("oil", 0.2, 8), ("ink", 0.2, 1), ("ink", 0.2, 1), ("ink", 0.2, 1),
        ]
    ]  # fmt: skip
    results = play(make_engine(looks[0]), looks)
    assert list(results) == list(range(7))
    for index, look in enumerate(looks[:7]):
        alone = make_engine(replace(look, pipeline="latency"))
        assert alike(results[index], alone.stylise(scene(index)), model)


@pytest.mark.parametrize("change", [{"size": Size(112, 64)}, {"steps": 3}, {"strength": 0.0}])
def test_a_frame_of_another_form_begins_a_new_row(model, make_engine, change):
    other = replace(SETTINGS, **change)
    looks = [SETTINGS] * 5 + [other] * 4 + [SETTINGS] * 5
    results = play(make_engine(SETTINGS), looks)
    late = 0 if other.strength == 0 else other.steps - 1
    assert list(results) == [0, 1, *range(5, 9 - late), 9, 10]
    for index, result in results.items():
        alone = make_engine(replace(looks[index], pipeline="latency"))
        assert alike(result, alone.stylise(scene(index)), model)


def test_both_ways_can_be_changed_between_frames(model, make_engine):
    looks = [ALONE, *[SETTINGS] * 5, ALONE, *[SETTINGS] * 4]
    results = play(make_engine(ALONE), looks)
    assert list(results) == [0, 1, 2, 6, 7]
    alone = make_engine(ALONE)
    assert all(alike(result, alone.stylise(scene(index)), model) for index, result in results.items())


def test_a_single_picture_is_pushed_through(model, make_engine):
    engine, alone = make_engine(SETTINGS), make_engine(ALONE)
    for seed in (1, 2):
        assert alike(engine.stylise(scene(seed)), alone.stylise(scene(seed)), model)


def test_fresh_noise_is_the_entering_frames_own(make_engine):
    engine = make_engine(replace(SETTINGS, temporal="off"))
    results = [engine.stylise(scene(0)) for _ in range(2)]
    assert np.abs(results[0].astype(int) - results[1]).mean() > 1


def test_nothing_is_copied_while_all_frames_are_alike(toy_model, monkeypatch):
    inputs, other = (frame_inputs(toy_model, replace(SETTINGS, seed=seed)) for seed in (1, 2))
    belt, static, copied = Belt(toy_model, SETTINGS, 4), inputs.clone(), []
    monkeypatch.setattr(type(static), "copy_step_", lambda self, other, step: copied.append(step))
    counts = []
    for given in [inputs] * 5 + [other] * 5:
        before = len(copied)
        belt.enter(given, static)
        counts.append(len(copied) - before)
    assert counts == [1, 1, 1, 1, 0, 1, 1, 1, 1, 0]


def test_latents_keep_their_order_in_memory(toy_model):
    settings = replace(SETTINGS, steps=1)
    inputs, belt = frame_inputs(toy_model, settings), Belt(toy_model, settings, 1)
    source = torch.randn(1, 8, 6, 4)
    assert FramePass(toy_model).advance(source, inputs, belt).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("temporal", ["warm", "full"])
def test_warm_frames_need_a_finished_one(temporal):
    with pytest.raises(
        ConfigError, match=f"temporal is {temporal} .* use --temporal noise or --pipeline latency"
    ):
        replace(SETTINGS, temporal=temporal)
    with pytest.raises(ConfigError, match="pipeline is 'fast', expected latency or throughput"):
        Settings(pipeline="fast")


# One batch of both networks in float32: 1e-4 of the latents' unit variance is what another order of sums gives.
def test_the_embedded_model_denoises_in_one_batch_what_it_denoises_alone():
    model = Mini.load("cpu")
    settings = replace(SETTINGS, size=Size(64, 96), strength=1.0)
    frame_pass = FramePass(model)
    with torch.inference_mode():
        inputs, belt = frame_inputs(model, settings), Belt(model, settings, settings.steps)
        sources = [torch.randn(1, 32, 6, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
        results = [frame_pass.advance(source, inputs, belt).clone() for source in sources]
        for source, result in zip(sources, results[3:], strict=False):
            torch.testing.assert_close(result, frame_pass.denoise(source, inputs), atol=1e-4, rtol=1e-4)
