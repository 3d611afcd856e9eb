"""DPM-Solver++ 2M, LCM and TCD against diffusers' schedulers, on the same inputs and noise."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, TCDScheduler
from diffusers.schedulers import scheduling_lcm, scheduling_tcd

from instantvision.kernels import reference
from instantvision.pipeline.sampler import denoise
from instantvision.pipeline.schedule import step_coefficients
from instantvision.pipeline.solvers import lcm_coefficients, second_order_coefficients, tcd_coefficients

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# Its tables of timesteps are made the way an older numpy wanted it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def toy_denoiser(noisy, timestep):
    return torch.tanh(noisy * 0.7 + timestep / 1000)


def follow(scheduler, noisy, **options):
    for timestep in scheduler.timesteps.tolist():
        noisy = scheduler.step(toy_denoiser(noisy, timestep), timestep, noisy, **options).prev_sample
    return noisy


def ours(table, scheduler, noisy, noises=None):
    timesteps = scheduler.timesteps.tolist()
    return denoise(lambda x, step: toy_denoiser(x, timesteps[step]), noisy, table, reference, noises)


def close(result, expected):
    # Sigma reaches 14 where epsilon is divided by the signal: float32 in another order.
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_second_order_equals_diffusers(prediction, steps):
    scheduler = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        solver_order=2,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    table = second_order_coefficients(scheduler.alphas_cumprod, scheduler.timesteps.tolist(), prediction)
    noisy = torch.randn(1, 4, 9, 7)
    result = ours(table, scheduler, noisy)
    close(result, follow(scheduler, noisy))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("solver", ["lcm", "tcd"])
def test_distilled_steps_equal_diffusers(monkeypatch, solver, prediction, steps):
    kind, module, coefficients = {
        "lcm": (LCMScheduler, scheduling_lcm, lcm_coefficients),
        "tcd": (TCDScheduler, scheduling_tcd, tcd_coefficients),
    }[solver]
    noisy, *noises = torch.randn(steps + 1, 1, 4, 9, 7)
    left = iter(noises)
    monkeypatch.setattr(module, "randn_tensor", lambda *shape, **options: next(left))
    scheduler = kind(**STABLE_DIFFUSION, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    table = coefficients(scheduler.alphas_cumprod, scheduler.timesteps.tolist(), prediction)
    assert table.shape == (steps, 5)
    assert float(table[-1, 4]) == 0
    close(ours(table, scheduler, noisy, noises), follow(scheduler, noisy))


def test_no_gamma_is_ddim():
    schedule = LCMScheduler(**STABLE_DIFFUSION).alphas_cumprod
    table = tcd_coefficients(schedule, [900, 400, 100], "epsilon", gamma=0.0)
    expected = step_coefficients(schedule, [900, 400, 100, 0], "epsilon")[:3]
    torch.testing.assert_close(table[:, :4], expected)
    assert not bool(table[:, 4].any())
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        tcd_coefficients(schedule, [1], "epsilon", gamma=1.5)


@pytest.mark.parametrize("coefficients", [second_order_coefficients, lcm_coefficients, tcd_coefficients])
def test_no_steps_no_rows(coefficients):
    assert coefficients(LCMScheduler(**STABLE_DIFFUSION).alphas_cumprod, [], "sample").shape == (0, 5)
