"""What a frame is made with, and that each step gets its own share of it."""

from dataclasses import replace

import pytest
import torch

from instantvision.kernels import reference
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.frame_inputs import ALWAYS_OPEN, Course, LatentMemory, frame_inputs, noise_fields
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.model import predict
from instantvision.pipeline.sampler import denoise
from instantvision.pipeline.schedule import (
    equal_log_snr_timesteps,
    noise_coefficients,
    step_coefficients,
    warm_timesteps,
)
from instantvision.pipeline.solvers import NOISY_SOLVERS, SOLVERS
from instantvision.pipeline.spacing import SPACINGS
from instantvision.pipeline.temporal import Plan, Work

SETTINGS = Settings(size=Size(64, 96), steps=4, steps_ceiling=4, strength=0.8, seed=1)


def test_equals_the_textbook_way(toy_model):
    source = torch.randn(1, 8, 6, 4)
    inputs = frame_inputs(toy_model, SETTINGS)
    timesteps = equal_log_snr_timesteps(toy_model.alphas_cumprod, 4, 0.8)
    conditioning = toy_model.condition(SETTINGS.mix, SETTINGS.size)
    alpha_bar = toy_model.alphas_cumprod[timesteps[0]].float()
    noisy = alpha_bar.sqrt() * source + (1 - alpha_bar).sqrt() * inputs.noise
    expected = denoise(
        lambda x, step: predict(toy_model, x, torch.tensor([timesteps[step]]), source, conditioning),
        noisy,
        step_coefficients(toy_model.alphas_cumprod, timesteps, "sample"),
        reference,
    )
    torch.testing.assert_close(FramePass(toy_model).denoise(source, inputs), expected)


