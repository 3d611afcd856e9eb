"""Which timesteps a frame is denoised at, and the numbers each step needs. Pure functions in float64 on the CPU.

Names, as in Ho et al. 2020 (arXiv 2006.11239): alpha_bar (alphas_cumprod) is the signal power left at a timestep,
signal = sqrt(alpha_bar), noise = sqrt(1 - alpha_bar), log-SNR = log(alpha_bar / (1 - alpha_bar)). Knows nothing of
models or devices.
"""

import itertools
import math

import torch
from torch import Tensor

from instantvision.pipeline.model import Prediction

# Beyond these the network has nothing to decide: at -6 the picture is 5 % of the amplitude, at +5 the noise is 8 %.
# A cosine schedule spans -14..14: steps out there are wasted. Stable Diffusion's schedule starts at -5.4, so its
# noisiest timestep stays in use.
LOG_SNR_MIN, LOG_SNR_MAX = -6.0, 5.0


def cosine_alphas_cumprod(timesteps: int = 1000) -> Tensor:
    """The schedule mini is trained on: alpha_bar(t) = cos²(πt / 2) at t = (i + 0.5) / timesteps.

    The half keeps both ends off 0 and 1 (log-SNR within ±14.3 for 1000), so nothing needs clipping.

    Returns:
        [timesteps], float64, strictly falling.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3.2, without their offset.
    """
    t = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps
    return torch.cos(t * (math.pi / 2)).square()


def scaled_linear_alphas_cumprod(beta_start: float, beta_end: float, timesteps: int = 1000) -> Tensor:
    """The schedule Stable Diffusion is trained on: the square roots of beta rise evenly.

    Args:
        beta_start, beta_end: share of noise added at the first and the last timestep, in (0, 1).
        timesteps: length of the schedule.

    Returns:
        [timesteps], float64, strictly falling.

    Source: Rombach et al. 2022 (arXiv 2112.10752), in the released code's schedule; alpha_bar as in Ho et al. 2020.
    """
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64)
    return torch.cumprod(1 - roots.square(), dim=0)


def log_snr(alphas_cumprod: Tensor) -> Tensor:
    """Logarithm of signal power over noise power, of the input's shape."""
    return torch.logit(alphas_cumprod)


