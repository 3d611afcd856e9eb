"""Other choices of timesteps than equal steps of log-SNR, to compare with. Pure functions on the CPU.

All return falling timesteps, noisiest first, like `schedule.equal_log_snr_timesteps`, which says what `steps` and
`strength` mean; here strength simply shortens the schedule, to no less than the steps. Names as there: sigma is noise
over signal.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from instantvision.pipeline import config
from instantvision.pipeline.schedule import equal_log_snr_timesteps, strictly_falling

Spacing: TypeAlias = Callable[[Tensor, int, float], list[int]]
"""Timesteps for (alphas_cumprod, steps, strength)."""

# The exponent Karras et al. found best; larger puts more of the steps near the clean end.
KARRAS_RHO = 7.0


def uniform_timesteps(alphas_cumprod: Tensor, steps: int, strength: float) -> list[int]:
    """Evenly from the noisiest timestep to 0; a single step starts at the noisiest.

    Raises:
        ValueError: more steps than the schedule has, or a value out of range.

    Source: Lin et al. 2023 (arXiv 2305.08891), table 2, "linspace".
    """
    length = _length(alphas_cumprod, steps, strength)
    if not length:
        return []
    return [round(value) for value in torch.linspace(length - 1, 0, steps, dtype=torch.float64).tolist()]


def trailing_timesteps(alphas_cumprod: Tensor, steps: int, strength: float) -> list[int]:
    """The noisy end of each of `steps` equal parts: the spacing distilled checkpoints ask for.

    Raises:
        ValueError: as uniform_timesteps.

    Source: Lin et al. 2023 (arXiv 2305.08891), table 2, "trailing".
    """
    length = _length(alphas_cumprod, steps, strength)
    return [round(length - i * length / steps) - 1 for i in range(steps)] if length else []


def karras_timesteps(alphas_cumprod: Tensor, steps: int, strength: float) -> list[int]:
    """Timesteps whose sigma is nearest to even steps of sigma^(1/7).

    Raises:
        ValueError: as uniform_timesteps.

    Source: Karras et al. 2022 (arXiv 2206.00364), eq. 5.
    """
    length = _length(alphas_cumprod, steps, strength)
    if not length:
        return []
    alpha_bar = alphas_cumprod.double()[:length]
    log_sigma = ((1 - alpha_bar) / alpha_bar).log() / 2
    ends = (log_sigma[-1] / KARRAS_RHO).exp(), (log_sigma[0] / KARRAS_RHO).exp()
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    wanted = KARRAS_RHO * torch.log(ends[0] + share * (ends[1] - ends[0]))
    nearest = (log_sigma[None, :] - wanted[:, None]).abs().argmin(1).tolist()
    return strictly_falling(nearest, length - 1)


SPACINGS: Mapping[config.Spacing, Spacing] = {
    "log-snr": equal_log_snr_timesteps,
    "uniform": uniform_timesteps,
    "karras": karras_timesteps,
    "trailing": trailing_timesteps,
}


def _length(alphas_cumprod: Tensor, steps: int, strength: float) -> int:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, expected 0 to 1")
    count = len(alphas_cumprod)
    if not 1 <= steps <= count:
        raise ValueError(f"steps is {steps}, expected 1 to {count}, the length of the schedule")
    # A cross-fade from strength 0 passes the smallest strengths and must not change the number of steps on its way.
    return max(round(strength * count), steps) if strength else 0
