"""Train mini's autoencoder on photos and painted photos.

    torchrun --nproc-per-node=GPUS -m instantvision.training.train_autoencoder PHOTOS OUT [--minutes M]

or the same with `python -m` on one device. Writes OUT/autoencoder.safetensors every minute and at the end; with
`--resume` it goes on from there (the optimiser warms up anew). `--smoke` tries the whole path on a CPU in a minute.
"""

import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.training.bank import Photos, load_photos, painted_batch
from instantvision.training.distributed import World, joined_world
from instantvision.training.loop import MovingAverage, Plan, Recipe, fit, recipe_from_command_line

WINDOW_PX = 256
# Share of clean camera pictures: `photo` is the preset everybody compares with.
CAMERA_SHARE = 0.35
# Share of the budget after which the latents are brought to unit variance for good: late enough for stable statistics,
# early enough to heal what padding then does at the borders.
NORMALISE_AT = 0.6
# Crops painted at once: what fits beside a training run.
BATCH_CROPS = 32


def pixel_bank(photos: Photos, recipe: Recipe, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Painted pictures kept as uint8 on the device.

    Returns:
        Camera views [crops, 3, S, S] and targets [P, crops, 3, S, S].
    """
    size = min(BATCH_CROPS, recipe.crops)
    cameras, targets = [], []
    for i in range(recipe.crops // size):
        batch = painted_batch(photos, recipe.styles, size, device, seed + i)
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
def latent_statistics(
    model: Autoencoder, cameras: Tensor, targets: Tensor, world: World
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel over the bank, the same in every process."""
    latents = torch.cat([model.encode(draw_windows(cameras, targets, 32)) for _ in range(8)])
    mean = world.mean(latents.mean((0, 2, 3)))
    square = world.mean(latents.square().mean((0, 2, 3)))
    return mean, (square - mean.square()).clamp_min(1e-6).sqrt()


def train(recipe: Recipe, world: World) -> None:
    """Run the recipe in this process."""
    photos, start = load_photos(recipe.photos, held_out=False), time.perf_counter()
    cameras, targets = pixel_bank(photos, recipe, world.device, seed=10_000 * (world.rank + 1))
    seconds = time.perf_counter() - start
    world.say(f"bank: {targets.shape[1]} crops x {len(targets)} painters a process, {seconds:.0f} s")

    # The same start in every process: gradients are averaged, weights are not.
    torch.manual_seed(2026)
    model = Autoencoder().to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint = recipe.out / "autoencoder.safetensors"
    if recipe.resume:
        model.load_state_dict(load_file(checkpoint, device=str(world.device)))
    torch.manual_seed(1000 + world.rank)
    loss_of = torch.compile(training_loss, dynamic=False) if recipe.compile else training_loss

    def loss() -> Tensor:
        windows = draw_windows(cameras, targets, recipe.batch)
        jitter = 0.15 * torch.rand(len(windows), 1, 1, 1, device=world.device)
        # Half of the windows undisturbed: the decoder must not blur what the encoder gave exactly.
        jitter[::2] = 0
        with torch.autocast(world.device.type, torch.bfloat16):
            return loss_of(model, windows, jitter)

    def normalise() -> None:
        model.normalise_latents(*latent_statistics(model, cameras, targets, world))

    def save(average: MovingAverage) -> None:
        save_file({name: value.contiguous() for name, value in average.values.items()}, checkpoint)

    plan = Plan(
        name="autoencoder",
        peak_rate=4e-4,
        weight_decay=1e-4,
        averaging=0.999,
        minutes=recipe.minutes,
        milestone=torch.inf if recipe.resume else NORMALISE_AT,
    )
    fit(model, loss, save, world, plan, normalise)


def main() -> None:
    """Command line."""
    # 900 crops need 7 GB on the device.
    recipe = recipe_from_command_line(__doc__ or "", minutes=4.5, crops=896, batch=48)
    with joined_world() as world:
        train(recipe, world)


if __name__ == "__main__":
    main()
