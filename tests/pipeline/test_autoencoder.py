"""mini's autoencoder: shapes, and that normalising the latents changes no picture."""

import pytest
import torch

from instantvision.pipeline.autoencoder import Autoencoder, AutoencoderConfig

SMALL = AutoencoderConfig(channels=(16, 32, 32), blocks=(1, 1, 1), latent_channels=8)


@pytest.fixture
def model() -> Autoencoder:
    model = Autoencoder(SMALL)
    # Blocks start as the identity; a trained network's do not stay there.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 112), (16, 48)])
def test_a_latent_stands_for_16_by_16_pixels(model: Autoencoder, height: int, width: int) -> None:
    folded = torch.rand(2, 48, height // 4, width // 4)
    latents = model.encode(folded)
    assert SMALL.downsampling == 16
    assert latents.shape == (2, 8, height // 16, width // 16)
    assert model.decode(latents).shape == folded.shape


def test_what_is_far_away_does_not_matter(model: Autoencoder) -> None:
    folded = torch.rand(1, 48, 64, 64)
    changed = folded.clone()
    changed[..., :8] = 0
    before, after = model.encode(folded), model.encode(changed)
    assert torch.equal(before[..., 8:], after[..., 8:])
    assert not torch.equal(before[..., :1], after[..., :1])


@torch.no_grad()
def test_normalising_brings_the_latents_to_unit_variance_and_keeps_the_picture(model: Autoencoder) -> None:
    folded = torch.rand(4, 48, 64, 64)
    latents = model.encode(folded)
    decoded = model.decode(latents)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    model.normalise_latents(mean, std)
    normal = model.encode(folded)
    assert torch.allclose(normal, (latents - mean[:, None, None]) / std[:, None, None], atol=1e-4)
    # At the border the padding stands for another value than before: 6 latents, as far as it is seen, are left out.
    inside = (..., slice(24, -24), slice(24, -24))
    assert torch.allclose(model.decode(normal)[inside], decoded[inside], atol=1e-4)
