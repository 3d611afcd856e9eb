"""The bench of the kernels: that it looks before it measures, and counts what it says. No test looks at speed."""

import math

import pytest
import torch

import layers
from instantvision.kernels import reference_layers, token_reference
from instantvision.kernels.token_reference import E4M3_MAX
from instantvision.pipeline.eight_bit import E4M3
from layer_cases import Case, Way, attention_case, cases
from layers import check, measure
from recorded_calls import Call, Recorder
from roofline import Ceilings

CPU = torch.device("cpu")


class Ops:
    """A backend of the reference, with one operation of our own making."""

    layer_ops, token_ops = reference_layers, token_reference


def linear_call():
    arguments = {
        "sources": (torch.randn(1, 6, 8), torch.randn(1, 6, 4)),
        "weight": torch.randn(10, 12),
        "bias": torch.randn(10),
        "residual": torch.randn(1, 6, 10),
        "moments": True,
    }
    return Call("layer_ops", "linear", arguments, 3)


def test_calls_of_one_form_are_one_and_the_first_ones_values_are_kept():
    recorder, calls = Recorder("layer_ops", reference_layers), {}
    x, weight = torch.randn(1, 4, 8), torch.randn(8, 8)
    recorder.linear((x,), weight, weight[0])
    recorder.calls = calls
    first = x.clone()
    for _ in range(2):
        recorder.linear((x,), weight, weight[0])
        x.zero_()
    recorder.linear((torch.randn(1, 5, 8),), weight, weight[0], moments=True)
    counts = [(call.name, call.times) for call in calls.values()]
    assert counts == [("linear", 2), ("linear", 1)]
    assert torch.equal(next(iter(calls.values())).arguments["sources"][0], first)


def test_a_result_that_was_not_written_does_not_pass():
    [case] = cases([linear_call()], "mini", Ops)
    assert check(case, torch.float32) <= 1e-6
    lazy = Way(lambda **arguments: (torch.empty(1, 6, 10), torch.zeros(1, 1, 2, 10)), case.ours.arguments)
    assert math.isnan(check(layers.replace(case, ours=lazy), torch.float32))


def test_a_result_of_another_shape_does_not_pass():
    [case] = cases([linear_call()], "mini", Ops)
    cut = Way(lambda **arguments: reference_layers.linear(**arguments)[0][:, :3], case.ours.arguments)
    assert math.isnan(check(layers.replace(case, ours=cut), torch.float32))


def test_a_wrong_result_does_not_pass(caplog):
    [case] = cases([linear_call()], "mini", Ops)
    wrong = Way(lambda **arguments: reference_layers.linear(**arguments)[0] * 1.01, case.ours.arguments)
    assert check(layers.replace(case, ours=wrong), torch.float32) > 1e-3
    assert "the kernel is off by" in caplog.text


def test_what_is_beyond_e4m3_is_its_largest_number():
    arguments = {"values": torch.full((4,), 1.3 * E4M3_MAX), "dtype": E4M3}
    [case] = cases([Call("token_ops", "rounded", arguments, 1)], "sd-turbo", Ops)
    assert check(case, torch.float32) == 0
    small = Way(lambda values, dtype: (0.9 * values.clamp(max=E4M3_MAX)).to(dtype), arguments)
    assert check(layers.replace(case, ours=small), torch.float32) > 0.05


def test_bytes_and_operations_are_counted():
    [case] = cases([linear_call()], "mini", Ops)
    row = measure(case, 0.0, CPU, Ceilings())
    assert row.tflops == pytest.approx(2 * 6 * 12 * 10 / row.ours_us.median / 1e6)
    read, written = 4 * (6 * 8 + 6 * 4 + 10 * 12 + 10 + 60), 4 * (60 + 20)
    assert row.tbps == pytest.approx((read + written) / row.ours_us.median / 1e6)
    # Joined sources, product, sum.
    assert row.unfused_written_mb == pytest.approx(4 * (6 * 12 + 60 + 60) / 1e6)
    assert (row.times, row.chosen, row.unfused_by) == (3, "ours", "torch")


def test_weights_are_rotated_and_pictures_stay():
    [case] = cases([linear_call()], "mini", Ops)
    one, other = (way.arguments for way in case.ours.rotated(2))
    assert one["weight"].data_ptr() != other["weight"].data_ptr()
    assert one["sources"][0].data_ptr() == other["sources"][0].data_ptr()
    assert case.ours.weight_bytes == 4 * (120 + 10)


