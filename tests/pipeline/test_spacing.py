"""Timesteps of other schedules, against diffusers."""

import itertools

import pytest
from diffusers import DPMSolverMultistepScheduler

from instantvision.pipeline.schedule import cosine_alphas_cumprod
from instantvision.pipeline.spacing import SPACINGS, karras_timesteps, trailing_timesteps, uniform_timesteps

# Its tables of timesteps are made the way an older numpy wanted it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def by_diffusers(steps, **options):
    scheduler = DPMSolverMultistepScheduler(**STABLE_DIFFUSION, **options)
    scheduler.set_timesteps(steps)
    return scheduler.alphas_cumprod, scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 4, 7, 8, 20])
def test_trailing_equals_diffusers(steps):
    schedule, expected = by_diffusers(steps, timestep_spacing="trailing")
    assert trailing_timesteps(schedule, steps, 1.0) == expected


@pytest.mark.parametrize("steps", [4, 7, 8, 20])
def test_uniform_equals_diffusers(steps):
    # Its solver leaves the last of steps + 1 out.
    schedule, expected = by_diffusers(steps, timestep_spacing="linspace")
    assert uniform_timesteps(schedule, steps + 1, 1.0)[:-1] == expected


@pytest.mark.parametrize("steps", [4, 8, 12])
def test_karras_equals_diffusers(steps):
    schedule, expected = by_diffusers(steps, use_karras_sigmas=True)
    # Both take the nearest timestep, diffusers on a line between its neighbours: they may differ by one.
    assert karras_timesteps(schedule, steps, 1.0) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 8, 50])
@pytest.mark.parametrize("strength", [1e-4, 0.06, 0.5, 1.0])
def test_each_gives_as_many_falling_timesteps_as_asked_for(name, steps, strength):
    timesteps = SPACINGS[name](cosine_alphas_cumprod(1000), steps, strength)
    assert len(timesteps) == steps
    assert all(later < earlier for earlier, later in itertools.pairwise(timesteps))
    assert 0 <= timesteps[-1] <= timesteps[0] < 1000


@pytest.mark.parametrize("name", SPACINGS)
def test_no_strength_is_no_step(name):
    assert SPACINGS[name](cosine_alphas_cumprod(1000), 8, 0.0) == []


@pytest.mark.parametrize("spacing", [uniform_timesteps, trailing_timesteps, karras_timesteps])
def test_refuses_more_steps_than_there_are(spacing):
    with pytest.raises(ValueError, match="steps is 12, expected 1 to 10"):
        spacing(cosine_alphas_cumprod(10), 12, 0.5)
    with pytest.raises(ValueError, match="strength is 2"):
        spacing(cosine_alphas_cumprod(10), 8, 2)
