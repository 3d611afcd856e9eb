"""Train mini's denoiser on latents of camera pictures and of what the painters made of them.

    torchrun --nproc-per-node=GPUS -m instantvision.training.train_denoiser PHOTOS OUT [--minutes M]

or the same with `python -m` on one device. Needs OUT/autoencoder.safetensors. Writes OUT/denoiser.safetensors once a minute and at the
end; started again with `--resume` it goes on from there.
"""

import argparse
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
from instantvision.training.distributed import Budget, MovingAverage, World, average_gradients, learning_rate
from instantvision.training.painters import PAINTERS

PEAK_RATE = 5e-4
# Share of samples whose target is a blend of two styles, so that mixes and strength are learned, not hoped for.
MIXED_SHARE = 0.12


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one run does; see --help for the meaning."""

    photos: Path
    out: Path
    minutes: float
    bank_minutes: float
    crops: int
    batch: int
    resume: bool
    compile: bool


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
def latent_bank(photos: Photos, model: Autoencoder, recipe: Recipe, device: torch.device, seed: int) -> LatentBank:
    """Paint and encode batch after batch until there are enough crops or time is up."""

    def encode(pictures: Tensor) -> Tensor:
        folded = F.pixel_unshuffle(pictures.flatten(0, 1) * 2 - 1, 4).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            chunks = [model.encode(part) for part in folded.split(128)]
        return torch.cat(chunks).to(torch.bfloat16).contiguous().unflatten(0, pictures.shape[:2])

    size, start = min(32, recipe.crops), time.perf_counter()
    cameras, targets, scales = [], [], []
    for i in range(max(1, recipe.crops // size)):
        if i and time.perf_counter() - start > recipe.bank_minutes * 60:
            break
        batch = painted_batch(photos, size, device, seed + i)
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


def velocity_loss(
    model: MiniDenoiser, noisy: Tensor, timestep: Tensor, source: Tensor, weights: Tensor, scale: Tensor, velocity: Tensor
) -> Tensor:
    """Mean squared error of the v prediction, which weighs x0 by SNR + 1. Source: Salimans & Ho 2022, section 4."""
    predicted = model(noisy, timestep, source, weights, scale)
    return F.mse_loss(predicted.float(), velocity)


def save(average: MovingAverage, path: Path) -> None:
    """Averaged weights, with the names of the styles in the order of the table."""
    save_file({k: v.contiguous() for k, v in average.values.items()}, path, {"styles": ",".join(PAINTERS)})


def resume(model: MiniDenoiser, path: Path) -> None:
    """Load earlier weights.

    Raises:
        ValueError: they were trained for other styles.
    """
    with safe_open(path, "pt") as file:
        styles = file.metadata()["styles"].split(",")
    if styles != list(PAINTERS):
        raise ValueError(f"{path} was trained for {styles}, the painters are {list(PAINTERS)}: start without --resume")
    model.load_state_dict(load_file(path))


def train(recipe: Recipe, world: World) -> None:
    """Run the recipe in this process."""
    torch.manual_seed(2000 + world.rank)
    torch.set_float32_matmul_precision("high")
    device, checkpoint = world.device, recipe.out / "denoiser.safetensors"
    autoencoder = Autoencoder().to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    autoencoder.load_state_dict(load_file(recipe.out / "autoencoder.safetensors", device=str(device)))
    photos, start = load_photos(recipe.photos, held_out=False), time.perf_counter()
    bank = latent_bank(photos, autoencoder, recipe, device, seed=1_000_000 * (world.rank + 1))
    seconds = time.perf_counter() - start
    world.say(f"bank: {bank.targets.shape[1]} crops x {len(bank.targets)} styles a process, {seconds:.0f} s")

    # The same start in every process: gradients are averaged, weights are not.
    torch.manual_seed(2026)
    model = MiniDenoiser(len(PAINTERS))
    torch.manual_seed(3000 + world.rank)
    if recipe.resume:
        resume(model, checkpoint)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = MovingAverage(model, 0.9995)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    loss_of = torch.compile(velocity_loss, dynamic=False) if recipe.compile else velocity_loss
    alphas_cumprod = cosine_alphas_cumprod(1000).to(device, torch.float32)
    parameters, budget = list(model.parameters()), Budget(world, recipe.minutes)
    saved_s, iteration, recent = time.perf_counter(), 0, torch.zeros((), device=device)
    while (fraction := budget.fraction(iteration)) < 1:
        b = draw_batch(bank, alphas_cumprod, recipe.batch)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, b.noisy, b.timestep, b.source, b.weights, b.log2_scale, b.velocity)
        optimiser.zero_grad()
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.param_groups[0]["lr"] = learning_rate(fraction, iteration, PEAK_RATE)
        optimiser.step()
        average.update(iteration)
        recent.lerp_(loss.detach(), 0.02 if iteration else 1.0)
        if iteration % 200 == 0:
            world.say(f"denoiser {iteration:6d}  {100 * fraction:5.1f} %  loss {recent.item():.4f}")
        if world.rank == 0 and time.perf_counter() - saved_s > 60:
            saved_s = time.perf_counter()
            save(average, checkpoint)
        iteration += 1
    if world.rank == 0:
        save(average, checkpoint)
    world.say(f"denoiser done: {iteration} iterations of {recipe.batch} x {world.size}, {checkpoint}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of training photos")
    parser.add_argument("out", type=Path, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=14.0, help="training time after compilation")
    parser.add_argument("--bank-minutes", type=float, default=2.0, help="time for painting and encoding")
    parser.add_argument("--crops", type=int, default=6000, help="crops a process; 6000 need 4 GB on the device")
    parser.add_argument("--batch", type=int, default=384, help="samples a process and iteration")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/denoiser.safetensors")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="skip torch.compile")
    recipe = Recipe(**vars(parser.parse_args()))
    world = World.join()
    try:
        train(recipe, world)
    finally:
        world.leave()


if __name__ == "__main__":
    main()
