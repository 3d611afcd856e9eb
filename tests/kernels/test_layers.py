"""The network's layers: kernels against the reference in float32, at even and odd shapes, with poisoned results."""

import pytest
import torch

from instantvision.kernels import reference_layers as reference

SIZES = [(8, 12), (7, 10), (13, 5)]
E4M3 = torch.float8_e4m3fn


def assert_same_in_e4m3(make, result, expected, floor=2e-3):
    """Neighbours, and most of them the same: where a value of bf16 falls between two, it may go to the other."""
    make.neighbours(result, expected, floor)
    assert (result.float() == expected.float()).float().mean() > 0.9


@pytest.mark.parametrize("size", SIZES)
def test_frame(bench, make, size):
    pictures = make(2, 16, *size), make(2, 8, *size)
    for options in ({}, {"size": (2 * size[0], 2 * size[1] - 1)}, {"channels": 32}):
        expected = reference.frame(pictures, **options)
        assert torch.equal(bench.layer_ops.frame(pictures, **options), expected)


CONVOLUTIONS = {
    "plain": lambda make, size: {},
    "silu, framed": lambda make, size: {"activation": "silu", "framed_out": True},
    "residual, moments": lambda make, size: {"residual": make(2, 40, *size), "moments": True},
    "embedding": lambda make, size: {"embedding": make(2, 40)},
    "shared embedding": lambda make, size: {"embedding": make(1, 40)},
    "each its embedding of many": lambda make, size: {"embedding": make(2, 100)[:, 20:60]},
    "shortcut": lambda make, size: {
        "shortcut": ((make(2, 32, *size), make(2, 16, *size)), make(40, 48, scale=0.1))
    },
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv3x3(bench, make, size, options):
    framed = reference.frame((make(2, 32, *size),))
    weight, bias = make(40, 32, 3, 3, scale=0.06), make(40)
    make.compare(bench.layer_ops.conv3x3, reference.conv3x3, framed, weight, bias, **options(make, size))


# Tiles end within lines, and positions of the next tile are read for the last ones of a tile.
@pytest.mark.parametrize("size", [(8, 12), (13, 5), (3, 70), pytest.param((250, 171), marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("channels", "features"), [(64, 3), (48, 4), (128, 1)])
def test_conv3x3_to_few_features(bench, make, size, channels, features):
    if size[0] > 13 and bench.device == "cpu":
        pytest.skip("too large for the interpreter")
    framed = reference.frame((make(2, channels, *size),))
    arguments = framed, make(features, channels, 3, 3, scale=0.06), make(features)
    make.compare(bench.layer_ops.conv3x3, reference.conv3x3, *arguments)


SHALLOW = {
    "plain": {},
    "plus one, relu, framed": {"offset": 1.0, "activation": "relu", "framed_out": True},
    "limited, silu": {"limit": 3.0, "activation": "silu"},
    "moments": {"moments": True},
    "limited, plus a half, framed": {"limit": 0.5, "offset": 0.5, "framed_out": True},
}


# The last size has the tiles of a large picture, too many for the interpreter.
@pytest.mark.parametrize("size", [*SIZES, pytest.param((250, 171), marks=pytest.mark.gpu)])
@pytest.mark.parametrize("options", SHALLOW.values(), ids=SHALLOW)
@pytest.mark.parametrize(("channels", "features"), [(3, 64), (4, 40), (9, 96)])
def test_conv3x3_shallow(bench, make, size, options, channels, features):
    if size[0] > 100 and bench.device == "cpu":
        pytest.skip("too large for the interpreter")
    arguments = make(2, channels, *size), make(features, channels, 3, 3, scale=0.1), make(features)
    make.compare(bench.layer_ops.conv3x3_shallow, reference.conv3x3_shallow, *arguments, **options)


def test_conv3x3_shallow_to_e4m3(bench, make):
    # In steps that bfloat16 still has after the offset: what is compared is how results are rounded.
    picture = (make(2, 3, 9, 11) * 32).round() / 32
    arguments = picture, make(64, 3, 3, 3, scale=0.3), make(64)
    options = {"offset": 1.0, "activation": "relu", "framed_out": True, "dtype": E4M3, "also_plain": True}
    result, plain = bench.layer_ops.conv3x3_shallow(*arguments, **options)
    expected, wanted = reference.conv3x3_shallow(*make.exact(arguments), **options)
    assert_same_in_e4m3(make, result, expected)
    make.close(plain, wanted)


@pytest.mark.parametrize("size", SIZES)
def test_conv3x3_of_stride_2(bench, make, size):
    framed = reference.frame((make(2, 32, *size),))
    arguments = framed, make(40, 32, 3, 3, scale=0.06), make(40)
    make.compare(bench.layer_ops.conv3x3, reference.conv3x3, *arguments, stride=2, moments=True)


@pytest.mark.parametrize("features", [32, 256])
def test_conv3x3_in_the_tiles_of_a_large_picture(bench, make, features):
    framed = reference.frame((make(1, 64, 20, 300 if bench.device == "cuda" else 21),))
    arguments = framed, make(features, 64, 3, 3, scale=0.04), make(features)
    make.compare(bench.layer_ops.conv3x3, reference.conv3x3, *arguments, framed_out=True)


# 2**22 values and more are normalised by the convolution itself, which the interpreter is too slow for.
@pytest.mark.parametrize("size", [(9, 6), pytest.param((130, 131), marks=pytest.mark.gpu)])
def test_conv3x3_rms(bench, make, size):
    if size[0] > 9 and bench.device == "cpu":
        pytest.skip("too large for the interpreter")
    framed = reference.frame((make(2, 32, *size),))
    arguments = framed, make(128, 32, 3, 3, scale=0.06), make(128), make(128)
    options = {"eps": 1e-5, "residual": make(2, 128, *size)}
    make.compare(bench.layer_ops.conv3x3_rms, reference.conv3x3_rms, *arguments, **options)


def test_conv3x3_rms_on_store(interpreter, make_on_cpu, monkeypatch):
    make = make_on_cpu
    convolve = interpreter.layer_ops.conv3x3_rms
    monkeypatch.setitem(convolve.__globals__, "WHOLE_ROWS_MIN", 0)
    framed = reference.frame((make(2, 16, 5, 6),))
    arguments = framed, make(24, 16, 3, 3, scale=0.1), make(24), make(24)
    make.compare(convolve, reference.conv3x3_rms, *arguments, eps=1e-5, residual=make(2, 24, 5, 6))


@pytest.mark.parametrize("size", SIZES)
def test_channel_moments(bench, make, size):
    picture = make(2, 24, *size)
    make.close(bench.layer_ops.channel_moments(picture).sum(1), reference.channel_moments(picture).sum(1))


# Groups that fill blocks of channels, of one picture and of two equal ones; groups across two unequal pictures.
@pytest.mark.parametrize(("channels", "groups"), [((128,), 32), ((64, 64), 16), ((48, 24), 6), ((40,), 4)])
@pytest.mark.parametrize("size", SIZES)
def test_group_norm(bench, make, size, channels, groups):
    pictures = tuple(make(2, width, *size) for width in channels)
    total = sum(channels)
    for options in (
        {},
        {"silu": True, "framed_out": True},
        {"modulation": make(1, 2 * total)},
        {"modulation": make(2, 2 * total)},
        {"modulation": make(2, 3 * total)[:, 16 : 16 + 2 * total]},
    ):
        options |= {"groups": groups, "eps": 1e-5}
        arguments = pictures, (None,) * len(channels), make(total), make(total)
        make.compare(bench.layer_ops.group_norm, reference.group_norm, *arguments, **options)


def test_moments_of_a_convolution_serve_the_normalisation(bench, make):
    framed = reference.frame((make(1, 32, 9, 11),))
    picture, moments = bench.layer_ops.conv3x3(framed, make(64, 32, 3, 3, scale=0.06), make(64), moments=True)
    options = {"groups": 8, "eps": 1e-5}
    weight, bias = make(64), make(64)
    result = bench.layer_ops.group_norm((picture,), (moments,), weight, bias, **options)
    make.close(result, reference.group_norm((picture,), (None,), weight, bias, **options))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("tokens", "channels", "features"), [(70, 64, 96), (64, 80, 40), (3, 16, 16)])
def test_norm_linear(bench, make, tokens, channels, features, gated):
    arguments = make(2, tokens, channels), make(channels), make(channels)
    weight = make(features * (2 if gated else 1), channels, scale=0.1)
    for bias in (None, make(len(weight))):
        options = {"eps": 1e-5, "gated": gated}
        function = bench.layer_ops.norm_linear
        make.compare(function, reference.norm_linear, *arguments, weight, bias, **options)


def test_norm_linear_over_groups(bench, make):
    tokens = make(2, 70, 64)
    moments = bench.layer_ops.channel_moments(tokens.transpose(1, 2)[..., None])
    arguments = tokens, make(64), make(64), make(96, 64, scale=0.1), make(96)
    options = {"eps": 1e-6, "groups": 16, "moments": moments}
    make.compare(bench.layer_ops.norm_linear, reference.norm_linear, *arguments, **options)


@pytest.mark.parametrize("widths", [(128,), (32, 128), (48,)])
def test_linear(bench, make, widths):
    sources = tuple(make(2, 70, width) for width in widths)
    arguments = sources, make(80, sum(widths), scale=0.1), make(80)
    for options in ({}, {"residual": make(2, 70, 80), "moments": True}):
        make.compare(bench.layer_ops.linear, reference.linear, *arguments, **options)


@pytest.mark.parametrize(("tokens", "heads", "width"), [(150, 2, 32), (128, 1, 64), (20, 3, 16)])
def test_attention_conv(bench, make, tokens, heads, width):
    channels = heads * width
    arguments = (
        make(2, tokens, 3 * channels),
        make(channels, channels, scale=0.1),
        make(channels),
        make(2, tokens, channels),
    )
    result = bench.layer_ops.attention_conv(*arguments, heads=heads)
    expected = reference.attention_conv(*(make.exact(argument) for argument in arguments), heads=heads)
    make.close(result.float().sum(1), expected.sum(1))


def test_attention_of_large_scores(bench, make):
    arguments = make(1, 70, 96, scale=30.0), make(32, 32, scale=0.1), make(32), make(1, 70, 32)
    result = bench.layer_ops.attention_conv(*arguments, heads=2)
    expected = reference.attention_conv(*(make.exact(argument) for argument in arguments), heads=2)
    make.close(result.float().sum(1), expected.sum(1))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("heads", "context"), [(4, 8), (2, 16)])
def test_cross_attention(bench, make, heads, context, parts):
    slots = heads * context
    stacked = make(2, parts, 35, 48).contiguous()
    arguments = stacked, make(48), make(48), make(1, slots, 48, scale=0.2), make(1, slots, 48)
    options = {"heads": heads, "eps": 1e-5}
    function = bench.layer_ops.cross_attention
    make.compare(function, reference.cross_attention, *arguments, make(48), **options)


def test_cross_attention_of_each_picture_to_its_own_context(bench, make):
    scores, values = make(2, 3, 32, 48, scale=0.2), make(2, 3, 32, 48)
    rows = (scores.contiguous()[:, 1], values.contiguous()[:, 1])
    arguments = make(2, 2, 35, 48).contiguous(), make(48), make(48), *rows, make(48)
    function = bench.layer_ops.cross_attention
    make.compare(function, reference.cross_attention, *arguments, heads=4, eps=1e-5)


def test_a_folded_context_is_cross_attention():
    torch.manual_seed(0)
    x, context = torch.randn(2, 10, 32), torch.randn(1, 8, 24)
    query, out = torch.randn(2, 32, 32) / 6
    key, value = torch.randn(2, 32, 24) / 5
    folded = reference.fold_context(query, key, value, out, context, 4)
    weight, bias, out_bias = torch.randn(3, 32)
    result = reference.cross_attention(x[:, None], weight, bias, *folded, out_bias, heads=4, eps=1e-5)
    normal = torch.nn.functional.layer_norm(x, (32,), weight, bias)
    heads = [
        part.unflatten(-1, (4, -1)).transpose(1, 2)
        for part in (normal @ query.T, context @ key.T, context @ value.T)
    ]
    gathered = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(result, x + gathered @ out.T + out_bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 12), (6, 10)])
