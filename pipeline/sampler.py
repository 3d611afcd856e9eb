"""Deterministic denoising: from noisy latents to clean ones.

Knows nothing of models, devices or how the timesteps were chosen: the denoiser is a function, the schedule a table.
"""

from collections.abc import Callable

from torch import Tensor

from instantvision.kernels import StepOps

Predict = Callable[[Tensor, int], Tensor]
"""The denoiser's prediction for noisy latents [1, C, h, w] at the step of that index."""


def denoise(predict: Predict, noisy: Tensor, coefficients: Tensor, step_ops: StepOps) -> Tensor:
    """Follow the denoiser from the first timestep to the clean latents.

    Args:
        predict: called once a step, in order.
        noisy: latents at the first timestep, [1, C, h, w].
        coefficients: one row a step, [S, 4], from `schedule.step_coefficients`; what each row holds makes up for
            whether the denoiser predicts noise, velocity or clean latents.
        step_ops: who does the arithmetic between evaluations.

    Returns:
        Clean latents, like `noisy`.

    Source: Song et al. 2021 (arXiv 2010.02502), section 4.1 with eta = 0 (DDIM).
    """
    latents = noisy
    for step in range(len(coefficients)):
        prediction = predict(latents, step)
        latents = step_ops.denoise_step(prediction, latents, coefficients[step])
    return latents