def equal_log_snr_timesteps(alphas_cumprod: Tensor, steps: int, strength: float) -> list[int]:
    """Timesteps at equal steps of log-SNR, noisiest first.

    The range from the start to LOG_SNR_MAX is cut into `steps` equal parts and each is evaluated at its noisy end, so
    the last step, which goes to the clean latent, is no longer than the others and a run of two steps uses both well.
    The noisiest usable timestep is the last with log-SNR of at least LOG_SNR_MIN. `strength` moves the start evenly
    along the timesteps, which for a cosine schedule turns the mixing angle of picture and noise evenly. A start near
    or beyond LOG_SNR_MAX aims at half of itself. Where equal steps would meet on one timestep, the later one moves on.

    Args:
        alphas_cumprod: [N], falling.
        steps: evaluations, 1..N.
        strength: 0 (none at all) .. 1 (from the noisiest usable timestep).

    Returns:
        Exactly `steps` different timesteps, falling; none for strength 0.

    Raises:
        ValueError: steps or strength out of range, or alphas_cumprod not falling within (0, 1).
    """
    _check_schedule(alphas_cumprod)
    count = len(alphas_cumprod)
    if not 1 <= steps <= count:
        raise ValueError(f"steps is {steps}, expected 1 to {count}, the length of the schedule")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, expected 0 to 1")
    if strength == 0:
        return []
    snr = log_snr(alphas_cumprod.double())
    cleanest, noisiest = _usable_range(snr)
    start = max(round(strength * noisiest), steps - 1)
    end = min(cleanest, start // 2)
    targets = torch.linspace(float(snr[start]), float(snr[end]), steps + 1, dtype=torch.float64)[:-1]
    nearest = (snr[None, :] - targets[:, None]).abs().argmin(1).tolist()
    return strictly_falling(nearest, start)


def warm_timesteps(timesteps: list[int], steps: int) -> list[int]:
    """A shorter schedule for a frame that has one before it: the noisiest timestep, then the cleaner half.

    One evaluation at the noisiest shows where the new frame differs; from the middle on the frame before, brought back
    to that much noise, is as good a start as its own way there.

    Args:
        timesteps: of a full frame, falling.
        steps: evaluations; all timesteps if there are no more than that.

    Returns:
        Falling.
    """
    count = len(timesteps)
    if steps >= count:
        return timesteps
    if steps <= 1:
        return timesteps[:steps]
    start = min(count // 2, count - (steps - 1))
    # Each is at least one further than the one before, so rounding down keeps them apart.
    later = [start + i * (count - start) // (steps - 1) for i in range(steps - 1)]
    return [timesteps[0], *(timesteps[i] for i in later)]


def step_coefficients(alphas_cumprod: Tensor, timesteps: list[int], prediction: Prediction) -> Tensor:
    """The four numbers of each deterministic step: x0 = a·noisy + b·prediction, next = c·x0 + d·noisy.

    The last step goes to the clean latent: c = 1, d = 0.

    Args:
        alphas_cumprod: [N].
        timesteps: falling.
        prediction: what the denoiser returns.

    Returns:
        [steps, 4], float32 on the CPU.

    Raises:
        ValueError: the timesteps do not fall, or the prediction is of no known kind.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0; velocity: Salimans & Ho 2022
    (arXiv 2202.00512), section 4 and appendix D.
    """
    if any(later >= earlier for earlier, later in itertools.pairwise(timesteps)):
        raise ValueError(f"timesteps are {timesteps}, expected falling ones")
    alpha_bar = alphas_cumprod.double()[timesteps]
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    # What the last step goes to: all signal, no noise.
    next_signal = torch.cat([signal[1:], torch.ones(1, dtype=torch.float64)])[: len(timesteps)]
    next_noise = torch.cat([noise[1:], torch.zeros(1, dtype=torch.float64)])[: len(timesteps)]
    a, b = _to_clean(signal, noise, prediction)
    # next = next_signal·x0 + next_noise·ε with ε = (noisy - signal·x0) / noise, sorted by x0 and noisy.
    d = next_noise / noise
    c = next_signal - d * signal
    return torch.stack([a, b, c, d], dim=1).float()


def noise_coefficients(alphas_cumprod: Tensor, timestep: int) -> Tensor:
    """Shares of picture and noise at a timestep: noisy = first·clean + second·noise.

    Returns:
        [2], float32 on the CPU.

    Source: Ho et al. 2020, eq. 4.
    """
    alpha_bar = alphas_cumprod.double()[timestep]
    return torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()]).float()


def _to_clean(signal: Tensor, noise: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    if prediction == "epsilon":
        return 1 / signal, -noise / signal
    if prediction == "v_prediction":
        return signal, -noise
    if prediction == "sample":
        return torch.zeros_like(signal), torch.ones_like(signal)
    raise ValueError(f"prediction is {prediction!r}, expected epsilon, v_prediction or sample")


def _usable_range(snr: Tensor) -> tuple[int, int]:
    """Cleanest and noisiest timestep within the bounds; the schedule's own ends where it stays inside them."""
    noisiest = max(int((snr >= LOG_SNR_MIN).sum()) - 1, 0)
    cleanest = min(int((snr > LOG_SNR_MAX).sum()), noisiest)
    return cleanest, noisiest


def strictly_falling(timesteps: list[int], start: int) -> list[int]:
    """Push equal neighbours apart: downwards from `start`, at least len - 1, then up from zero."""
    falling = [start]
    for timestep in timesteps[1:]:
        falling.append(min(timestep, falling[-1] - 1))
    last = len(falling) - 1
    return [max(timestep, last - i) for i, timestep in enumerate(falling)]


def _check_schedule(alphas_cumprod: Tensor) -> None:
    inside = bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all())
    if not inside or bool((alphas_cumprod.diff() >= 0).any()):
        raise ValueError("alphas_cumprod is not falling within (0, 1): the model's schedule is damaged")
