"""Matrix products in e4m3 against the same in float32."""

import pytest
import torch
import torch.nn.functional as F

from instantvision.kernels.token_reference import rounded
from instantvision.pipeline.eight_bit import E4M3, Product

# Rounding moves a number by up to a sixteenth, mostly by less; two factors and their product add up to no more.
TOLERANCE = 1 / 16


def relative_error(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tokens", [16, 7])
@pytest.mark.parametrize(("spread", "scale"), [(1.0, 1.0), (0.02, 8.0)])
def test_an_input_comes_times_its_scale(tokens, spread, scale):
    x, weight = torch.randn(2, tokens, 96) * spread, torch.randn(48, 96)
    product = Product(weight, True, scale=scale)
    assert (product.dtype, product.scale, product.out_dtype, product.out_scale) == (E4M3, scale, x.dtype, 1)
    found = product(rounded(x, E4M3, scale))
    assert relative_error(found, F.linear(x, weight)) <= TOLERANCE


def test_a_result_in_e4m3_is_times_its_scale():
    x, weight = torch.randn(5, 96), torch.randn(48, 96) / 10
    product = Product(weight, True, scale=4.0, out_scale=8.0)
    found = product(rounded(x, E4M3, 4.0))
    assert found.dtype == product.out_dtype == E4M3
    assert relative_error(found.float() / product.out_scale, F.linear(x, weight)) <= TOLERANCE
    # What is too large is the largest, and no NaN.
    assert product(rounded(x, E4M3, 4.0 * 64)).float().abs().max() == torch.finfo(E4M3).max


@pytest.mark.parametrize(("shape", "fp8"), [((48, 96), False), ((48, 24), True), ((40, 96), True)])
def test_without_e4m3_there_are_no_scales(shape, fp8):
    x, weight = torch.randn(5, shape[1]), torch.randn(shape)
    product = Product(weight, fp8, scale=4.0, out_scale=8.0)
    assert (product.dtype, product.scale, product.out_dtype, product.out_scale) == (x.dtype, 1, x.dtype, 1)
    assert torch.equal(product(x), F.linear(x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1024, 77])
@pytest.mark.parametrize("out_scale", [None, 8.0])
def test_products_on_a_gpu(tokens, out_scale):
    x, weight = torch.randn(1, tokens, 640) / 50, torch.randn(1280, 640)
    product = Product(weight.to("cuda", torch.bfloat16), True, scale=8.0, out_scale=out_scale)
    found = product(rounded(x, E4M3, 8.0).cuda())
    assert (found.dtype, found.shape) == (product.out_dtype, (1, tokens, 1280))
    assert relative_error(found.cpu().float() / product.out_scale, F.linear(x, weight)) <= TOLERANCE
    if out_scale is not None:
        # What is too large is the largest, as on the CPU.
        large = product(rounded(x, E4M3, 8.0 * 1024).cuda())
        assert large.float().abs().max() == torch.finfo(E4M3).max
