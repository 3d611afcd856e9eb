"""The networks in fused layers against the modules that define them."""

import pytest
import torch

from instantvision.kernels import reference_layers, token_reference
from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.fused_autoencoder import FusedAutoencoder
from instantvision.pipeline.fused_unet import FusedUNet
from instantvision.pipeline.mini_denoiser import MiniDenoiser


def placed(module):
    """Weights of every kind, also where a network starts with zeros, in the memory order of the frame path."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def relative_error(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_unet(size):
    unet = placed(MiniDenoiser(3)).unet
    noisy, source = torch.randn(2, 1, 32, *size)
    emb = unet.embed(torch.tensor([100, 700]), class_labels=torch.randn(1, 256).expand(2, -1))
    tokens = torch.randn(1, 8, 256)
    fused = FusedUNet(unet, reference_layers, token_reference, context=8)
    prepared = fused.prepare(emb, tokens)
    for step in range(2):
        expected = unet.forward_embedded(torch.cat([noisy, source], 1), emb[step : step + 1], tokens)
        result = fused((noisy, source), tuple(rows[step : step + 1] for rows in prepared))
        assert relative_error(result, expected) <= 1e-5


def test_unet_of_frames_at_different_steps():
    unet = placed(MiniDenoiser(3)).unet
    noisy, source = torch.randn(2, 3, 32, 6, 5)
    emb = unet.embed(torch.tensor([900, 400, 20]), class_labels=torch.randn(3, 256))
    fused = FusedUNet(unet, reference_layers, token_reference, context=8)
    styles = [fused.prepare(emb[i : i + 1], torch.randn(1, 8, 256)) for i in range(3)]
    together = fused((noisy, source), tuple(torch.cat(rows) for rows in zip(*styles, strict=True)))
    for i, prepared in enumerate(styles):
        alone = fused((noisy[i : i + 1], source[i : i + 1]), prepared)
        assert relative_error(together[i : i + 1], alone) <= 1e-5


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_the_shallow_part_of_a_unet(size):
    unet = placed(MiniDenoiser(3)).unet
    fused = FusedUNet(unet, reference_layers, token_reference, context=8)
    emb = unet.embed(torch.tensor([100]), class_labels=torch.randn(1, 256))
    tokens = torch.randn(1, 8, 256)
    prepared = fused.prepare(emb, tokens)
    pictures, moved = (tuple(each) for each in torch.randn(2, 2, 1, 32, *size))
    whole, deep = fused.keeping(pictures, prepared)
    # With its own deep features an evaluation is as it was, with another's both ways agree.
    assert torch.equal(fused.reusing(pictures, prepared, deep), whole)
    _, features = unet.forward_keeping(torch.cat(pictures, 1), emb, tokens)
    assert relative_error(deep[0], features) <= 1e-5
    result = fused.reusing(moved, prepared, deep)
    expected = unet.forward_reusing(torch.cat(moved, 1), emb, tokens, features)
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(result, fused(moved, prepared)) > 1e-3


def test_autoencoder():
    autoencoder = placed(Autoencoder())
    fused = FusedAutoencoder(autoencoder, reference_layers)
    folded = torch.rand(1, 48, 24, 32) * 2 - 1
    latents = autoencoder.encode(folded)
    assert relative_error(fused.encode(folded), latents) <= 1e-5
    assert relative_error(fused.decode(latents), autoencoder.decode(latents)) <= 1e-5
