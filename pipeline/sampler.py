"""Denoising: from noisy latents to clean ones.

Knows nothing of models, devices or how the timesteps were chosen: the denoiser is a function, the schedule a table.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from instantvision.kernels import StepOps

Predict = Callable[[Tensor, int], Tensor]
"""The denoiser's prediction for noisy latents [1, C, h, w] at the step of that index."""


def denoise(
    predict: Predict,
    noisy: Tensor,
    coefficients: Tensor,
    step_ops: StepOps,
    noises: Sequence[Tensor] | None = None,
) -> Tensor:
    """Follow the denoiser from the first timestep to the clean latents.

    Args:
        predict: called once a step, in order.
        noisy: latents at the first timestep, [1, C, h, w].
        coefficients: one row a step: [S, 4] from `schedule.step_coefficients`, or [S, 5] from `solvers`; what each row
            holds makes up for whether the denoiser predicts noise, velocity or clean latents.
        step_ops: who does the arithmetic between evaluations.
        noises: fresh unit normal noise of each step, like `noisy`, for rows of five that ask for it; without it they
            are given the clean latents of the step before.

    Returns:
        Clean latents, like `noisy`.

    Source: Song et al. 2021 (arXiv 2010.02502), section 4.1 with eta = 0 (DDIM).
    """
    latents, extra = noisy, None
    if len(coefficients) and coefficients.shape[1] == 5:
        # The first step has none before it; its coefficient is 0.
        extra = torch.zeros_like(noisy)
    for step in range(len(coefficients)):
        prediction = predict(latents, step)
        if noises is not None:
            latents = step_ops.denoise_step(prediction, latents, coefficients[step], extra=noises[step])
        else:
            # The kernel reads `extra` before it writes x0 over it.
            latents = step_ops.denoise_step(
                prediction, latents, coefficients[step], extra=extra, x0_out=extra
            )
    return latents