def test_resampling(bench, make, size):
    layers, options = bench.layer_ops, {"eps": 1e-5}
    framed = reference.frame((make(2, 32, *size),))
    for channels in (32, 64):
        down = make(2, channels // 4, *size), framed, make(channels)
        make.compare(layers.space_to_depth_add, reference.space_to_depth_add, *down, **options)
    for channels in (32, 16):
        up = make(2, 4 * channels, *size), make(2, 32, *size), make(channels)
        make.compare(layers.depth_to_space_add, reference.depth_to_space_add, *up, **options)


@pytest.mark.parametrize("size", SIZES)
def test_conv3x3_between_framed_pictures(bench, make, size):
    framed = reference.frame((make(2, 32, *size),))
    arguments = framed, make(32, 32, 3, 3, scale=0.06), make(32)
    options = {"residual": framed, "activation": "relu", "framed_out": True}
    make.compare(bench.layer_ops.conv3x3, reference.conv3x3, *arguments, **options)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_in_parts(bench, make, stride):
    from instantvision.kernels import conv3x3

    framed = reference.frame((make(2, 64, 9, 12),))
    weight, bias = make(40, 64, 3, 3, scale=0.04), make(40)
    split_sum = conv3x3.split_sum if bench.device == "cuda" else bench.layer_ops.split_sum
    sums = split_sum(framed, weight, stride, None)
    expected, _ = reference.conv3x3(
        framed.float(), weight.float(), torch.zeros_like(bias).float(), stride=stride
    )
    assert sums.shape[1] > 1
    make.close(sums.sum(1), expected)
    for options in ({"embedding": make(2, 40)}, {"residual": make(2, 40, *sums.shape[3:])}):
        make.compare(bench.layer_ops.finish, reference.finish, sums, bias, moments=True, **options)


# As high as a tile, less, and as several; the last of their features is no whole tile's.
@pytest.mark.parametrize("dtype", [None, E4M3])
@pytest.mark.parametrize("size", [(4, 16), (3, 16), (6, 16), (5, 32)])
def test_a_convolution_in_parts_of_whole_lines(bench, make, size, dtype):
    from instantvision.kernels import conv3x3, split_conv

    picture, weight = make(2, 128, *size), make(160, 128, 3, 3, scale=0.03)
    scale = None if dtype is None else make(160).float()
    framed, weight = (each.to(dtype or each.dtype) for each in (reference.frame((picture,)), weight))
    weight = weight.contiguous(memory_format=torch.channels_last)
    split_sum = conv3x3.split_sum if bench.device == "cuda" else bench.layer_ops.split_sum
    assert split_conv.fits_lines(framed, 1)
    sums = split_sum(framed, weight, 1, scale)
    nothing = torch.zeros(160, device=picture.device)
    expected, _ = reference.conv3x3(framed.float(), weight.float(), nothing, scale=scale)
    assert sums.shape[1] > 1
    make.close(sums.sum(1), expected)


@pytest.mark.parametrize("options", [{"moments": True}, {"activation": "relu", "framed_out": True}])
@pytest.mark.parametrize("size", [*SIZES, (3, 130)])
def test_conv3x3_doubled(bench, make, size, options):
    framed = reference.frame((make(2, 16, *size),))
    folded = reference.fold_doubling(make(40, 16, 3, 3, scale=0.08))
    arguments = framed, folded, make(40)
    make.compare(bench.layer_ops.conv3x3_doubled, reference.conv3x3_doubled, *arguments, **options)


def test_doubling_is_enlarging_and_convolving():
    torch.manual_seed(0)
    picture, weight, bias = torch.randn(2, 6, 5, 7), torch.randn(9, 6, 3, 3), torch.randn(9)
    enlarged = torch.nn.functional.interpolate(picture, scale_factor=2, mode="nearest")
    expected = torch.nn.functional.conv2d(enlarged, weight, bias, padding=1)
    folded = reference.fold_doubling(weight)
    result, _ = reference.conv3x3_doubled(reference.frame((picture,)), folded, bias)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 10), (8, 16), (24, 26)])
