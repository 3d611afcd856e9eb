"""What happens between two evaluations: kernels against the reference, the reference against the formula."""

import pytest
import torch
from torch import Tensor

from instantvision.kernels import reference

# One even size, two odd ones; the last is longer than a kernel's block and ends inside one.
SHAPES = [(1, 32, 16, 16), (1, 4, 7, 5), (2, 3, 33, 21)]
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def latents(shape, dtype, seed: int, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(result: Tensor, expected: Tensor) -> None:
    # A GPU may fuse product and sum into one rounding: one unit in the last place.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[expected.dtype]
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


def row(*values: float, device: str = "cpu") -> Tensor:
    return torch.tensor(values, device=device)


def test_reference_is_the_formula():
    prediction, noisy = (latents((1, 4, 8, 8), torch.float32, seed) for seed in (0, 1))
    x0 = torch.full_like(noisy, torch.nan)
    result = reference.denoise_step(prediction, noisy, row(0.9, -0.4, 0.7, 0.2), x0_out=x0)
    torch.testing.assert_close(x0, 0.9 * noisy - 0.4 * prediction)
    torch.testing.assert_close(result, 0.7 * x0 + 0.2 * noisy)


def test_the_last_step_gives_the_clean_latents():
    prediction, noisy = (latents((1, 4, 8, 8), torch.float32, seed) for seed in (0, 1))
    x0 = torch.empty_like(noisy)
    result = reference.denoise_step(prediction, noisy, row(0.9, -0.4, 1.0, 0.0), x0_out=x0)
    assert torch.equal(result, x0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_denoise_step(bench, shape, dtype, layout):
    prediction, noisy = (latents(shape, dtype, seed, bench.device) for seed in (0, 1))
    noisy = noisy.contiguous(memory_format=layout)
    coefficients = row(0.9, -0.4, 0.7, 0.2, device=bench.device)
    expected_x0 = torch.empty_like(noisy)
    expected = reference.denoise_step(prediction, noisy, coefficients, x0_out=expected_x0)
    out, x0 = torch.full_like(noisy, torch.nan), torch.full_like(noisy, torch.nan)
    assert bench.step_ops.denoise_step(prediction, noisy, coefficients, out=out, x0_out=x0) is out
    close(out, expected)
    close(x0, expected_x0)
    close(bench.step_ops.denoise_step(prediction, noisy, coefficients), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_denoise_step_with_a_third_part_that_x0_is_written_over(bench, shape, dtype, layout):
    prediction, noisy, extra = (latents(shape, dtype, seed, bench.device) for seed in (0, 1, 2))
    noisy = noisy.contiguous(memory_format=layout)
    extra = extra.contiguous(memory_format=layout)
    coefficients = row(0.9, -0.4, 0.7, 0.2, -0.3, device=bench.device)
    x0 = 0.9 * noisy.float() - 0.4 * prediction.float()
    expected = (0.7 * x0 + 0.2 * noisy.float() - 0.3 * extra.float()).to(dtype)
    close(reference.denoise_step(prediction, noisy, coefficients, extra=extra), expected)
    out = torch.full_like(noisy, torch.nan)
    bench.step_ops.denoise_step(prediction, noisy, coefficients, extra=extra, out=out, x0_out=extra)
    close(out, expected)
    close(extra, x0.to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_noise(bench, shape, dtype, layout):
    clean, noise = (latents(shape, dtype, seed, bench.device) for seed in (0, 1))
    clean = clean.contiguous(memory_format=layout)
    coefficients = row(0.6, 0.8, device=bench.device)
    expected = reference.add_noise(clean, noise, coefficients)
    out = torch.full_like(clean, torch.nan)
    assert bench.step_ops.add_noise(clean, noise, coefficients, out=out) is out
    close(out, expected)
    close(bench.step_ops.add_noise(clean, noise, coefficients), expected)


def test_a_step_may_write_over_its_input(bench):
    prediction, noisy = (latents((1, 4, 8, 8), torch.float32, seed, bench.device) for seed in (0, 1))
    coefficients = row(0.9, -0.4, 0.7, 0.2, device=bench.device)
    expected = reference.denoise_step(prediction, noisy, coefficients)
    close(bench.step_ops.denoise_step(prediction, noisy, coefficients, out=noisy), expected)


def test_a_view_with_gaps(bench):
    prediction, noisy = (
        latents((1, 8, 9, 9), torch.float32, seed, bench.device)[:, 2:6, :, 1:8] for seed in (0, 1)
    )
    coefficients = row(0.9, -0.4, 0.7, 0.2, device=bench.device)
    expected = reference.denoise_step(prediction, noisy, coefficients)
    close(bench.step_ops.denoise_step(prediction, noisy, coefficients), expected)


def test_coefficients_are_read_where_they_lie(bench):
    prediction, noisy = (latents((1, 4, 8, 8), torch.float32, seed, bench.device) for seed in (0, 1))
    table = torch.tensor([[9.0, 9, 9, 9], [0.9, -0.4, 0.7, 0.2]], device=bench.device)
    expected = reference.denoise_step(prediction, noisy, row(0.9, -0.4, 0.7, 0.2, device=bench.device))
    close(bench.step_ops.denoise_step(prediction, noisy, table[1]), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 8, 8, 12), (2, 5, 7, 9), (4, 32, 13, 5)])
def test_each_picture_may_have_numbers_of_its_own(bench, shape, layout):
    prediction, noisy, extra = (latents(shape, torch.float32, seed, bench.device) for seed in (0, 1, 2))
    prediction, noisy, extra = (each.contiguous(memory_format=layout) for each in (prediction, noisy, extra))
    table = torch.randn(shape[0], 5, generator=torch.Generator().manual_seed(3)).to(bench.device)
    for columns, options in ((4, {}), (5, {"extra": extra})):
        rows = table[:, :columns].contiguous()
        each = [
            reference.denoise_step(
                prediction[i : i + 1],
                noisy[i : i + 1],
                rows[i],
                **{name: value[i : i + 1] for name, value in options.items()},
            )
            for i in range(len(noisy))
        ]
        close(reference.denoise_step(prediction, noisy, rows, **options), torch.cat(each))
        out, x0 = torch.full_like(noisy, torch.nan), torch.full_like(noisy, torch.nan)
        bench.step_ops.denoise_step(prediction, noisy, rows, out=out, x0_out=x0, **options)
        close(out, torch.cat(each))
        a, b = (rows[:, i].view(-1, 1, 1, 1) for i in (0, 1))
        close(x0, a * noisy + b * prediction)


def test_refuses_latents_of_two_forms(bench):
    noisy = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"float32\[1, 4, 8, 8\] and float32\[1, 4, 8, 9\]"):
        bench.step_ops.denoise_step(torch.zeros(1, 4, 8, 9), noisy, torch.zeros(4))
    with pytest.raises(ValueError, match=r"coefficients are float32\[2\], expected float32\[4\]"):
        bench.step_ops.denoise_step(noisy, noisy, torch.zeros(2))
    with pytest.raises(ValueError, match=r"coefficients are float32\[4\], expected float32\[5\]"):
        bench.step_ops.denoise_step(noisy, noisy, torch.zeros(4), extra=noisy)


def test_a_kernel_refuses_memory_in_another_order(bench):
    noisy = torch.zeros(1, 4, 8, 8, device=bench.device)
    out = torch.empty_like(noisy, memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="with strides"):
        bench.step_ops.denoise_step(noisy, noisy, torch.zeros(4, device=bench.device), out=out)
