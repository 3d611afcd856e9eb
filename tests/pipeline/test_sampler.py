"""Our sampler against diffusers' DDIM, on timesteps that are not evenly spaced."""

import pytest
import torch
from diffusers import DDIMScheduler

from instantvision.kernels import reference
from instantvision.pipeline.sampler import denoise
from instantvision.pipeline.schedule import equal_log_snr_timesteps, step_coefficients


def toy_denoiser(noisy, timestep):
    return torch.tanh(noisy * 0.7 + timestep / 1000)


def by_diffusers(noisy, timesteps, prediction):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    for timestep, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        # The scheduler takes one gap for all steps, the schedule's length over the number of steps: set it for each.
        scheduler.register_to_config(num_train_timesteps=timestep - following)
        scheduler.num_inference_steps = 1
        noisy = scheduler.step(toy_denoiser(noisy, timestep), timestep, noisy, eta=0.0).prev_sample
    return noisy


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_equals_diffusers(prediction, steps):
    schedule = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
    timesteps = equal_log_snr_timesteps(schedule, steps, 0.9)
    noisy = torch.randn(1, 4, 9, 7)
    coefficients = step_coefficients(schedule, timesteps, prediction)
    result = denoise(lambda x, step: toy_denoiser(x, timesteps[step]), noisy, coefficients, reference)
    # The step towards 1e-5: both calculate in float32, in another order.
    torch.testing.assert_close(result, by_diffusers(noisy, timesteps, prediction), atol=1e-5, rtol=1e-5)


def test_calls_the_denoiser_once_a_step_in_order():
    calls = []

    def predict(noisy, step):
        calls.append(step)
        return noisy

    noisy = torch.ones(1, 1, 2, 2)
    denoise(predict, noisy, torch.zeros(4, 4), reference)
    assert calls == [0, 1, 2, 3]
    assert torch.equal(noisy, torch.ones(1, 1, 2, 2))


def test_no_steps_leave_the_latents():
    noisy = torch.randn(1, 1, 2, 2)
    assert denoise(lambda x, step: x, noisy, torch.zeros(0, 4), reference) is noisy
