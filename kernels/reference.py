"""Every operation in plain torch: what the kernels must agree with, and what runs where there is no Triton.

Names: H W picture height and width in pixels, h w latent height and width, C channels. Results go to `out` where it
is given, which then is what is returned.
"""

import torch
from torch import Tensor


def pixels_to_input(
    pixels: Tensor, *, fold: int, mirror: bool, bgr: bool, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Bring a picture from memory into the form a network takes.

    Args:
        pixels: uint8 [H, W, 3], contiguous; H and W multiples of `fold`.
        fold: pixels per position along one axis; channels are ordered as by torch's pixel_unshuffle.
        mirror: flip left and right.
        bgr: the picture's first colour is blue; the network's is always red.
        dtype: of the result.
        out: [1, 3 * fold**2, H / fold, W / fold] of `dtype` in channels_last.

    Returns:
        [1, 3 * fold**2, H / fold, W / fold] in channels_last, 0..255 brought to -1..1.

    Raises:
        ValueError: `pixels` or `out` is not of that form.
    """
    out = input_buffer(pixels, fold, dtype, out)
    rows, columns = out.shape[2:]
    picture = pixels.flip(1) if mirror else pixels
    picture = picture.flip(2) if bgr else picture
    folded = picture.view(rows, fold, columns, fold, 3).permute(0, 2, 4, 1, 3)
    # Subtracting first is exact, which leaves one rounding: every device and the kernel give the same bits.
    values = (folded.reshape(1, rows, columns, -1).float() - 127.5) * (1 / 127.5)
    return out.copy_(values.permute(0, 3, 1, 2))


def output_to_pixels(output: Tensor, *, fold: int, bgr: bool, out: Tensor | None = None) -> Tensor:
    """Bring a network's output into the form of a picture in memory.

    Args:
        output: [1, 3 * fold**2, H / fold, W / fold], floating, any strides, finite; clamped to -1..1.
        fold: as in `pixels_to_input`.
        bgr: write blue first.
        out: uint8 [H, W, 3], contiguous.

    Returns:
        uint8 [H, W, 3]: -1..1 brought to 0..255, halves rounded up.

    Raises:
        ValueError: `output` or `out` is not of that form.
    """
    out = pixel_buffer(output, fold, out)
    rows, columns = output.shape[2:]
    folded = output[0].unflatten(0, (3, fold, fold)).permute(3, 1, 4, 2, 0)
    picture = folded.reshape(rows * fold, columns * fold, 3).float()
    # The clamp between product and sum keeps compilers from fusing the two into one rounding.
    picture = ((picture + 1) * 127.5).clamp(0, 255) + 0.5
    return out.copy_((picture.flip(2) if bgr else picture).to(torch.uint8))


def add_noise(clean: Tensor, noise: Tensor, coefficients: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Bring clean latents to a timestep: first·clean + second·noise.

    Args:
        clean: latents, [B, C, h, w].
        noise: unit normal, shape and dtype of `clean`.
        coefficients: float32 [2] on the same device, from `schedule.noise_coefficients`.
        out: shape, dtype and memory format of `clean`.

    Returns:
        Noisy latents, like `clean`.

    Raises:
        ValueError: shapes or dtypes differ.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 4.
    """
    check_latents(clean, noise, coefficients, 2)
    out = torch.empty_like(clean) if out is None else out
    return out.copy_(coefficients[0] * clean.float() + coefficients[1] * noise.float())


def denoise_step(
    prediction: Tensor,
    noisy: Tensor,
    coefficients: Tensor,
    *,
    extra: Tensor | None = None,
    out: Tensor | None = None,
    x0_out: Tensor | None = None,
) -> Tensor:
    """One step: x0 = a·noisy + b·prediction, next = c·x0 + d·noisy, + e·extra where there is one.

    Args:
        prediction: of the denoiser, noise, velocity or clean latents, [B, C, h, w].
        noisy: latents at this step's timestep, shape and dtype of `prediction`.
        coefficients: a, b, c, d, and e with `extra`: float32 [4] or [5] on the same device, a row of
            `schedule.step_coefficients` or of a table in `solvers`; or a row for each picture, [B, 4] or [B, 5].
        extra: what a row of five also mixes in, like `noisy`.
        out: shape, dtype and memory format of `noisy`; may be `noisy` itself.
        x0_out: likewise, or `extra` itself; the clean latents of this step are written there when it is given.

    Returns:
        Latents at the next timestep, like `noisy`; the clean latents after the last step.

    Raises:
        ValueError: shapes or dtypes differ.

    Source: Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0.
    """
    check_step(noisy, prediction, coefficients, extra)
    out = torch.empty_like(noisy) if out is None else out
    a, b, c, d, *e = (column.view(-1, 1, 1, 1) for column in coefficients.unbind(-1))
    x0 = a * noisy.float() + b * prediction.float()
    following = c * x0 + d * noisy.float()
    if extra is not None:
        following += e[0] * extra.float()
    if x0_out is not None:
        x0_out.copy_(x0)
    return out.copy_(following)


def input_buffer(pixels: Tensor, fold: int, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """Check the arguments of `pixels_to_input` and give its result's memory."""
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3 or not pixels.is_contiguous():
        raise ValueError(f"pixels are {_form(pixels)}, expected contiguous uint8[H, W, 3]")
    height, width = pixels.shape[:2]
    if height % fold or width % fold:
        raise ValueError(f"picture is {width}x{height}, expected multiples of {fold}")
    shape = (1, 3 * fold * fold, height // fold, width // fold)
    if out is None:
        return torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=torch.channels_last)
    if out.shape != shape or out.dtype != dtype or not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"out is {_form(out)}, expected channels_last {dtype}{list(shape)}")
    return out


def pixel_buffer(output: Tensor, fold: int, out: Tensor | None) -> Tensor:
    """Check the arguments of `output_to_pixels` and give its result's memory."""
    if output.dim() != 4 or output.shape[:2] != (1, 3 * fold * fold):
        raise ValueError(
            f"output is {_form(output)}, expected [1, {3 * fold * fold}, H / {fold}, W / {fold}]"
        )
    shape = (output.shape[2] * fold, output.shape[3] * fold, 3)
    if out is None:
        return torch.empty(shape, dtype=torch.uint8, device=output.device)
    if out.shape != shape or out.dtype != torch.uint8 or not out.is_contiguous():
        raise ValueError(f"out is {_form(out)}, expected contiguous uint8{list(shape)}")
    return out


def check_latents(like: Tensor, other: Tensor, coefficients: Tensor, count: int) -> None:
    """Check two latents that are mixed by `count` numbers."""
    if like.shape != other.shape or like.dtype != other.dtype:
        raise ValueError(f"latents are {_form(like)} and {_form(other)}, expected one form")
    if coefficients.shape != (count,) or coefficients.dtype != torch.float32:
        raise ValueError(f"coefficients are {_form(coefficients)}, expected float32[{count}]")


def check_step(noisy: Tensor, prediction: Tensor, coefficients: Tensor, extra: Tensor | None) -> None:
    """Check the arguments of `denoise_step`."""
    each = coefficients
    if coefficients.dim() == 2 and len(coefficients) == len(noisy) and coefficients.is_contiguous():
        each = coefficients[0]
    for other in (prediction,) if extra is None else (prediction, extra):
        check_latents(noisy, other, each, 4 if extra is None else 5)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
