"""Train mini's autoencoder on photos and painted photos.

    torchrun --nproc-per-node=GPUS -m instantvision.training.train_autoencoder PHOTOS OUT [--minutes M]

or the same with `python -m` on one device. Writes OUT/autoencoder.safetensors once a minute and at the end; started again with
`--resume` it goes on from there (weights; the optimiser warms up anew).
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.training.bank import Photos, load_photos, painted_batch
from instantvision.training.distributed import Budget, MovingAverage, World, average_gradients, learning_rate

PEAK_RATE = 4e-4
# Share of the budget after which the latents are brought to unit variance for good.
NORMALISE_AT = 0.6
WINDOW_PX = 256
# The clean camera picture counts as much as this many painters: `photo` is the preset everybody compares with.
CAMERA_SHARE = 0.35


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one run does; see --help for the meaning."""

    photos: Path
    out: Path
    minutes: float
    crops: int
    batch: int
    resume: bool
    compile: bool


def pixel_bank(photos: Photos, crops: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Painted pictures kept as uint8 on the device.

    Returns:
        Camera views [crops, 3, S, S] and targets [P, crops, 3, S, S].
    """
    size = min(32, crops)
    cameras, targets = [], []
    for i in range(max(1, crops // size)):
        batch = painted_batch(photos, size, device, seed + i)
        cameras.append((batch.cameras[0] * 255).round_().to(torch.uint8))
        targets.append((batch.targets * 255).round_().to(torch.uint8))
    return torch.cat(cameras), torch.cat(targets, 1)


def draw_windows(cameras: Tensor, targets: Tensor, batch: int) -> Tensor:
    """Random windows of random pictures, folded and in -1..1: [batch, 48, 64, 64]."""
    count, side = cameras.shape[0], cameras.shape[-1]
    top, left = (int(i) for i in torch.randint(0, side - WINDOW_PX + 1, (2,)))
    rows, columns = slice(top, top + WINDOW_PX), slice(left, left + WINDOW_PX)
    plain = round(batch * CAMERA_SHARE)
    which = torch.randint(count, (batch,), device=cameras.device)
    painter = torch.randint(len(targets), (batch - plain,), device=cameras.device)
    windows = torch.cat(
        [cameras[which[:plain], :, rows, columns], targets[painter, which[plain:], :, rows, columns]]
    )
    return F.pixel_unshuffle(windows.float() / 127.5 - 1, 4).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 at full and quarter resolution plus L1 of the gradients, on folded pictures.

    Args:
        output: [B, 3 * 16, h, w].
        target: likewise.
    """
    out, want = F.pixel_shuffle(output.float(), 4), F.pixel_shuffle(target, 4)
    difference = out - want
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    # The square term is what PSNR asks for; 2 balances it with L1 at about 28 dB.
    return (
        difference.abs().mean()
        + 2.0 * difference.square().mean()
        + 0.5 * (across + down)
        + 0.5 * F.avg_pool2d(difference, 4).abs().mean()
    )


def training_loss(model: Autoencoder, windows: Tensor, jitter: Tensor) -> Tensor:
    """Reconstruction from latents that were disturbed a little, as a denoiser will disturb them.

    Args:
        model: the autoencoder.
        windows: folded pictures, [B, 48, h, w].
        jitter: standard deviation of the disturbance, [B, 1, 1, 1], in units of a unit-variance latent.
    """
    latents = model.encode(windows)
    # Keeps the scale of the latents near one before they are normalised exactly.
    drift = latents.float().mean((0, 2, 3)).square().mean() + (latents.float().std() - 1).square()
    output = model.decode(latents + jitter.to(latents.dtype) * torch.randn_like(latents))
    return reconstruction_loss(output, windows) + 0.01 * drift


@torch.no_grad()
def latent_statistics(model: Autoencoder, cameras: Tensor, targets: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel over the bank, the same in every process."""
    latents = torch.cat([model.encode(draw_windows(cameras, targets, 32)) for _ in range(8)])
    mean = world.mean(latents.mean((0, 2, 3)))
    square = world.mean(latents.square().mean((0, 2, 3)))
    return mean, (square - mean.square()).clamp_min(1e-6).sqrt()


def train(recipe: Recipe, world: World) -> None:
    """Run the recipe in this process."""
    torch.set_float32_matmul_precision("high")
    photos = load_photos(recipe.photos, held_out=False)
    start = time.perf_counter()
    cameras, targets = pixel_bank(photos, recipe.crops, world.device, seed=10_000 * (world.rank + 1))
    world.say(f"bank: {targets.shape[1]} crops x {len(targets)} painters a process, {time.perf_counter() - start:.0f} s")

    checkpoint = recipe.out / "autoencoder.safetensors"
    # The same start in every process: gradients are averaged, weights are not.
    torch.manual_seed(2026)
    model = Autoencoder().to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.resume:
        model.load_state_dict(load_file(checkpoint, device=str(world.device)))
    torch.manual_seed(1000 + world.rank)
    average = MovingAverage(model, 0.999)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    loss_of = torch.compile(training_loss, dynamic=False) if recipe.compile else training_loss
    parameters, budget = list(model.parameters()), Budget(world, recipe.minutes)
    normalised, saved_s, iteration = recipe.resume, time.perf_counter(), 0
    while (fraction := budget.fraction(iteration)) < 1:
        windows = draw_windows(cameras, targets, recipe.batch)
        jitter = 0.15 * torch.rand(len(windows), 1, 1, 1, device=world.device)
        jitter[::2] = 0
        with torch.autocast(world.device.type, torch.bfloat16):
            loss = loss_of(model, windows, jitter)
        optimiser.zero_grad()
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.param_groups[0]["lr"] = learning_rate(fraction, iteration, PEAK_RATE)
        optimiser.step()
        average.update(iteration)
        if not normalised and fraction >= NORMALISE_AT:
            # Late enough for stable statistics, early enough to heal what padding does at the borders.
            mean, std = latent_statistics(model, cameras, targets, world)
            model.normalise_latents(mean, std)
            average, normalised = MovingAverage(model, 0.999), True
            world.say(f"latents normalised: std was {std.min():.2f} to {std.max():.2f}")
        if iteration % 200 == 0:
            world.say(f"autoencoder {iteration:6d}  {100 * fraction:5.1f} %  loss {loss.item():.4f}")
        if world.rank == 0 and time.perf_counter() - saved_s > 60:
            saved_s = time.perf_counter()
            save_file({k: v.contiguous() for k, v in average.values.items()}, checkpoint)
        iteration += 1
    if world.rank == 0:
        save_file({k: v.contiguous() for k, v in average.values.items()}, checkpoint)
    world.say(f"autoencoder done: {iteration} iterations of {recipe.batch} x {world.size}, {checkpoint}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of training photos")
    parser.add_argument("out", type=Path, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time after compilation")
    parser.add_argument("--crops", type=int, default=1600, help="crops a process; 1600 need 13 GB on the device")
    parser.add_argument("--batch", type=int, default=48, help="windows a process and iteration")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/autoencoder.safetensors")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="skip torch.compile")
    recipe = Recipe(**vars(parser.parse_args()))
    recipe.out.mkdir(parents=True, exist_ok=True)
    world = World.join()
    try:
        train(recipe, world)
    finally:
        world.leave()


if __name__ == "__main__":
    main()
