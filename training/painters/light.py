"""Painters with light: neon and cyberpunk."""

import torch
from torch import Tensor

from instantvision.training.painters.filters import (
    blur,
    flow_field,
    gradient,
    ink_lines,
    kuwahara,
    smoothstep,
)
from instantvision.training.painters.tones import colour, expose, gradient_map, luminance, mix, screen, vivid


def neon(image: Tensor, scale: float, seed: int) -> Tensor:
    """Glowing tubes on night: contours burn in hues that follow the lightness around them."""
    del seed
    source = expose(image, scale, clarity=0.7, strength=0.8)
    tangent, anisotropy = flow_field(source, 1.4 * scale, 2.6 * scale)
    calm = kuwahara(source, 3.2 * scale, tangent, anisotropy)
    light = luminance(calm)
    tubes = ink_lines(light, tangent, 2.6 * scale, 0.008, 0.045)
    hue = gradient_map(
        blur(light, 10 * scale),
        (
            (0.10, "#8a2bff"),
            (0.25, "#ff22c8"),
            (0.38, "#ff6a3d"),
            (0.48, "#ffd23d"),
            (0.58, "#2dffc4"),
            (0.72, "#22b8ff"),
        ),
    )
    burning = tubes * hue
    room = gradient_map(light, ((0.1, "#05030f"), (0.5, "#170c44"), (0.95, "#43309c")))
    glow = (
        0.95 * blur(burning, 2.5 * scale) + 0.9 * blur(burning, 8 * scale) + 0.6 * blur(burning, 22 * scale)
    )
    return screen(screen(room, glow), mix(burning, tubes, 0.45 * tubes))


def cyberpunk(image: Tensor, scale: float, seed: int) -> Tensor:
    """Night city: a magenta lamp on the left, a cyan lamp on the right, deep violet between, bloom."""
    del seed
    source = expose(image, scale, clarity=0.5, strength=0.85)
    tangent, anisotropy = flow_field(source, 1.2 * scale, 2.5 * scale)
    calm = kuwahara(source, 2.5 * scale, tangent, anisotropy)
    light = luminance(calm)
    # The crudest shape from shading: what gets darker to the right is lit from the left.
    slope = torch.zeros_like(light)
    for sigma_px in (3.0, 7.0, 16.0):
        dx, _ = gradient(blur(light, sigma_px * scale))
        slope = slope + dx * sigma_px * scale
    from_left, from_right = torch.tanh(-5 * slope).clamp(min=0), torch.tanh(5 * slope).clamp(min=0)
    base = gradient_map(
        light, ((0.05, "#03020c"), (0.35, "#160d3d"), (0.6, "#4c1f82"), (0.8, "#b04aa8"), (0.98, "#ffd6ec"))
    )
    base = mix(base, vivid(calm, 1.5, contrast=0.5) * light, 0.35)
    base = screen(base, colour("#ff1090", image) * from_left * (0.1 + light))
    base = screen(base, colour("#00d0ff", image) * from_right * (0.1 + light))
    bright = base * smoothstep(0.55, 0.9, base.amax(1, True))
    return screen(base, 0.35 * blur(bright, 6 * scale) + 0.25 * blur(bright, 20 * scale))
