"""Painters that draw: ink and pencil."""

import math

import torch
from torch import Tensor

from instantvision.training.painters.filters import (
    blur,
    flow_average,
    flow_field,
    grain,
    ink_lines,
    kuwahara,
    smoothstep,
)
from instantvision.training.painters.tones import colour, expose, gradient_map, luminance, mix


def ink(image: Tensor, scale: float, seed: int) -> Tensor:
    """Brush and black ink on warm paper: fluent lines, solid blacks, one diluted wash.

    Source: Winnemöller et al. 2012, XDoG: an eXtended difference-of-Gaussians compendium.
    """
    source = expose(image, scale, clarity=0.8)
    tangent, anisotropy = flow_field(source, 1.3 * scale, 2.5 * scale)
    light = luminance(kuwahara(source, 3.0 * scale, tangent, anisotropy))
    lines = ink_lines(light, tangent, 2.6 * scale, 0.010, 0.040)
    around = blur(light, 14 * scale)
    solid = smoothstep(0.03, -0.03, light - 0.27 - 0.22 * (around - 0.45))
    wash = smoothstep(0.06, -0.06, light - 0.44 - 0.35 * (around - 0.5))
    veil = smoothstep(0.08, -0.08, light - 0.64 - 0.2 * (around - 0.5))
    paper = colour("#f4ecdc", image) * (1 + 0.012 * grain(image, 2.0 * scale, seed))
    tone = mix(paper, colour("#b9b3a8", image), 0.42 * veil)
    tone = mix(tone, colour("#7d7a78", image), 0.62 * wash * (1 + 0.06 * grain(image, 6 * scale, seed + 1)))
    return mix(tone, colour("#14131a", image), torch.maximum(lines, solid))


def _strokes(tangent: Tensor, anisotropy: Tensor) -> Tensor:
    """Unit directions of a hand that follows edges and draws at 50 degrees where there are none."""
    hand = tangent.new_tensor([math.cos(-0.9), math.sin(-0.9)])[None, :, None, None].expand_as(tangent)
    side = torch.where((tangent * hand).sum(1, True) < 0, -1.0, 1.0)
    stroke = hand + 1.2 * anisotropy * side * tangent
    length: Tensor = stroke.norm(dim=1, keepdim=True)
    return stroke / length.clamp_min(1e-3)


def pencil(image: Tensor, scale: float, seed: int) -> Tensor:
    """Graphite on white paper: strokes in two directions, laid on by tone, and soft contours."""
    source = expose(image, scale, clarity=0.7)
    tangent, anisotropy = flow_field(source, 1.5 * scale, 3.5 * scale)
    light = luminance(kuwahara(source, 3.0 * scale, tangent, anisotropy))
    stroke = _strokes(tangent, anisotropy)
    cross = torch.cat([-stroke[:, 1:], stroke[:, :1]], 1)
    noise = grain(image, 1.1 * scale, seed).expand(len(image), -1, -1, -1)
    first = flow_average(noise, stroke, 12 * scale, steps=8)
    second = flow_average(noise.flip(-1), cross, 9 * scale, steps=6)
    dark = 1 - light
    hatch = smoothstep(-0.35, 0.55, 2.4 * (dark - 0.46) + 0.85 * first * smoothstep(0.05, 0.45, dark))
    deep = smoothstep(-0.3, 0.5, 2.6 * (dark - 0.70) + 0.6 * second)
    smudge = smoothstep(0.15, 1.0, dark)
    lines = ink_lines(light, tangent, 2.2 * scale, 0.006, 0.05)
    graphite = 1 - (1 - 0.45 * hatch) * (1 - 0.55 * deep) * (1 - 0.40 * smudge) * (1 - 0.85 * lines)
    graphite = graphite * (1 + 0.05 * grain(image, 1.0, seed + 1))
    return gradient_map(graphite.clamp(0, 1), ((0.0, "#fbfaf6"), (0.5, "#8d8c90"), (1.0, "#1d1c22")))
