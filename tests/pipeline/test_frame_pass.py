"""What a frame is made with, and that each step gets its own share of it."""

from dataclasses import replace

import torch

from instantvision.kernels import reference
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.frame_inputs import frame_inputs
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.model import predict
from instantvision.pipeline.sampler import denoise
from instantvision.pipeline.schedule import equal_log_snr_timesteps, step_coefficients

SETTINGS = Settings(size=Size(64, 96), steps=4, strength=0.8, seed=1)


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
