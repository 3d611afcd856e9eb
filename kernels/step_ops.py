"""Kernels between two evaluations of the denoiser.

Operations and arguments are those of `reference`. The numbers of a step are read from device memory, so a recorded
CUDA graph follows a change of schedule. Needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instantvision.kernels import reference
from instantvision.kernels.launch import launch

# Elements a program writes; 8 a thread at 4 warps.
BLOCK = 1024


def add_noise(clean: Tensor, noise: Tensor, coefficients: Tensor, *, out: Tensor | None = None) -> Tensor:
    """See `reference.add_noise`."""
    reference.check_latents(clean, noise, coefficients, 2)
    clean = _dense(clean)
    out = _result(out, clean)
    count = clean.numel()
    grid = (triton.cdiv(count, BLOCK),)
    launch(add_noise_kernel, grid, clean, _laid_out_as(clean, noise), coefficients, out, count, BLOCK=BLOCK)
    return out


def denoise_step(
    prediction: Tensor,
    noisy: Tensor,
    coefficients: Tensor,
    *,
    extra: Tensor | None = None,
    out: Tensor | None = None,
    x0_out: Tensor | None = None,
) -> Tensor:
    """See `reference.denoise_step`."""
    reference.check_step(noisy, prediction, coefficients, extra)
    noisy = _dense(noisy)
    out = _result(out, noisy)
    # Pictures lie one after the other: with one row for all of them they are a single long one.
    pictures = len(coefficients) if coefficients.dim() == 2 else 1
    count = noisy.numel() // pictures
    launch(
        denoise_step_kernel,
        (triton.cdiv(count, BLOCK), pictures),
        _laid_out_as(noisy, prediction),
        noisy,
        # Never read or written to when there is none, but a kernel wants a pointer.
        noisy if extra is None else _laid_out_as(noisy, extra),
        coefficients,
        out,
        out if x0_out is None else _result(x0_out, noisy),
        count,
        coefficients.shape[-1],
        READ_EXTRA=extra is not None,
        WRITE_X0=x0_out is not None,
        BLOCK=BLOCK,
    )
    return out


def _dense(latents: Tensor) -> Tensor:
    """The same values without gaps in memory; a copy only for views that have them."""
    dense = latents.is_contiguous() or latents.is_contiguous(memory_format=torch.channels_last)
    return latents if dense else latents.contiguous(memory_format=torch.channels_last)


def _same_layout(one: Tensor, other: Tensor) -> bool:
    # The stride of an axis of length 1 says nothing, and differs between makers of the same layout.
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(here == there for length, here, there in strides if length > 1)


def _laid_out_as(like: Tensor, latents: Tensor) -> Tensor:
    """`latents` in the memory order of `like`: a compiled model may return another than it was given."""
    return latents if _same_layout(like, latents) else torch.empty_like(like).copy_(latents)


def _result(out: Tensor | None, like: Tensor) -> Tensor:
    if out is None:
        return torch.empty_like(like)
    if out.shape != like.shape or out.dtype != like.dtype or not _same_layout(out, like):
        raise ValueError(
            f"out is {out.dtype}{list(out.shape)} with strides {out.stride()}, "
            f"expected {like.dtype}{list(like.shape)} with strides {like.stride()}"
        )
    return out


@triton.jit
def add_noise_kernel(p_clean, p_noise, p_coefficients, p_out, count, BLOCK: tl.constexpr):
    """first·clean + second·noise, BLOCK values a program.

    Reads 4 bytes a value (bf16), writes 2; 3 operations. Saves two passes: the scaled picture and the scaled noise.
    """
    o_value = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_value = o_value < count
    signal_share = tl.load(p_coefficients)
    noise_share = tl.load(p_coefficients + 1)
    b_clean = tl.load(p_clean + o_value, mask=m_value, other=0).to(tl.float32)
    b_noise = tl.load(p_noise + o_value, mask=m_value, other=0).to(tl.float32)
    b_out = signal_share * b_clean + noise_share * b_noise
    tl.store(p_out + o_value, b_out.to(p_out.dtype.element_ty), mask=m_value)


@triton.jit
def denoise_step_kernel(
    p_prediction,
    p_noisy,
    p_extra,
    p_coefficients,
    p_out,
    p_x0,
    count,
    columns,
    READ_EXTRA: tl.constexpr,
    WRITE_X0: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x0 = a·noisy + b·prediction, next = c·x0 + d·noisy + e·extra, BLOCK values of one picture a program.

    Reads 4 bytes a value (bf16), or 6 with extra, writes 2, or 4 with x0; 6 or 8 operations. Saves five passes: the
    four products and x0 going to memory and back; two more with extra.
    """
    i_picture = tl.program_id(1)
    i_value = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_value = i_value < count
    o_value = i_picture.to(tl.int64) * count + i_value
    p_row = p_coefficients + i_picture * columns
    a = tl.load(p_row)
    b = tl.load(p_row + 1)
    c = tl.load(p_row + 2)
    d = tl.load(p_row + 3)
    b_prediction = tl.load(p_prediction + o_value, mask=m_value, other=0).to(tl.float32)
    b_noisy = tl.load(p_noisy + o_value, mask=m_value, other=0).to(tl.float32)
    b_x0 = a * b_noisy + b * b_prediction
    b_out = c * b_x0 + d * b_noisy
    # Before x0 is written: it may go to the same memory.
    if READ_EXTRA:
        e = tl.load(p_row + 4)
        b_out += e * tl.load(p_extra + o_value, mask=m_value, other=0).to(tl.float32)
    if WRITE_X0:
        tl.store(p_x0 + o_value, b_x0.to(p_x0.dtype.element_ty), mask=m_value)
    tl.store(p_out + o_value, b_out.to(p_out.dtype.element_ty), mask=m_value)
