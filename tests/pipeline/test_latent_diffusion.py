"""Stable Diffusion-shaped models against diffusers' classes with the same random weights."""

from dataclasses import asdict, replace

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

from instantvision.pipeline import published
from instantvision.pipeline.autoencoder_tiny import AutoencoderTinyConfig
from instantvision.pipeline.bench import random_pictures
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.latent_diffusion import LatentDiffusion, random_networks, random_prompt
from instantvision.pipeline.model import Conditioning
from instantvision.pipeline.published import DiffusionConfig
from instantvision.pipeline.schedule import scaled_linear_alphas_cumprod

# The same operations in another order: only fp32's last places may differ.
TOLERANCE = 1e-4
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = {"norm_num_groups": 8, "cross_attention_dim": 24}
TINY_AUTOENCODER = AutoencoderTinyConfig(
    encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
)


def shrink(config: DiffusionConfig, **changes: object) -> DiffusionConfig:
    unet = replace(config.unet, **(SMALL | changes))
    return replace(config, unet=unet, autoencoder=TINY_AUTOENCODER, tokens=5)


CASES = {
    "sd 1.5": shrink(published.SD_15, block_out_channels=(16, 16, 32, 32), attention_head_dim=2),
    "sd 2.1": shrink(published.SD_21, block_out_channels=(16, 16, 32, 32), attention_head_dim=(1, 2, 4, 4)),
    "sdxl": shrink(
        published.SDXL,
        block_out_channels=(16, 32, 32),
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    ),
}
SIZE = Size(96, 64)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def config(request: pytest.FixtureRequest) -> DiffusionConfig:
    return request.param


@pytest.fixture
def model(config: DiffusionConfig) -> LatentDiffusion:
    return LatentDiffusion.with_random_weights(config, 3, CPU, torch.float32)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / (expected - expected.mean((2, 3), keepdim=True)).norm()).item()


@torch.no_grad()
def test_an_evaluation_equals_diffusers(config: DiffusionConfig, model: LatentDiffusion) -> None:
    unet, _ = random_networks(config, 3, CPU)
    reference = UNet2DConditionModel(**asdict(config.unet)).eval()
    reference.load_state_dict(unet.state_dict())
    prompt = random_prompt(config, 3)
    time_ids = torch.tensor([[64.0, 96, 0, 0, 64, 96]])
    prepared = model.prepare(torch.tensor([999, 20]), model.condition(Mix.parse("any"), SIZE))
    noisy, source = torch.randn(2, 4, 8, 12), torch.zeros(2, 4, 8, 12)
    for step, timestep in enumerate((999, 20)):
        added = {"text_embeds": prompt.pooled, "time_ids": time_ids}
        expected = reference(noisy, timestep, prompt.tokens.expand(2, -1, -1), added_cond_kwargs=added).sample
        found = model.predict_prepared(noisy, source, tuple(row[step : step + 1] for row in prepared))
        assert relative_error(found, expected) <= TOLERANCE


