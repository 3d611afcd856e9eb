"""The networks in fused layers against the modules that define them."""

import copy

import pytest
import torch
from torch import nn

from instantvision.kernels import reference_layers, token_reference
from instantvision.kernels.token_reference import rounded
from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig, TinyBlock
from instantvision.pipeline.eight_bit import E4M3, scaled
from instantvision.pipeline.fused_autoencoder import FusedAutoencoder
from instantvision.pipeline.fused_tiny_autoencoder import FusedTinyAutoencoder
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


def test_autoencoder():
    autoencoder = placed(Autoencoder())
    fused = FusedAutoencoder(autoencoder, reference_layers)
    folded = torch.rand(1, 48, 24, 32) * 2 - 1
    latents = autoencoder.encode(folded)
    assert relative_error(fused.encode(folded), latents) <= 1e-5
    assert relative_error(fused.decode(latents), autoencoder.decode(latents)) <= 1e-5


def in_e4m3(autoencoder):
    """The same network, the convolutions of its blocks reading and multiplying numbers of e4m3."""
    autoencoder = copy.deepcopy(autoencoder)
    blocks = [module for module in autoencoder.modules() if isinstance(module, TinyBlock)]
    for conv in (part for block in blocks for part in block.conv if isinstance(part, nn.Conv2d)):
        small, scale = scaled(conv.weight)
        conv.weight.copy_(small.float() * scale[:, None, None, None])
        conv.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], E4M3).float(),))
    return autoencoder


@pytest.mark.parametrize("size", [(32, 48), (27, 33)])
def test_the_blocks_of_a_tiny_autoencoder_in_e4m3(size):
    torch.manual_seed(0)
    stages = {f"num_{half}_blocks": (1, 1) for half in ("encoder", "decoder")}
    widths = {f"{half}_block_out_channels": (64, 64) for half in ("encoder", "decoder")}
    autoencoder = placed(AutoencoderTiny(AutoencoderTinyConfig(**stages, **widths)))
    fused, rounding = FusedTinyAutoencoder(autoencoder, reference_layers, fp8=True), in_e4m3(autoencoder)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    latents = autoencoder.encode(pixels)
    for half, x in (("encode", pixels), ("decode", latents)):
        exact, expected, result = (getattr(each, half)(x) for each in (autoencoder, rounding, fused))
        cost = relative_error(expected, exact)
        assert cost > 0.01
        # A sum in another order moves a number to the next one of e4m3 now and then, and that one moves others.
        assert relative_error(result, expected) <= cost / 4


def test_e4m3_leaves_narrow_autoencoders_alone():
    widths = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
    autoencoder = placed(AutoencoderTiny(AutoencoderTinyConfig(**widths)))
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    one, other = (FusedTinyAutoencoder(autoencoder, reference_layers, fp8=fp8) for fp8 in (False, True))
    assert torch.equal(one.encode(pixels), other.encode(pixels))
