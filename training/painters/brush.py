"""Painters with a brush: oil and watercolour."""

import torch
from torch import Tensor

from instantvision.training.painters.filters import (
    blur,
    flow_average,
    flow_field,
    gradient,
    grain,
    kuwahara,
    pixel_grid,
    sample,
    smoothstep,
)
from instantvision.training.painters.tones import (
    colour,
    expose,
    from_oklab,
    luminance,
    mix,
    soft_steps,
    to_oklab,
    vivid,
)


def oil(image: Tensor, scale: float, seed: int) -> Tensor:
    """Thick paint: Kuwahara strokes, bristle marks along the flow, lit from the upper left."""
    source = expose(image, scale, clarity=0.5)
    tangent, anisotropy = flow_field(source, 1.2 * scale, 3.0 * scale)
    paint = kuwahara(source, 8.0 * scale, tangent, anisotropy)
    paint = kuwahara(paint, 4.5 * scale, tangent, anisotropy)
    paint = vivid(paint, 1.8, contrast=0.5)
    bristles = flow_average(
        grain(image, 1.3 * scale, seed).expand(len(image), -1, -1, -1), tangent, 11 * scale, steps=6
    )
    height = 1.6 * luminance(paint) + 0.20 * bristles
    dx, dy = gradient(blur(height, 0.7 * scale))
    light = torch.tanh(-(dx + dy) * 3.0 * scale)
    return paint * (1 + 0.26 * light.clamp(max=0)) + 0.20 * light.clamp(min=0) * (0.35 + paint)


def watercolour(image: Tensor, scale: float, seed: int) -> Tensor:
    """Transparent washes on white paper: dark pigment rims, granulation, highlights left bare.

    Source: Bousseau et al. 2006, Interactive watercolor rendering: C' = C - (C - C²)(d - 1), pigment density d.
    """
    source = expose(image, scale, clarity=0.4)
    tangent, anisotropy = flow_field(source, 1.5 * scale, 3.5 * scale)
    wash = kuwahara(source, 6.5 * scale, tangent, anisotropy)
    # A wash's border trembles by about half a pixel with the paper.
    paper = torch.cat([grain(image, 9 * scale, seed), grain(image, 9 * scale, seed + 1)], 1)
    wash = sample(wash, pixel_grid(wash), 0.5 * scale * paper)
    lab = to_oklab(wash)
    light = 0.7 * soft_steps(lab[:, :1], 6, 6.0) + 0.3 * lab[:, :1]
    # Washes are thin: nothing is darker than a third, and what is light is nearly paper.
    thin = (0.36 + 0.66 * light + 0.10 * smoothstep(0.5, 0.8, light)).clamp(0, 1)
    base = vivid(from_oklab(torch.cat([thin, lab[:, 1:]], 1)), 1.85).clamp(0.02, 0.985)
    dx, dy = gradient(blur(torch.cat([light, lab[:, 1:]], 1), 0.8 * scale))
    rim = ((dx * dx + dy * dy).sum(1, True).sqrt() * scale * 7).clamp(0, 1)
    pool = (blur(light, 8 * scale) - light).clamp(-0.15, 0.25)
    granules = 0.13 * grain(image, 1.5 * scale, seed + 2) + 0.16 * grain(image, 30 * scale, seed + 3)
    dark = smoothstep(0.55, 0.15, light)
    density = 1.0 + 1.5 * rim + 2.2 * pool + 1.1 * dark + granules
    painted = base - (base - base * base) * (density - 1)
    bare = smoothstep(
        0.72,
        0.92,
        light + 0.02 * grain(image, 7 * scale, seed + 4) - 0.8 * lab[:, 1:].norm(dim=1, keepdim=True),
    )
    return mix(painted, colour("#fdfbf5", image), 0.92 * bare)
