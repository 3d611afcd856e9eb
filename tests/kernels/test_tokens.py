"""The layers of wide transformers: kernels against the reference in float32, at even and odd shapes."""

import logging

import pytest
import torch

from instantvision.kernels import token_reference as reference

E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize("channels", [64, 80, 1280])
@pytest.mark.parametrize("update", ["none", "plain", "biased"])
def test_add_layer_norm(bench, make, channels, update):
    x = make(2, 5, channels)
    taken_in = None if update == "none" else make(2, 5, channels)
    update_bias = make(channels) if update == "biased" else None
    arguments = x, taken_in, update_bias, make(channels), make(channels)
    options = {"eps": 1e-5, "dtype": make.dtype}
    make.compare(bench.token_ops.add_layer_norm, reference.add_layer_norm, *arguments, **options)


def test_without_an_update_the_stream_is_the_same_memory(bench, make):
    x = make(1, 3, 64)
    stream, _ = bench.token_ops.add_layer_norm(x, None, None, make(64), make(64), eps=1e-5, dtype=make.dtype)
    assert stream is x


@pytest.mark.parametrize(("tokens", "channels"), [(7, 96), (3, 2560), (1, 16)])
@pytest.mark.parametrize("paired", [False, True])
def test_geglu(bench, make, tokens, channels, paired):
    arguments = make(2, tokens, 2 * channels), make(2 * channels)
    make.compare(bench.token_ops.geglu, reference.geglu, *arguments, dtype=make.dtype, paired=paired)


@pytest.mark.parametrize(("tokens", "channels"), [(7, 96), (4, 256), (1, 16)])
def test_geglu_of_a_product_in_e4m3(bench, make, tokens, channels):
    # The kernel reads the same numbers, so only the scale can be wrong.
    x = make(2, tokens, 2 * channels, scale=8.0).to(E4M3)
    make.compare(bench.token_ops.geglu, reference.geglu, x, make(2 * channels), dtype=make.dtype, scale=8.0)


def test_pairs():
    assert reference.pairs(torch.tensor([1, 2, 3, -1, -2, -3])).tolist() == [1, -1, 2, -2, 3, -3]


# The largest is more than a tile of tokens, of features and of channels each, and fills none.
@pytest.mark.parametrize(("tokens", "features", "channels"), [(7, 48, 96), (128, 64, 128), (131, 72, 144)])
@pytest.mark.parametrize("gate_scale", [1.0, 8.0])
def test_gated_product(bench, make, tokens, features, channels, gate_scale):
    arguments = make(1, tokens, channels), make(2 * features, channels), make(2 * features)
    scales = torch.tensor(2.0), torch.tensor(0.5 * gate_scale * channels**-0.5)
    on_device = tuple(each.to(arguments[0].device) for each in scales)
    options = {"dtype": make.dtype, "gate_scale": gate_scale}
    make.compare(bench.token_ops.gated_product, reference.gated_product, *arguments, on_device, **options)


# As many tokens and channels as a library's product is faster for.
def test_gated_product_in_two_passes(bench, make):
    arguments = make(1, 1024, 1280), make(32, 1280), make(32)
    scales = tuple(torch.tensor(value, device=arguments[0].device) for value in (1.0, 8 * 1280**-0.5))
    options = {"dtype": make.dtype, "gate_scale": 8.0}
    make.compare(bench.token_ops.gated_product, reference.gated_product, *arguments, scales, **options)


@pytest.mark.parametrize(("tokens", "heads", "width"), [(150, 2, 32), (128, 1, 64), (20, 3, 16), (33, 2, 40)])
def test_attention_to_themselves(bench, make, tokens, heads, width):
    arguments = make(2, tokens, 3 * heads * width), None
    make.compare(bench.token_ops.attention, reference.attention, *arguments, heads=heads)


@pytest.mark.parametrize(("tokens", "heads", "width"), [(128, 1, 64), (33, 2, 40)])
def test_attention_times_a_scale(bench, make, tokens, heads, width):
    options = {"heads": heads, "dtype": torch.float32, "scale": 8.0}
    make.compare(
        bench.token_ops.attention, reference.attention, make(2, tokens, 3 * heads * width), None, **options
    )
    make.compare(
        bench.token_ops.attention,
        reference.attention,
        make(2, tokens, heads * width),
        make(1, 77, 2 * heads * width),
        **options,
    )


@pytest.mark.parametrize("shape", [(2, 1024), (3, 7, 83)])
def test_rounded(bench, make, shape):
    make.compare(bench.token_ops.rounded, reference.rounded, make(*shape), torch.float32, scale=8.0)


