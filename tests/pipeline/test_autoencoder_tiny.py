"""Our tiny autoencoder against diffusers', on a small random checkpoint."""

from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

from instantvision.pipeline.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from instantvision.pipeline.checkpoint import load_diffusers_folder, load_into
from instantvision.pipeline.errors import WeightsError

# The same convolutions in the same order; only fp32's last places may differ.
TOLERANCE = 1e-5


class Pair(NamedTuple):
    reference: diffusers.AutoencoderTiny
    ours: AutoencoderTiny


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """diffusers' network with TAESD's stages but less width, and ours with the weights it saved."""
    torch.manual_seed(5)
    widths = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (12,) * 4}
    reference = diffusers.AutoencoderTiny(**widths).eval()
    folder = tmp_path_factory.mktemp("vae")
    reference.save_pretrained(folder)
    config, tensors = load_diffusers_folder(folder)
    ours = AutoencoderTiny(AutoencoderTinyConfig.from_diffusers(config)).eval()
    load_into(ours, tensors)
    return Pair(reference, ours)


def relative_error(found: Tensor, expected: Tensor) -> float:
    # Random weights make nearly constant pictures: compare what varies.
    return ((found - expected).norm() / (expected - expected.mean((2, 3), keepdim=True)).norm()).item()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (27, 33)])
@torch.no_grad()
def test_encode_equals_diffusers(pair: Pair, height: int, width: int) -> None:
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = pair.reference.encode(pixels).latents
    assert relative_error(pair.ours.encode(pixels), expected) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
@torch.no_grad()
def test_decode_equals_diffusers(pair: Pair, height: int, width: int) -> None:
    # Large enough for the decoder's limit to matter.
    latents = 4 * torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))
    expected = pair.reference.decode(latents).sample
    found = pair.ours.decode(latents)
    assert found.shape == (2, 3, 8 * height, 8 * width)
    assert relative_error(found, expected) <= TOLERANCE


def test_parameter_names_equal_diffusers(pair: Pair) -> None:
    assert pair.ours.state_dict().keys() == pair.reference.state_dict().keys()


def test_defaults_are_taesd() -> None:
    assert AutoencoderTinyConfig.from_diffusers(diffusers.AutoencoderTiny().config) == AutoencoderTinyConfig()


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "gelu"},
        {"scaling_factor": 0.18},
        {"upsample_fn": "bilinear"},
        {"a_key_of_next_year": 1},
        {"encoder_block_out_channels": [16, 32, 64, 64]},
        {"decoder_block_out_channels": [64, 64, 64]},
    ],
)
def test_config_we_do_not_implement_is_refused(change: dict[str, Any]) -> None:
    (key, value), *_ = change.items()
    with pytest.raises(WeightsError, match=key) as caught:
        AutoencoderTinyConfig.from_diffusers(change)
    assert str(value) in str(caught.value)


def test_another_class_is_refused() -> None:
    with pytest.raises(WeightsError, match="AutoencoderKL"):
        AutoencoderTinyConfig.from_diffusers({"_class_name": "AutoencoderKL"})
