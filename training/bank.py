"""Pictures to train on: photos from a folder, cut and varied as webcams vary, with their painted targets.

A folder holds *.webp, *.jpg or *.png; the class is the file name up to the first dash (people-0a1b.webp) and `people`
and `webcam` are drawn most often, because that is what a camera sees. Every twelfth photo, by the hash of its name, is
held out and never trained on.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from instantvision.training.painters import paint

CROP_PX = 384
# Stroke widths relative to a 512-pixel frame: from a 256-pixel laptop run to a 1024-pixel GPU run.
SCALES = (0.5, 0.71, 1.0, 1.41, 2.0)
HELD_OUT_ONE_IN = 12
PEOPLE_SHARE = 0.6


@dataclass(frozen=True)
class Photos:
    """Decoded photos, uint8 [3, H, W], and their classes."""

    images: tuple[Tensor, ...]
    classes: tuple[str, ...]

    def weights(self) -> np.ndarray:
        """Probability of each photo: people and webcams share PEOPLE_SHARE, the rest what is left."""
        people = np.array([name in ("people", "webcam") for name in self.classes])
        share = np.where(
            people, PEOPLE_SHARE / max(1, people.sum()), (1 - PEOPLE_SHARE) / max(1, (~people).sum())
        )
        return np.asarray(share / share.sum())


def is_held_out(name: str) -> bool:
    """Whether the photo of that file name is kept for evaluation."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def load_photos(folder: Path, *, held_out: bool, limit: int | None = None) -> Photos:
    """Decode the training or the held-out photos of a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    kinds = {".webp", ".jpg", ".jpeg", ".png"}
    paths = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in kinds and is_held_out(p.name) == held_out
    )
    if not paths:
        kind = "held-out" if held_out else "training"
        raise FileNotFoundError(f"{folder} holds no {kind} photos: see training/README.md, Data")
    paths = paths[:: max(1, len(paths) // limit)][:limit] if limit else paths
    with ThreadPoolExecutor() as pool:
        images = tuple(pool.map(_decode, paths))
    return Photos(images, tuple(p.name.split("-")[0] for p in paths))


def _decode(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def cut(photos: Photos, count: int, scale: float, random: np.random.Generator) -> Tensor:
    """Random windows as a camera of a frame height of 512 * scale pixels would see them.

    Args:
        photos: where from.
        count: how many.
        scale: frame height over 512.
        random: source of all choices.

    Returns:
        uint8 [count, 3, CROP_PX, CROP_PX] on the CPU.
    """
    chosen = random.choice(len(photos.images), count, p=photos.weights())
    zooms = np.maximum(CROP_PX, 512 * scale * random.uniform(0.8, 1.3, count))
    corners = random.uniform(0, 1, (count, 2))
    flips = random.random(count) < 0.5

    def one(i: int) -> Tensor:
        image = photos.images[chosen[i]]
        height, width = image.shape[1:]
        window = min(height, width) * CROP_PX / zooms[i]
        top, left = corners[i, 0] * (height - window), corners[i, 1] * (width - window)
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        box = (left, top, left + window, top + window)
        cutout = pixels.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        array = np.array(cutout)
        return torch.from_numpy(array[:, ::-1].copy() if flips[i] else array).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        return torch.stack(list(pool.map(one, range(count))))


def vary_light(image: Tensor, generator: torch.Generator) -> Tensor:
    """Exposure, contrast, colour temperature and saturation as rooms and cameras differ, per picture.

    Args:
        image: [B, 3, H, W] in 0..1.
        generator: on the image's device.
    """

    def draw(low: float, high: float) -> Tensor:
        unit = torch.rand(len(image), 1, 1, 1, device=image.device, generator=generator)
        return low + (high - low) * unit

    gamma = torch.exp(draw(-0.45, 0.45))
    warm = torch.cat([draw(0.9, 1.1), torch.ones_like(gamma), draw(0.88, 1.12)], 1)
    image = image.clamp(0, 1).pow(gamma) * draw(0.75, 1.15) * warm
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * draw(0.6, 1.25)
    return (0.5 + (image - 0.5) * draw(0.85, 1.15)).clamp(0, 1)


def degrade(image: Tensor, generator: torch.Generator) -> Tensor:
    """What a cheap webcam does to a clean picture: soft lens, fine and blotchy noise. Targets stay clean.

    Args:
        image: [B, 3, H, W] in 0..1.
        generator: on the image's device.
    """

    def unit(*shape: int) -> Tensor:
        return torch.rand(shape, device=image.device, generator=generator)

    def normal(side: int) -> Tensor:
        return torch.randn((len(image), 3, side, side), device=image.device, generator=generator)

    side = image.shape[-1]
    soft = F.interpolate(
        F.interpolate(image, scale_factor=0.5, mode="area"), size=(side, side), mode="bilinear"
    )
    image = torch.lerp(image, soft, unit(len(image), 1, 1, 1))
    # Up to 5 % of full range: a dim room on a laptop camera.
    fine, blotchy = normal(side), F.interpolate(normal(side // 3), size=(side, side), mode="bilinear")
    strength = 0.05 * unit(len(image), 1, 1, 1).square()
    return (image + strength * (fine + blotchy)).clamp(0, 1)


@dataclass(frozen=True)
class Painted:
    """A batch of one scale: the pictures as a camera gives them, and every painter's target.

    Args:
        scale: frame height over 512.
        cameras: [2, B, 3, H, W], the clean and a degraded view, 0..1.
        targets: [P, B, 3, H, W], in the order of the styles asked for.
    """

    scale: float
    cameras: Tensor
    targets: Tensor


def painted_batch(
    photos: Photos, styles: Sequence[str], count: int, device: torch.device, seed: int
) -> Painted:
    """Cut, vary and paint `count` pictures; a seed gives one scale, and seeds in a row give all scales."""
    scale = SCALES[seed % len(SCALES)]
    generator = torch.Generator(device).manual_seed(seed)
    crops = cut(photos, count, scale, np.random.default_rng(seed)).to(device).float().div_(255)
    clean = vary_light(crops, generator)
    targets = torch.stack([paint(name, clean, scale, seed) for name in styles])
    return Painted(scale, torch.stack([clean, degrade(clean, generator)]), targets)