@pytest.mark.parametrize("context", [77, 8, 200])
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_to_a_context(bench, make, context, batch):
    arguments = make(2, 70, 96), make(batch, context, 192)
    make.compare(bench.token_ops.attention, reference.attention, *arguments, heads=3)


def test_attention_of_large_scores(bench, make):
    make.compare(bench.token_ops.attention, reference.attention, make(1, 70, 96, scale=30.0), None, heads=2)


def test_attention_refuses_widths_that_do_not_fit(bench, make):
    with pytest.raises(ValueError, match="5 heads do not fit"):
        bench.token_ops.attention(make(1, 8, 96), None, heads=5)


@pytest.mark.gpu
def test_our_attention_and_the_librarys_agree_whichever_is_chosen(make_on_gpu, caplog):
    from instantvision.kernels import attention, token_ops

    make = make_on_gpu
    queries, context = make(1, 256, 3 * 320), make(1, 77, 640)
    with caplog.at_level(logging.INFO, logger="instantvision.kernels.attention"):
        attention._chosen.clear()
        for pair in ((queries, None), (queries[..., :320].contiguous(), context)):
            make.close(token_ops.attention(*pair, heads=5), reference.attention(*make.exact(pair), heads=5))
            ours = attention.attend(*pair, 5, make.dtype, 1.0)
            make.close(ours, reference.attention(*make.exact(pair), heads=5))
    assert "attention of 5 heads, 256 tokens to themselves, in bfloat16" in caplog.text
    assert "our kernel" in caplog.text
    assert "77 others" in caplog.text


@pytest.mark.gpu
def test_tokens_in_e4m3(make_on_gpu):
    from instantvision.kernels import token_ops

    make = make_on_gpu
    x, weight, bias = make(1, 9, 320), make(320), make(320)
    _, normal = token_ops.add_layer_norm(x, None, None, weight, bias, eps=1e-5, dtype=E4M3)
    _, expected = reference.add_layer_norm(*make.exact((x, None, None, weight, bias)), eps=1e-5, dtype=E4M3)
    make.neighbours(normal, expected, near_zero(expected))
    gated = token_ops.geglu(make(1, 9, 640, scale=40.0), make(640), dtype=E4M3)
    assert gated.float().abs().max() == reference.E4M3_MAX


# With few tokens, with large tiles, and as a library's product and a pass.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "features", "channels"),
    [(50, 640, 320), (1024, 2560, 640), (4100, 2560, 320), (1024, 1280, 1280)],
)
def test_gated_product_in_e4m3(make_on_gpu, tokens, features, channels):
    from instantvision.kernels import token_ops

    make = make_on_gpu
    x, weight = (make(*shape).to(E4M3) for shape in ((1, tokens, channels), (2 * features, channels)))
    bias = make(2 * features)
    scales = tuple(torch.tensor(value, device="cuda") for value in (1.0, 8.0 * channels**-0.5))
    found = token_ops.gated_product(x, weight, bias, scales, dtype=E4M3, gate_scale=8.0).float()
    expected = reference.gated_product(
        *make.exact((x, weight, bias, scales)), dtype=torch.float32, gate_scale=8.0
    )
    # Numbers of e4m3 are up to a sixteenth from what they stand for, a product that is kept in it once more.
    assert (found - expected).norm() / expected.norm() <= 1 / 16
    assert torch.isfinite(found).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "heads", "width"), [(256, 5, 64), (131, 3, 40)])
def test_attention_in_e4m3(make_on_gpu, tokens, heads, width):
    from torch.nn.attention import SDPBackend

    from instantvision.kernels import attention, token_ops

    make, channels = make_on_gpu, heads * width
    itself = make(1, tokens, 3 * channels), None
    text = make(1, tokens, channels), make(1, 77, 2 * channels)
    loud = text[0], text[1] * 400
    for pair in (itself, text):
        expected = reference.attention(*make.exact(pair), heads=heads, dtype=E4M3, scale=8.0)
        floor, found = near_zero(expected), token_ops.attention(*pair, heads=heads, dtype=E4M3, scale=8.0)
        make.neighbours(found, expected, floor)
        for attend in (attention.attend, attention._library(SDPBackend.FLASH_ATTENTION)):
            make.neighbours(attend(*pair, heads, E4M3, 8.0), expected, floor)
            # What is too large is the largest, and no NaN.
            assert attend(*loud, heads, E4M3, 8.0).float().abs().max() == reference.E4M3_MAX


def near_zero(expected):
    """There bf16's rounding, which is of the size of the summands, counts for more."""
    return 2e-3 * expected.float().abs().max().item()
