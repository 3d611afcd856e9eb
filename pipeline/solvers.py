"""Steps other than DDIM's, as rows that `denoise_step` reads: x0 = a·noisy + b·prediction,
next = c·x0 + d·noisy + e·extra. Pure functions in float64 on the CPU.

`extra` is the clean latents of the step before (second order) or fresh noise (LCM, TCD). Names as in schedule.py:
signal = sqrt(alpha_bar), noise = sqrt(1 - alpha_bar), lambda = log(signal / noise), which is half the log-SNR.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from instantvision.pipeline import config
from instantvision.pipeline.model import Prediction
from instantvision.pipeline.schedule import step_coefficients

# Of the boundary condition that latent consistency models are trained with: the data's spread, and what a timestep is
# multiplied by.
LCM_SIGMA_DATA, LCM_TIMESTEP_SCALING = 0.5, 10.0
# How much of a TCD step's way is made noise of; the value its authors recommend.
TCD_GAMMA = 0.3


def second_order_coefficients(alphas_cumprod: Tensor, timesteps: list[int], prediction: Prediction) -> Tensor:
    """DPM-Solver++ 2M: each step but the first and the last looks along the change of x0 since the step before.

    The last step goes to the clean latents, where there is nothing to look along.

    Args:
        alphas_cumprod: [N].
        timesteps: falling.
        prediction: what the denoiser returns.

    Returns:
        [steps, 5], float32 on the CPU; `extra` is the step before's clean latents.

    Raises:
        ValueError: as step_coefficients.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    first_order = step_coefficients(alphas_cumprod, timesteps, prediction).double()
    e = torch.zeros(len(timesteps), dtype=torch.float64)
    half_log_snr = torch.logit(alphas_cumprod.double()[timesteps]) / 2
    for i in range(1, len(timesteps) - 1):
        before, now, after = half_log_snr[i - 1 : i + 2]
        # e^-h - 1, times the next signal, is minus the share of x0 in a first-order step; half of D1 goes with it.
        e[i] = -first_order[i, 2] / 2 * (after - now) / (now - before)
    first_order[:, 2] -= e
    return torch.cat([first_order, e[:, None]], dim=1).float()


def lcm_coefficients(alphas_cumprod: Tensor, timesteps: list[int], prediction: Prediction) -> Tensor:
    """Latent consistency: the clean latents at once, then fresh noise up to the next timestep.

    The x0 of these rows is the plain one; the boundary condition's mixture of it and the noisy latents is in c and d.

    Args:
        alphas_cumprod, timesteps, prediction: as in second_order_coefficients.

    Returns:
        [steps, 5], float32 on the CPU; `extra` is unit normal noise, unused by the last step.

    Raises:
        ValueError: as step_coefficients.

    Source: Luo et al. 2023 (arXiv 2310.04378), algorithm 3; boundary condition: Song et al. 2023 (arXiv 2303.01469),
    appendix C.
    """
    rows = step_coefficients(alphas_cumprod, timesteps, prediction).double()
    signal, noise = _next_shares(alphas_cumprod, timesteps)
    scaled = torch.tensor(timesteps, dtype=torch.float64) * LCM_TIMESTEP_SCALING
    keep = LCM_SIGMA_DATA**2 / (scaled.square() + LCM_SIGMA_DATA**2)
    take = scaled / (scaled.square() + LCM_SIGMA_DATA**2).sqrt()
    return torch.stack([rows[:, 0], rows[:, 1], signal * take, signal * keep, noise], dim=1).float()


def tcd_coefficients(
    alphas_cumprod: Tensor, timesteps: list[int], prediction: Prediction, gamma: float = TCD_GAMMA
) -> Tensor:
    """Trajectory consistency: along the trajectory beyond the next timestep, then fresh noise back up to it.

    The last step goes to timestep 0 and not quite to the clean latents, as the authors' own does.

    Args:
        alphas_cumprod, timesteps, prediction: as in second_order_coefficients.
        gamma: 0 (no noise, DDIM) .. 1.

    Returns:
        [steps, 5], float32 on the CPU; `extra` is unit normal noise, unused by the last step.

    Raises:
        ValueError: as step_coefficients, or gamma is out of range.

    Source: Zheng et al. 2024 (arXiv 2402.19159), algorithm 4.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}, expected 0 to 1")
    rows = step_coefficients(alphas_cumprod, timesteps, prediction).double()
    alpha_bar = alphas_cumprod.double()
    e = torch.zeros(len(timesteps), dtype=torch.float64)
    for i, following in enumerate([*timesteps[1:], 0][: len(timesteps)]):
        beyond = alpha_bar[math.floor((1 - gamma) * following)]
        now = alpha_bar[timesteps[i]]
        back = (alpha_bar[following] / beyond).sqrt()
        d = ((1 - beyond) / (1 - now)).sqrt()
        rows[i, 2] = back * (beyond.sqrt() - d * now.sqrt())
        rows[i, 3] = back * d
        e[i] = (1 - back.square()).sqrt()
    return torch.cat([rows, e[:, None]], dim=1).float()


Solver: TypeAlias = Callable[[Tensor, list[int], Prediction], Tensor]
"""Rows of all steps for (alphas_cumprod, timesteps, prediction)."""

SOLVERS: Mapping[config.Solver, Solver] = {
    "ddim": step_coefficients,
    "2m": second_order_coefficients,
    "lcm": lcm_coefficients,
    "tcd": tcd_coefficients,
}
# Whose `extra` is noise, a field of its own for each step.
NOISY_SOLVERS = frozenset[config.Solver]({"lcm", "tcd"})


def _next_shares(alphas_cumprod: Tensor, timesteps: list[int]) -> tuple[Tensor, Tensor]:
    """Signal and noise after each step: of the next timestep, and all signal after the last."""
    following = torch.cat([alphas_cumprod.double()[timesteps[1:]], torch.ones(1, dtype=torch.float64)])
    following = following[: len(timesteps)]
    return following.sqrt(), (1 - following).sqrt()
