"""Train mini's denoiser on latents of camera pictures and of what the painters made of them.

    torchrun --nproc-per-node=GPUS -m instantvision.training.train_denoiser PHOTOS OUT [--minutes M]

or the same with `python -m` on one device. Needs OUT/autoencoder.safetensors. Writes OUT/denoiser.safetensors every
minute and at the end; with `--resume` it goes on from there. `--smoke` tries the whole path on a CPU in a minute.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.mini_denoiser import MiniDenoiser
from instantvision.pipeline.schedule import cosine_alphas_cumprod
from instantvision.training.bank import Photos, load_photos, painted_batch
from instantvision.training.distributed import World, joined_world
from instantvision.training.loop import MovingAverage, Plan, Recipe, fit, recipe_from_command_line

# Share of samples whose target is a blend of two styles, so that mixes are learned, not hoped for.
MIXED_SHARE = 0.12
# Crops painted and encoded at once.
BATCH_CROPS = 32


@dataclass(frozen=True)
class LatentBank:
    """Latents of everything, on the device.

    Args:
        cameras: clean and degraded views, [2, N, 32, h, w].
        targets: [P, N, 32, h, w].
        log2_scale: [N].
    """

    cameras: Tensor
    targets: Tensor
    log2_scale: Tensor


@torch.no_grad()
def latent_bank(
    photos: Photos, model: Autoencoder, recipe: Recipe, device: torch.device, seed: int
) -> LatentBank:
    """Paint and encode batch after batch."""

    def encode(pictures: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(pictures.flatten(0, 1) * 2 - 1, 4).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast(device.type, torch.bfloat16):
            chunks = [model.encode(part) for part in folded.split(128)]
        return torch.cat(chunks).to(torch.bfloat16).contiguous().unflatten(0, pictures.shape[:2])

    size = min(BATCH_CROPS, recipe.crops)
    cameras, targets, scales = [], [], []
    for i in range(recipe.crops // size):
        batch = painted_batch(photos, recipe.styles, size, device, seed + i)
        cameras.append(encode(batch.cameras))
        targets.append(encode(batch.targets))
        scales.append(torch.full((size,), math.log2(batch.scale), device=device))
    return LatentBank(torch.cat(cameras, 1), torch.cat(targets, 1), torch.cat(scales))


@dataclass(frozen=True)
class Batch:
    """One training batch: everything MiniDenoiser.forward takes, and what it should answer."""

    noisy: Tensor
    timestep: Tensor
    source: Tensor
    weights: Tensor
    log2_scale: Tensor
    velocity: Tensor


def draw_batch(bank: LatentBank, alphas_cumprod: Tensor, size: int) -> Batch:
    """Random crops, styles, views and timesteps.

    Args:
        bank: latents.
        alphas_cumprod: [1000], on the bank's device.
        size: of the batch.
    """
    device, (styles, count) = bank.targets.device, bank.targets.shape[:2]
    crop = torch.randint(count, (size,), device=device)
    view = torch.randint(2, (size,), device=device)
    first, second = torch.randint(styles, (2, size), device=device)
    share = torch.rand(size, device=device)
    share = torch.where(torch.rand(size, device=device) < MIXED_SHARE, share, 1.0)
    weights = torch.zeros(size, styles, device=device)
    weights.scatter_add_(1, torch.stack([first, second], 1), torch.stack([share, 1 - share], 1))

    part = share[:, None, None, None]
    clean = part * bank.targets[first, crop].float() + (1 - part) * bank.targets[second, crop].float()
    timestep = torch.randint(len(alphas_cumprod), (size,), device=device)
    signal = alphas_cumprod[timestep].sqrt()[:, None, None, None]
    noise_level = (1 - alphas_cumprod[timestep]).sqrt()[:, None, None, None]
    noise = torch.randn_like(clean)

    def channels_last(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    return Batch(
        noisy=channels_last(signal * clean + noise_level * noise),
        timestep=timestep,
        source=channels_last(bank.cameras[view, crop].float()),
        weights=weights,
        log2_scale=bank.log2_scale[crop],
        velocity=channels_last(signal * noise - noise_level * clean),
    )


def velocity_loss(model: MiniDenoiser, batch: Batch) -> Tensor:
    """Mean squared error of the v prediction, which weighs x0 by SNR + 1. Source: Salimans & Ho 2022, section 4."""
    predicted = model(batch.noisy, batch.timestep, batch.source, batch.weights, batch.log2_scale)
    return F.mse_loss(predicted.float(), batch.velocity)


def resume(model: MiniDenoiser, path: Path, styles: tuple[str, ...]) -> None:
    """Load earlier weights.

    Raises:
        ValueError: they were trained for other styles.
    """
    with safe_open(path, "pt") as file:
        trained = tuple(file.metadata()["styles"].split(","))
    if trained != styles:
        raise ValueError(
            f"{path} was trained for {trained}, this run is for {styles}: start without --resume"
        )
    model.load_state_dict(load_file(path))


def frozen_autoencoder(recipe: Recipe, device: torch.device) -> Autoencoder:
    """The autoencoder trained before."""
    model = Autoencoder()
    model.load_state_dict(load_file(recipe.out / "autoencoder.safetensors"))
    return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def train(recipe: Recipe, world: World) -> None:
    """Run the recipe in this process."""
    device, checkpoint = world.device, recipe.out / "denoiser.safetensors"
    photos, start = load_photos(recipe.photos, held_out=False), time.perf_counter()
    autoencoder = frozen_autoencoder(recipe, device)
    bank = latent_bank(photos, autoencoder, recipe, device, seed=1_000_000 * (world.rank + 1))
    seconds = time.perf_counter() - start
    world.say(f"bank: {bank.targets.shape[1]} crops x {len(bank.targets)} styles a process, {seconds:.0f} s")

    # The same start in every process: gradients are averaged, weights are not.
    torch.manual_seed(2026)
    model = MiniDenoiser(len(recipe.styles))
    if recipe.resume:
        resume(model, checkpoint, recipe.styles)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(3000 + world.rank)
    loss_of = torch.compile(velocity_loss, dynamic=False) if recipe.compile else velocity_loss
    alphas_cumprod = cosine_alphas_cumprod(1000).to(device, torch.float32)

    def loss() -> Tensor:
        batch = draw_batch(bank, alphas_cumprod, recipe.batch)
        with torch.autocast(device.type, torch.bfloat16):
            return loss_of(model, batch)

    def save(average: MovingAverage) -> None:
        weights = {name: value.contiguous() for name, value in average.values.items()}
        # The rows of the style table have no names of their own.
        save_file(weights, checkpoint, {"styles": ",".join(recipe.styles)})

    plan = Plan(name="denoiser", peak_rate=5e-4, weight_decay=0.01, averaging=0.9995, minutes=recipe.minutes)
    fit(model, loss, save, world, plan)


def main() -> None:
    """Command line."""
    # 2304 crops of 17 styles need 3 GB on the device.
    recipe = recipe_from_command_line(__doc__ or "", minutes=8.4, crops=2304, batch=384)
    with joined_world() as world:
        train(recipe, world)


if __name__ == "__main__":
    main()