def follow(model, settings, timesteps, source, noisy, noises):
    """Along some timesteps with the settings' solver, by the sampler alone."""
    conditioning = model.condition(settings.mix, settings.size)
    return denoise(
        lambda x, step: predict(model, x, torch.tensor([timesteps[step]]), source, conditioning),
        noisy,
        SOLVERS[settings.solver](model.alphas_cumprod, timesteps, model.prediction),
        reference,
        noises if settings.solver in NOISY_SOLVERS else None,
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_solver_and_spacing_is_followed(toy_model, spacing, solver):
    settings = replace(SETTINGS, spacing=spacing, solver=solver)
    inputs, source = frame_inputs(toy_model, settings), torch.randn(1, 8, 6, 4)
    timesteps = SPACINGS[spacing](toy_model.alphas_cumprod, settings.steps, settings.strength)
    noise, *noises = noise_fields(toy_model, settings, 1 + settings.steps).split(1)
    noisy = reference.add_noise(source, noise, noise_coefficients(toy_model.alphas_cumprod, timesteps[0]))
    expected = follow(toy_model, settings, timesteps, source, noisy, noises)
    torch.testing.assert_close(FramePass(toy_model).denoise(source, inputs), expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kept", [(0,), (0, 2), (0, 1, 2, 3)])
def test_a_warm_frame_that_moved_all_over_follows_the_solver_from_its_second_step(toy_model, solver, kept):
    settings = replace(SETTINGS, steps=8, temporal="warm", solver=solver)
    model, (height, width) = toy_model, (6, 4)
    course, frame_pass = Course(model, settings), FramePass(model)
    inputs = replace(course.warm(kept), limits=torch.tensor(ALWAYS_OPEN))
    memory = LatentMemory.empty(model, settings)
    pixels = torch.randint(0, 256, (16 * height, 16 * width, 3), dtype=torch.uint8)
    frame_pass(pixels, inputs, mirror=False, memory=memory, warm=True)

    source = frame_pass.encode(frame_pass.unpack(pixels, mirror=False))
    full = SPACINGS[settings.spacing](model.alphas_cumprod, settings.steps, settings.strength)
    timesteps = [warm_timesteps(full, settings.steps_ceiling)[i] for i in kept]
    noise, *noises = noise_fields(model, settings, 9).split(1)
    noises = [noises[i] for i in kept]
    noisy = reference.add_noise(source, noise, noise_coefficients(model.alphas_cumprod, timesteps[0]))
    expected = follow(model, settings, timesteps[:1], source, noisy, noises)
    if len(kept) > 1:
        # Its x0, which is not where every solver's last step goes to.
        x0 = follow(model, replace(settings, solver="ddim"), timesteps[:1], source, noisy, noises)
        noisy = reference.add_noise(x0, noise, noise_coefficients(model.alphas_cumprod, timesteps[1]))
        expected = follow(model, settings, timesteps[1:], source, noisy, noises[1:])
    torch.testing.assert_close(memory.stylised, expected)


def test_deep_features_are_carried_on_until_each_step_has_had_its_turn(layered_toy_model):
    settings = replace(SETTINGS, steps=8, temporal="full")
    course, frame_pass = Course(layered_toy_model, settings), FramePass(layered_toy_model)
    before, now = torch.randint(0, 256, (2, 96, 64, 3), dtype=torch.uint8)
    every = (0, 1, 2, 3)

    def painted(turns):
        """What of the second picture, all over new, becomes in frames with these whole steps."""
        memory, results = LatentMemory.empty(layered_toy_model, settings), []
        frame_pass(before, course.full, mirror=False, memory=memory)
        for whole in turns:
            inputs = course.inputs(Plan(Work.WARM, every, whole))
            inputs = replace(inputs, limits=torch.tensor(ALWAYS_OPEN))
            results.append(frame_pass(now, inputs, mirror=False, memory=memory, warm=True))
        return results

    (whole,) = painted([None])
    *others, last = painted([1, 2, 3, 0])
    assert all(not torch.equal(result, whole) for result in others)
    assert torch.equal(last, whole)


def test_fresh_noise_is_drawn_for_every_step(toy_model):
    inputs = frame_inputs(toy_model, replace(SETTINGS, solver="lcm"))
    before = inputs.clone()
    inputs.freshen(torch.Generator().manual_seed(3))
    for now, then in ((inputs.noise, before.noise), *zip(inputs.noises, before.noises, strict=True)):
        assert not torch.equal(now, then)


def test_the_input_stays_as_it_was(toy_model):
    source = torch.randn(1, 8, 6, 4)
    before = source.clone()
    FramePass(toy_model).denoise(source, frame_inputs(toy_model, SETTINGS))
    assert torch.equal(source, before)


def test_no_strength_needs_no_denoiser(toy_model):
    source = torch.randn(1, 8, 6, 4)
    inputs = frame_inputs(toy_model, replace(SETTINGS, strength=0.0))
    assert inputs.steps == 0
    assert FramePass(toy_model).denoise(source, inputs) is source


def test_copies_have_memory_of_their_own(toy_model):
    inputs = frame_inputs(toy_model, SETTINGS)
    other = frame_inputs(toy_model, replace(SETTINGS, seed=2, strength=0.3))
    static = inputs.clone()
    static.copy_(other)
    pairs = zip(static._tensors(), other._tensors(), inputs._tensors(), strict=True)
    assert all(torch.equal(mine, new) for mine, new, _ in pairs)
    assert not torch.equal(static.noise, inputs.noise)
    assert not torch.equal(static.start, inputs.start)


def test_shapes_tell_apart_what_needs_another_graph(toy_model):
    shapes = frame_inputs(toy_model, SETTINGS).shapes
    assert frame_inputs(toy_model, replace(SETTINGS, seed=2, strength=0.3)).shapes == shapes
    assert frame_inputs(toy_model, replace(SETTINGS, steps=5)).shapes != shapes
    assert frame_inputs(toy_model, replace(SETTINGS, size=Size(96, 96))).shapes != shapes