def test_attention_is_compared_with_several_ways():
    case: Case = attention_case(20, 32, 2, "sd-turbo", Ops, (CPU, torch.float32))
    assert check(case, torch.float32) <= 1e-5
    row = measure(case, 0.0, CPU, Ceilings())
    assert row.chosen == "unfused"
    assert row.unfused_by in layers.BACKENDS


def test_a_doubled_convolution_is_repeating_and_convolving():
    framed = reference_layers.frame((torch.randn(1, 8, 5, 6),))
    arguments = {
        "framed": framed,
        "folded": torch.empty(48, 8, 2, 2),
        "bias": torch.randn(12),
        "activation": "relu",
        "framed_out": True,
    }
    [case] = cases([Call("layer_ops", "conv3x3_doubled", arguments)], "sd-turbo", Ops)
    assert check(case, torch.float32) <= 1e-5
    assert layers._error(case.unfused(), case.exact()[0]) <= 1e-4


def convolution_in_e4m3() -> Call:
    arguments = {
        "framed": reference_layers.frame((torch.randn(1, 8, 5, 6),), dtype=E4M3),
        "weight": torch.randn(12, 8, 3, 3).to(E4M3).contiguous(memory_format=torch.channels_last),
        "bias": torch.randn(12),
        "scale": torch.rand(12) + 0.5,
        "framed_out": True,
        "dtype": E4M3,
    }
    return Call("layer_ops", "conv3x3", arguments, 2)


def test_e4m3_is_compared_with_what_torch_does_in_more_bits():
    [case] = cases([convolution_in_e4m3()], "sd-turbo", Ops)
    assert check(case, torch.float32) <= 7e-2
    # The unfused convolution is not rounded.
    assert layers._error(case.unfused(), case.exact()[0]) <= 1e-4
    assert case.unfused().dtype == torch.float32
    assert case.ours()[0].dtype == E4M3
    assert measure(case, 0.0, CPU, Ceilings()).floor_us == pytest.approx(
        max(2 * 8 * 9 * 12 * 30 / 1331e6, (8 * 56 + 8 * 9 * 12 + 4 * (12 + 12) + 12 * 56) / 3.02e6)
    )


def test_a_scale_that_is_left_out_does_not_pass(caplog):
    [case] = cases([convolution_in_e4m3()], "sd-turbo", Ops)
    without = case.ours.arguments | {"scale": torch.ones(12)}
    assert check(layers.replace(case, ours=Way(case.ours.function, without)), torch.float32) > 7e-2


def test_pictures_side_by_side_are_found_in_e4m3():
    arguments = {"pictures": (torch.randn(1, 8, 5, 6), torch.randn(1, 4, 5, 6)), "dtype": E4M3}
    [case] = cases([Call("layer_ops", "frame", arguments)], "sd-turbo", Ops)
    assert check(case, torch.float32) <= 7e-2
    assert layers._error(case.unfused(), case.exact()) <= 1e-6


def test_what_comes_multiplied_by_a_constant_is_compared_with_the_reference():
    arguments = {"x": torch.randn(1, 6, 16).to(E4M3), "bias": torch.randn(16), "dtype": E4M3, "scale": 8.0}
    [case] = cases([Call("token_ops", "geglu", arguments)], "sd-turbo", Ops)
    assert check(case, torch.float32) <= 7e-2
    assert layers._error(case.unfused(), case.exact()) <= 1e-5


def test_a_context_is_folded_for_ours_and_not_for_the_unfused_way():
    arguments = {
        "parts": torch.randn(1, 2, 9, 16),
        "norm_weight": torch.randn(16),
        "norm_bias": torch.randn(16),
        "queries_to_scores": torch.empty(1, 16, 16),
        "scores_to_out": torch.empty(1, 16, 16),
        "bias": torch.randn(16),
        "heads": 2,
        "eps": 1e-5,
    }
    [case] = cases([Call("layer_ops", "cross_attention", arguments)], "mini", Ops)
    assert check(case, torch.float32) <= 1e-5
    assert layers._error(case.unfused(), case.exact()) <= 1e-4
