"""Wide transformers: what passes between their products."""

from types import SimpleNamespace

import pytest
import torch

from instantvision.kernels import token_reference
from instantvision.pipeline.eight_bit import E4M3
from instantvision.pipeline.unet_blocks import TransformerLayer
from instantvision.pipeline.unet_config import Level
from instantvision.pipeline.wide_transformer import WideLayer


@torch.inference_mode()
@pytest.mark.parametrize("fp8", [False, True])
def test_a_layer_is_the_modules(fp8):
    layer = TransformerLayer(Level(channels=64, layers=1, depth=1, heads=2, context=48))
    x, context = torch.randn(1, 15, 64), torch.randn(1, 7, 48)
    expected = layer(x, context)
    wide = WideLayer(layer, token_reference, fp8=fp8)
    stream, update, bias = wide(x, None, None, wide.keys_values(context))
    error = (stream + update + bias - expected).norm() / (expected - x).norm()
    # Numbers of e4m3 are up to a sixteenth from what they stand for.
    assert error <= (0.1 if fp8 else 1e-5)


@torch.inference_mode()
def test_all_that_a_layer_multiplies_is_in_e4m3():
    written = []

    def noting(operation):
        def call(*args, **options):
            result = operation(*args, **options)
            written.append((operation.__name__, (result[1] if isinstance(result, tuple) else result).dtype))
            return result

        return call

    def gated_product(x, weight, bias, scales, **options):
        pairs = token_reference.product(x, weight, scales, x.dtype)
        written.append(("the gate's product", pairs.dtype))
        return token_reference.geglu(
            pairs, bias, dtype=options["dtype"], scale=options["gate_scale"], paired=True
        )

    ops = SimpleNamespace(
        add_layer_norm=noting(token_reference.add_layer_norm),
        attention=noting(token_reference.attention),
        gated_product=noting(gated_product),
    )
    layer = TransformerLayer(Level(channels=64, layers=1, depth=1, heads=2, context=48))
    wide = WideLayer(layer, ops, fp8=True)
    wide(torch.randn(1, 15, 64), None, None, wide.keys_values(torch.randn(1, 7, 48)))
    assert written == [
        (name, E4M3)
        for name in (
            *("add_layer_norm", "attention") * 2,
            "add_layer_norm",
            "the gate's product",
            "gated_product",
        )
    ]
