"""Timesteps at equal steps of log-SNR, and the numbers of each step."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instantvision.pipeline.schedule import (
    LOG_SNR_MAX,
    LOG_SNR_MIN,
    cosine_alphas_cumprod,
    equal_log_snr_timesteps,
    log_snr,
    noise_coefficients,
    step_coefficients,
)

COSINE = cosine_alphas_cumprod(1000)
STABLE_DIFFUSION = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(
    0
)


def test_cosine_schedule_is_the_formula():
    assert COSINE.shape == (1000,)
    assert COSINE.dtype == torch.float64
    assert float(COSINE[250]) == pytest.approx(math.cos(math.pi / 2 * 0.2505) ** 2, abs=1e-12)
    assert bool((COSINE.diff() < 0).all())
    assert 0 < float(COSINE[-1]) < 1e-5
    assert 1 - 1e-5 < float(COSINE[0]) < 1


def test_log_snr_is_zero_where_picture_and_noise_are_equal():
    assert float(log_snr(torch.tensor(0.5))) == 0
    assert float(log_snr(torch.tensor(0.9, dtype=torch.float64))) == pytest.approx(math.log(9))


@pytest.mark.parametrize("schedule", [COSINE, STABLE_DIFFUSION])
def test_eight_steps_are_equally_far_apart(schedule):
    timesteps = equal_log_snr_timesteps(schedule, 8, 1.0)
    gaps = log_snr(schedule)[timesteps].diff()
    wanted = (LOG_SNR_MAX - float(log_snr(schedule)[timesteps[0]])) / 8
    # One timestep is up to 0.05 of log-SNR where the schedule is steep.
    torch.testing.assert_close(gaps, torch.full_like(gaps, wanted), atol=0.1, rtol=0)


def test_no_step_is_wasted_on_the_ends_of_the_cosine_schedule():
    snr = log_snr(COSINE)[equal_log_snr_timesteps(COSINE, 8, 1.0)]
    assert float(snr.min()) == pytest.approx(LOG_SNR_MIN, abs=0.1)
    assert float(snr.max()) < LOG_SNR_MAX


def test_stable_diffusion_starts_at_its_noisiest_timestep():
    assert equal_log_snr_timesteps(STABLE_DIFFUSION, 8, 1.0)[0] == 999
    assert equal_log_snr_timesteps(STABLE_DIFFUSION, 1, 1.0) == [999]


def test_no_strength_no_steps():
    assert equal_log_snr_timesteps(COSINE, 8, 0.0) == []


def test_strength_moves_the_start_evenly():
    starts = [equal_log_snr_timesteps(COSINE, 8, strength)[0] for strength in (0.25, 0.5, 0.75, 1.0)]
    assert [later - earlier for earlier, later in itertools.pairwise(starts)] == pytest.approx(
        [starts[0]] * 3, abs=1
    )


@given(
    steps=st.integers(1, 50),
    strength=st.floats(0, 1, exclude_min=True),
    schedule=st.sampled_from([COSINE, STABLE_DIFFUSION, cosine_alphas_cumprod(50)]),
)
def test_always_as_many_different_timesteps_as_asked_for(steps, strength, schedule):
    timesteps = equal_log_snr_timesteps(schedule, steps, strength)
    assert len(timesteps) == steps
    assert all(later < earlier for earlier, later in itertools.pairwise(timesteps))
    assert timesteps[0] < len(schedule)
    assert timesteps[-1] >= 0


@pytest.mark.parametrize(
    ("schedule", "steps", "strength", "message"),
    [
        (COSINE, 0, 1.0, "steps is 0, expected 1 to 1000"),
        (cosine_alphas_cumprod(4), 5, 1.0, "steps is 5, expected 1 to 4"),
        (COSINE, 8, 1.5, "strength is 1.5, expected 0 to 1"),
        (COSINE, 8, float("nan"), "strength is nan"),
        (COSINE.flip(0), 8, 1.0, "not falling"),
        (torch.tensor([1.0, 0.5]), 1, 1.0, r"within \(0, 1\)"),
    ],
)
def test_refuses_what_makes_no_schedule(schedule, steps, strength, message):
    with pytest.raises(ValueError, match=message):
        equal_log_snr_timesteps(schedule, steps, strength)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_gives_the_clean_latents_and_keeps_the_noise(prediction):
    timesteps = [900, 500, 100]
    x0, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    alpha_bar = COSINE[timesteps]
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    table = step_coefficients(COSINE, timesteps, prediction)
    assert table.shape == (3, 4)
    assert table.dtype == torch.float32
    for i, (a, b, c, d) in enumerate(table.double()):
        noisy = signal[i] * x0 + spread[i] * noise
        perfect = {"epsilon": noise, "v_prediction": signal[i] * noise - spread[i] * x0, "sample": x0}[
            prediction
        ]
        # float32 coefficients; epsilon divides by signal, which is 0.16 at timestep 900.
        torch.testing.assert_close(a * noisy + b * perfect, x0, atol=2e-6, rtol=0)
        following = x0 if i == 2 else signal[i + 1] * x0 + spread[i + 1] * noise
        torch.testing.assert_close(c * x0 + d * noisy, following, atol=2e-6, rtol=0)


def test_coefficients_of_no_steps():
    assert step_coefficients(COSINE, [], "sample").shape == (0, 4)


def test_refuses_timesteps_that_rise_and_unknown_predictions():
    with pytest.raises(ValueError, match=r"timesteps are \[1, 2\]"):
        step_coefficients(COSINE, [1, 2], "sample")
    with pytest.raises(ValueError, match="prediction is 'flow'"):
        step_coefficients(COSINE, [2, 1], "flow")


def test_noise_coefficients_keep_unit_variance():
    coefficients = noise_coefficients(COSINE, 300)
    assert coefficients.dtype == torch.float32
    assert float(coefficients.square().sum()) == pytest.approx(1)
    assert float(coefficients[0]) == pytest.approx(float(COSINE[300].sqrt()))
