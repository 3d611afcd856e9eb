"""Pictures to network inputs and back: reference against torch's own fold, kernels against the reference."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.kernels import reference

# fold, height, width: one even size, two odd ones (in positions), and a row longer than a kernel's block.
SHAPES = [(4, 64, 96), (4, 12, 20), (1, 7, 5), (2, 6, 1402)]
DTYPES = [torch.float32, torch.bfloat16]


def picture(height: int, width: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).to(device)


def network_output(fold: int, height: int, width: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    shape = (1, 3 * fold * fold, height // fold, width // fold)
    # A spread of 0.8 puts some values beyond -1..1, which must be clamped.
    return (torch.randn(shape, generator=generator) * 0.8).to(device, dtype)


def test_reference_folds_as_pixel_unshuffle():
    pixels = picture(24, 36)
    result = reference.pixels_to_input(pixels, fold=4, mirror=False, bgr=False, dtype=torch.float32)
    expected = F.pixel_unshuffle(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1, 4)
    torch.testing.assert_close(result, expected, atol=2e-7, rtol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.min() == -1
    assert result.max() == 1


def test_reference_mirrors_left_and_right_and_swaps_colours():
    pixels = picture(8, 12)
    result = reference.pixels_to_input(pixels, fold=4, mirror=True, bgr=True, dtype=torch.float32)
    plain = pixels.flip(1).flip(2).contiguous()
    expected = reference.pixels_to_input(plain, fold=4, mirror=False, bgr=False, dtype=torch.float32)
    assert torch.equal(result, expected)
    assert not torch.equal(pixels, plain)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_comes_back(dtype: torch.dtype, bgr: bool):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(16, 16, 3)
    folded = reference.pixels_to_input(pixels, fold=4, mirror=False, bgr=bgr, dtype=dtype)
    # bf16 keeps 8 bits of -1..1, so bytes near the ends can be off by one, never more.
    off = (reference.output_to_pixels(folded, fold=4, bgr=bgr).int() - pixels.int()).abs().max()
    assert off <= (0 if dtype == torch.float32 else 1)


def test_reference_clamps_and_rounds():
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, 0.5 / 127.5 - 1, 0.499 / 127.5 - 1])
    pixels = reference.output_to_pixels(values.expand(1, 3, 1, -1), fold=1, bgr=False)
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255, 1, 0]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fold", "height", "width"), SHAPES)
def test_pixels_to_input(bench, fold, height, width, dtype, bgr, mirror):
    pixels = picture(height, width, bench.device)
    options = {"fold": fold, "mirror": mirror, "bgr": bgr, "dtype": dtype}
    expected = reference.pixels_to_input(pixels, **options)
    out = torch.full_like(expected, torch.nan)
    assert bench.frame_ops.pixels_to_input(pixels, **options, out=out) is out
    # Triton's interpreter cuts bf16 off where a GPU rounds: one unit in the last place.
    tolerance = 2**-7 if bench.device == "cpu" and dtype == torch.bfloat16 else 0
    for result in (out, bench.frame_ops.pixels_to_input(pixels, **options)):
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fold", "height", "width"), SHAPES)
def test_output_to_pixels(bench, fold, height, width, dtype, bgr, memory_format):
    output = network_output(fold, height, width, dtype, bench.device).contiguous(memory_format=memory_format)
    expected = reference.output_to_pixels(output, fold=fold, bgr=bgr)
    # Bytes have no NaN: two different poisons leave no untouched element unseen.
    for poison in (0x55, 0xAA):
        out = torch.full_like(expected, poison)
        assert bench.frame_ops.output_to_pixels(output, fold=fold, bgr=bgr, out=out) is out
        assert torch.equal(out, expected)


def test_output_to_pixels_of_a_view_with_gaps(bench):
    wide = network_output(4, 16, 64, torch.float32, bench.device)
    view = wide[..., 3:11]
    assert torch.equal(
        bench.frame_ops.output_to_pixels(view, fold=4, bgr=False),
        reference.output_to_pixels(view.contiguous(), fold=4, bgr=False),
    )


@pytest.mark.parametrize("pixels", [torch.zeros(8, 8, 4, dtype=torch.uint8), torch.zeros(8, 8, 3)])
def test_refuses_what_is_no_picture(bench, pixels):
    with pytest.raises(ValueError, match=r"expected contiguous uint8\[H, W, 3\]"):
        bench.frame_ops.pixels_to_input(pixels, fold=4, mirror=False, bgr=False, dtype=torch.float32)


def test_refuses_a_size_that_does_not_fold(bench):
    with pytest.raises(ValueError, match="picture is 9x8, expected multiples of 4"):
        bench.frame_ops.pixels_to_input(picture(8, 9), fold=4, mirror=False, bgr=False, dtype=torch.float32)


def test_refuses_memory_of_another_form(bench):
    with pytest.raises(ValueError, match="expected channels_last"):
        bench.frame_ops.pixels_to_input(
            picture(8, 8), fold=4, mirror=False, bgr=False, dtype=torch.float32, out=torch.empty(1, 48, 2, 2)
        )
    with pytest.raises(ValueError, match=r"expected contiguous uint8\[8, 8, 3\]"):
        bench.frame_ops.output_to_pixels(
            torch.zeros(1, 48, 2, 2), fold=4, bgr=False, out=torch.empty(8, 8, 3)
        )
