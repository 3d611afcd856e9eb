"""What a frame takes over from the one before: kernels against the reference, the reference against the definition."""

import pytest
import torch

from instantvision.kernels import temporal_reference as reference

# One even size, two odd ones; channels that are no power of two; planes that end inside a block.
SHAPES = [(1, 32, 16, 16), (1, 4, 7, 5), (1, 6, 33, 21)]
DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
STILL, MOVED = 0.2, 0.5


def latents(shape, dtype, seed, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def limits(low=STILL, high=MOVED, device="cpu"):
    return torch.tensor([low, high], device=device)


def close(result, expected):
    # Sums in another order, and one rounding to bfloat16.
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[expected.dtype]
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_motion(bench, shape, dtype, layout):
    one, other = (latents(shape, dtype, seed, bench.device) for seed in (0, 1))
    one = one.contiguous(memory_format=layout)
    expected = reference.motion(one, other)
    out = torch.full_like(expected, torch.nan)
    assert bench.temporal_ops.motion(one, other, out=out) is out
    close(out, expected)
    assert not bool(bench.temporal_ops.motion(one, one).any())


@pytest.mark.parametrize("shape", SHAPES)
def test_gate_and_spread(bench, shape):
    motion = latents((1, 1, *shape[2:]), torch.float32, 3, bench.device).square() / 4
    expected = reference.gate(motion, limits(device=bench.device))
    assert 0 < float(expected.mean()) < 1
    close(bench.temporal_ops.gate(motion, limits(device=bench.device)), expected)
    close(bench.temporal_ops.spread(expected), reference.spread(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_blend(bench, shape, dtype, layout):
    kept, new = (latents(shape, dtype, seed, bench.device) for seed in (0, 1))
    kept = kept.contiguous(memory_format=layout)
    share = torch.rand((1, 1, *shape[2:]), device=bench.device)
    share[..., 0, :], share[..., 1, :] = 0, 1
    expected = reference.blend(kept, new, share)
    out = torch.full_like(kept, torch.nan)
    assert bench.temporal_ops.blend(kept, new, share, out=out) is out
    close(out, expected)
    # Bit by bit: what stands still must not drift, and a cut must leave nothing behind.
    assert torch.equal(out[:, :, 0], kept[:, :, 0])
    assert torch.equal(out[:, :, 1], new[:, :, 1])
    bench.temporal_ops.blend(kept, new, share, out=kept)
    assert torch.equal(kept, out)


def test_the_gate_is_closed_below_its_limits_and_open_above_them():
    steady = torch.full((1, 1, 4, 4), 1.0)
    assert not bool(reference.gate(steady * STILL**2, limits()).any())
    assert bool((reference.gate(steady * (MOVED**2 + 1e-4), limits()) == 1).all())
    middle = reference.gate(steady * ((STILL + MOVED) / 2) ** 2, limits())
    torch.testing.assert_close(middle, torch.full_like(middle, 0.5))


def test_limits_below_zero_open_every_gate():
    assert bool((reference.gate(torch.zeros(1, 1, 4, 4), limits(-2, -1)) == 1).all())


def test_spread_reaches_two_positions_and_no_further():
    gate = torch.zeros(1, 1, 9, 9)
    gate[0, 0, 4, 4] = 1
    reach = reference.spread(gate)[0, 0]
    assert float(reach[4, 4]) == 1
    assert 0 < float(reach[4, 6]) < float(reach[4, 5]) < 1
    assert float(reach[4, 7]) == 0
    assert torch.equal(reach, reach.T)


def test_refuses_latents_of_two_forms(bench):
    one, other = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 9)
    for operation in (reference.motion, bench.temporal_ops.motion):
        with pytest.raises(ValueError, match="expected one form"):
            operation(one, other)
    with pytest.raises(ValueError, match="expected one form"):
        bench.temporal_ops.blend(one, other, torch.zeros(1, 1, 8, 8))