def test_conv3x3_of_many_channels(make_on_gpu, stride, height, width):
    from instantvision.kernels import layer_ops

    make = make_on_gpu
    framed = reference.frame((make(2, 1280, height, width),))
    sides = (2, 640, height // stride, width // stride)
    arguments = framed, make(640, 1280, 3, 3, scale=0.01), make(640)
    for options in (
        {"embedding": make(2, 640)},
        {"residual": make(*sides), "moments": True},
        {"shortcut": ((make(*sides), make(*sides)), make(640, 1280, scale=0.03)), "moments": True},
    ):
        make.compare(layer_ops.conv3x3, reference.conv3x3, *arguments, stride=stride, **options)


@pytest.mark.gpu
def test_layers_in_e4m3(make_on_gpu):
    from instantvision.kernels import layer_ops

    make = make_on_gpu
    pictures, weight, bias = (make(1, 64, 9, 11), make(1, 64, 9, 11)), make(128), make(128)
    options = {"groups": 16, "eps": 1e-5, "silu": True, "framed_out": True, "dtype": E4M3}
    framed = layer_ops.group_norm(pictures, (None, None), weight, bias, **options)
    expected = reference.group_norm(
        make.exact(pictures), (None, None), weight.float(), bias.float(), **options
    )
    assert_same_in_e4m3(make, framed, expected)
    rows = make(96, 128, 3, 3, scale=0.2).to(E4M3).contiguous(memory_format=torch.channels_last)
    arguments = framed, rows, make(96)
    scale = torch.linspace(0.01, 0.2, 96, device="cuda")
    shortcut = (make(1, 32, 9, 11),), make(96, 32, scale=0.1)
    result, _ = layer_ops.conv3x3(*arguments, scale=scale, shortcut=shortcut)
    wanted, _ = reference.conv3x3(
        framed, rows, arguments[2].float(), scale=scale, shortcut=make.exact(shortcut)
    )
    make.close(result, wanted)


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_in_e4m3(bench, make, size):
    picture = make(2, 24, *size, scale=100.0)
    picture[0, 0, 0, 0] = 1000
    framed = bench.layer_ops.frame((picture,), dtype=E4M3)
    assert_same_in_e4m3(make, framed, reference.frame((picture,), dtype=E4M3))
    assert framed[0, 0, 1, 1] == 448


RESIDUALS = {
    "no residual": lambda residual: {},
    "plain residual": lambda residual: {"residual": residual, "also_plain": True},
    "framed residual": lambda residual: {"residual": reference.frame((residual,))},
}


# One strip and several, with lines that fill the last program's and some that do not.
@pytest.mark.parametrize(
    "size", [(8, 12), (16, 64), (19, 5), (3, 130), pytest.param((250, 171), marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("framed_out", [False, True], ids=["plain", "framed"])
def test_conv3x3_in_strips(bench, make, size, framed_out, monkeypatch):
    if size[0] > 100 and bench.device == "cpu":
        pytest.skip("too large for the interpreter")
    convolve = bench.layer_ops.conv3x3
    monkeypatch.setitem(convolve.__globals__["fits_strips"].__globals__, "PROGRAMS_MIN", 0)
    framed, weight = reference.frame((make(2, 64, *size),)).to(E4M3), make(64, 64, 3, 3).to(E4M3)
    arguments = {"scale": torch.linspace(0.01, 0.2, 64, device=bench.device), "framed_out": framed_out}
    bias = make(64)
    result, _ = convolve(framed, weight, bias, activation="silu", **arguments)
    expected, _ = reference.conv3x3(framed, weight, bias.float(), activation="silu", **arguments)
    make.close(result, expected)
    if framed_out:
        options = arguments | {"activation": "relu", "dtype": E4M3}
        result, _ = convolve(framed, weight, bias, **options)
        expected, _ = reference.conv3x3(framed, weight, bias.float(), **options)
        assert_same_in_e4m3(make, result, expected, 2e-3 * expected.float().abs().max().item())


# The last size has the tiles of a large picture, too many for the interpreter.
@pytest.mark.parametrize("size", [*SIZES, pytest.param((141, 120), marks=pytest.mark.gpu)])
@pytest.mark.parametrize("options", RESIDUALS.values(), ids=RESIDUALS)
@pytest.mark.parametrize("eight_bit", [False, True], ids=["from 16 bits", "from 8 bits"])
def test_conv3x3_to_e4m3(bench, make, size, options, eight_bit):
    if size[0] > 100 and bench.device == "cpu":
        pytest.skip("too large for the interpreter")
    framed, weight, bias = reference.frame((make(2, 64, *size),)), make(64, 64, 3, 3), make(64)
    framed, weight = (tensor.to(E4M3 if eight_bit else make.dtype) for tensor in (framed, weight))
    scale = torch.linspace(0.01, 0.2, 64, device=bench.device) if eight_bit else None
    options = {"activation": "relu", "framed_out": True, "dtype": E4M3} | options(make(2, 64, *size))
    result, plain = bench.layer_ops.conv3x3(framed, weight, bias, scale=scale, **options)
    exact = {key: make.exact(value) if key == "residual" else value for key, value in options.items()}
    arguments = (framed, weight) if eight_bit else make.exact((framed, weight))
    expected, wanted = reference.conv3x3(*arguments, bias.float(), scale=scale, **exact)
    # Products of e4m3 are added up with few digits on a GPU.
    floor = 2e-3 * expected.float().abs().max().item() if eight_bit else 2e-3
    assert_same_in_e4m3(make, result, expected, floor)
    if "also_plain" in options:
        make.close(plain, wanted)


@pytest.mark.parametrize("size", [*SIZES, (3, 130)])
def test_conv3x3_doubled_to_e4m3(bench, make, size):
    arguments = reference.frame((make(2, 16, *size),)), reference.fold_doubling(make(40, 16, 3, 3)), make(40)
    options = {"framed_out": True, "dtype": E4M3, "also_plain": True}
    result, plain = bench.layer_ops.conv3x3_doubled(*arguments, **options)
    expected, wanted = reference.conv3x3_doubled(*make.exact(arguments), **options)
    assert_same_in_e4m3(make, result, expected)
    make.close(plain, wanted)


def test_refusals(bench, make):
    layers, framed = bench.layer_ops, reference.frame((make(1, 32, 6, 6),))
    with pytest.raises(ValueError, match=r"weight is \[8, 16, 3, 3\] for a picture \[1, 32, 8, 8\]"):
        layers.conv3x3(framed, make(8, 16, 3, 3), make(8))
    with pytest.raises(ValueError, match="another order than channels_last"):
        layers.conv3x3(framed.contiguous(), make(8, 32, 3, 3), make(8))
    with pytest.raises(ValueError, match="the picture has 17 channels, expected at most 16"):
        layers.conv3x3_shallow(make(1, 17, 6, 6), make(8, 17, 3, 3), make(8))
    with pytest.raises(ValueError, match=r"weight is \[8, 4, 3, 3\] for a picture \[1, 3, 6, 6\]"):
        layers.conv3x3_shallow(make(1, 3, 6, 6), make(8, 4, 3, 3), make(8))
    for options in ({"dtype": E4M3}, {"also_plain": True}):
        with pytest.raises(ValueError, match="expected framed_out"):
            layers.conv3x3(framed, make(8, 32, 3, 3), make(8), **options)
    with pytest.raises(ValueError, match="expected one of them"):
        layers.conv3x3(framed, make(8, 32, 3, 3), make(8), framed_out=True, moments=True, also_plain=True)
    with pytest.raises(ValueError, match="12 scores a token, expected a power of two"):
        layers.cross_attention(
            make(1, 1, 5, 8), make(8), make(8), make(1, 12, 8), make(1, 12, 8), make(8), heads=3, eps=1e-5
        )