@torch.no_grad()
def test_the_autoencoder_equals_diffusers(config: DiffusionConfig, model: LatentDiffusion) -> None:
    _, autoencoder = random_networks(config, 3, CPU)
    reference = AutoencoderTiny(**asdict(config.autoencoder)).eval()
    reference.load_state_dict(autoencoder.state_dict())
    pixels = torch.rand(1, 3, 64, 96) * 2 - 1
    latents = model.encode(pixels)
    assert latents.shape == (1, model.latent_channels, 64 // model.downsampling, 96 // model.downsampling)
    assert relative_error(latents, reference.encode(pixels).latents) <= TOLERANCE
    assert relative_error(model.decode(latents), reference.decode(latents).sample) <= TOLERANCE


@torch.no_grad()
def test_random_networks_tell_pictures_apart(model: LatentDiffusion) -> None:
    one, other = (model.encode(torch.rand(1, 3, 64, 64) * 2 - 1) for _ in range(2))
    # "Unit" within a factor of 2: it was scaled on another picture.
    assert 0.5 < one.std() < 2
    assert (one - other).std() > 0.3 * one.std()
    assert 0.1 < model.decode(one).std() < 1


def test_the_schedule_is_diffusers() -> None:
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    ours = scaled_linear_alphas_cumprod(0.00085, 0.012)
    assert ours.shape == (1000,)
    # diffusers multiplies in float32.
    assert torch.allclose(ours.float(), theirs, rtol=1e-4)


def test_the_size_is_part_of_sdxls_conditioning_only() -> None:
    def wide(name: str, size: Size) -> torch.Tensor:
        model = LatentDiffusion.with_random_weights(CASES[name], 3, CPU, torch.bfloat16)
        return model.condition(Mix.parse("any"), size).pooled

    assert wide("sd 1.5", SIZE).shape == (1, 0)
    assert wide("sdxl", Size(1360, 768))[0, -6:].tolist() == [768, 1360, 0, 0, 768, 1360]


def test_weights_depend_on_the_seed_and_leave_other_random_numbers_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second, third = (random_networks(CASES["sd 1.5"], seed, CPU)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.conv_in.weight, second.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, third.conv_in.weight)


def test_a_prompt_of_another_model_is_refused() -> None:
    config = CASES["sdxl"]
    unet, autoencoder = random_networks(config, 0, CPU)
    with pytest.raises(ValueError, match="24 and 0 wide, expected 24 and 12"):
        LatentDiffusion(
            config,
            unet,
            autoencoder,
            Conditioning(torch.zeros(1, 5, 24), torch.zeros(1, 0)),
            CPU,
            torch.float32,
        )


def test_frames_at_different_steps_are_one_batch(model: LatentDiffusion) -> None:
    noisy, source = torch.randn(2, 3, model.latent_channels, 8, 12)
    prepared = model.prepare(torch.tensor([900, 500, 10]), model.condition(Mix.parse("oil"), SIZE))
    together = model.predict_prepared(noisy, source, prepared)
    for i in range(3):
        rows = tuple(each[i : i + 1] for each in prepared)
        alone = model.predict_prepared(noisy[i : i + 1], source[i : i + 1], rows)
        assert relative_error(together[i : i + 1], alone) <= TOLERANCE


def test_a_frame_goes_through_the_engine(model: LatentDiffusion) -> None:
    engine = Engine(model, Settings(size=SIZE, steps=2, strength=0.6))
    one, other = (engine.stylise(picture) for picture in random_pictures(96, 64)[:2])
    engine.close()
    assert one.shape == (64, 96, 3)
    assert one.std() > 2
    assert (one != other).any()


@pytest.mark.parametrize(
    ("config", "parameters"),
    # Counts from the published weights' own shapes.
    [
        (published.SD_15, 859_520_964),
        (published.SD_TURBO, 865_910_724),
        (published.SDXL, 2_567_463_684),
    ],
    ids=["sd 1.5", "sd turbo", "sdxl"],
)
def test_published_shapes_have_the_published_number_of_parameters(
    config: DiffusionConfig, parameters: int
) -> None:
    unet, _ = random_networks(config, 0, torch.device("meta"))
    assert sum(weight.numel() for weight in unet.parameters()) == parameters


WIDE = {
    "sd 2.1": shrink(
        published.SD_21,
        block_out_channels=(64, 128, 256, 256),
        attention_head_dim=(1, 2, 4, 4),
        norm_num_groups=32,
        cross_attention_dim=128,
    ),
    "sdxl": shrink(
        published.SDXL,
        block_out_channels=(64, 128, 256),
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        norm_num_groups=32,
        cross_attention_dim=128,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=32 + 6 * 16,
    ),
}


def evaluation(
    config: DiffusionConfig, device: torch.device, dtype: torch.dtype, side: int, *, fp8: bool
) -> torch.Tensor:
    """One prediction of a model with random weights, the same on every device, float32 on the CPU."""
    unet, autoencoder = random_networks(config, 3, CPU)
    model = LatentDiffusion(config, unet, autoencoder, random_prompt(config, 3), device, dtype, fp8=fp8)
    prepared = model.prepare(
        torch.tensor([500], device=device), model.condition(Mix.parse("any"), Size(8 * side, 8 * side))
    )
    noisy = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with torch.inference_mode():
        return model.predict_prepared(noisy, noisy, prepared).float().cpu()


@pytest.mark.parametrize("config", WIDE.values(), ids=WIDE.keys())
def test_e4m3_costs_less_than_a_tenth(config: DiffusionConfig) -> None:
    exact, rounded = (evaluation(config, CPU, torch.float32, 32, fp8=fp8) for fp8 in (False, True))
    assert 0.002 <= relative_error(rounded, exact) <= 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("config", WIDE.values(), ids=WIDE.keys())
def test_kernels_agree_with_the_reference(config: DiffusionConfig) -> None:
    exact = evaluation(config, CPU, torch.float32, 32, fp8=False)
    # Numbers of bf16 are a 256th of their size apart.
    assert relative_error(evaluation(config, CUDA, torch.bfloat16, 32, fp8=False), exact) <= 0.02
    # What bf16 moves across a boundary of e4m3 moves by a sixteenth: both are equally far from the truth, and apart.
    limit = 1.25 * relative_error(evaluation(config, CPU, torch.float32, 32, fp8=True), exact)
    assert relative_error(evaluation(config, CUDA, torch.bfloat16, 32, fp8=True), exact) <= limit


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(96, 160), (512, 512)])
def test_the_tiny_autoencoder_in_e4m3_is_as_near_on_a_gpu(height: int, width: int) -> None:
    config = replace(WIDE["sd 2.1"], autoencoder=AutoencoderTinyConfig())
    pixels = torch.rand(1, 3, height, width) * 2 - 1
    networks = random_networks(config, 3, CPU)

    def errors(device: torch.device, dtype: torch.dtype) -> list[float]:
        parts = *random_networks(config, 3, CPU), random_prompt(config, 3)
        model = LatentDiffusion(config, *parts, device, dtype, fp8=True)
        pairs = (model.encode, pixels, latents), (model.decode, latents, picture)
        return [relative_error(half(x.to(device, dtype)).float().cpu(), wanted) for half, x, wanted in pairs]

    with torch.inference_mode():
        latents = networks[1].encode(pixels)
        picture = networks[1].decode(latents)
        limits, found = errors(CPU, torch.float32), errors(CUDA, torch.bfloat16)
    for error, limit in zip(found, limits, strict=True):
        assert error <= 1.25 * limit


@pytest.mark.gpu
def test_the_tiny_autoencoders_kernels_are_as_near_as_torch() -> None:
    config = replace(WIDE["sd 2.1"], autoencoder=AutoencoderTinyConfig())
    pixels = torch.rand(1, 3, 96, 160) * 2 - 1
    _, network = random_networks(config, 3, CPU)
    with torch.inference_mode():
        latents = network.encode(pixels)
        picture = network.decode(latents)
        plain = network.to(CUDA, torch.bfloat16)
        plain_latents = plain.encode(pixels.to(CUDA, torch.bfloat16)).float().cpu()
        plain_picture = plain.decode(latents.to(CUDA, torch.bfloat16)).float().cpu()
        networks = random_networks(config, 3, CPU)
        model = LatentDiffusion(config, *networks, random_prompt(config, 3), CUDA, torch.bfloat16)
        found_latents = model.encode(pixels.to(CUDA, torch.bfloat16)).float().cpu()
        found_picture = model.decode(latents.to(CUDA, torch.bfloat16)).float().cpu()
    assert relative_error(found_latents, latents) <= 1.5 * relative_error(plain_latents, latents)
    assert relative_error(found_picture, picture) <= 1.5 * relative_error(plain_picture, picture)
