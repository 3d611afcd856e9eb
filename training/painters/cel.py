"""Painters with flat colour and outlines: comic, anime, woodblock."""

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
from instantvision.training.painters.tones import (
    colour,
    expose,
    from_oklab,
    gradient_map,
    luminance,
    mix,
    screen,
    soft_steps,
    to_oklab,
    vivid,
)


def comic(image: Tensor, scale: float, seed: int) -> Tensor:
    """American comic: bold black outlines, black shadows, few bright flat tones.

    Source: Winnemöller et al. 2006, Real-Time Video Abstraction; Kang et al. 2009 (flow).
    """
    del seed
    source = expose(image, scale, clarity=0.7)
    tangent, anisotropy = flow_field(source, 1.3 * scale, 2.8 * scale)
    flat = kuwahara(source, 5.0 * scale, tangent, anisotropy)
    flat = flow_average(flat, tangent, 4 * scale, steps=3)
    lab = to_oklab(flat)
    light = soft_steps(lab[:, :1] * 1.04, 5, 9.0)
    tones = vivid(from_oklab(torch.cat([light, lab[:, 1:]], 1)), 2.6, contrast=0.5, lift=0.3)
    fine = luminance(kuwahara(source, 2.5 * scale, tangent, anisotropy))
    lines = ink_lines(fine, tangent, 3.4 * scale, 0.016, 0.045)
    shadow = smoothstep(0.03, -0.03, fine - 0.17)
    return mix(tones, colour("#0a0a12", image), torch.maximum(lines, shadow))


def anime(image: Tensor, scale: float, seed: int) -> Tensor:
    """Animation still: airy light, two-tone cel shading with cool shadows, thin brown lines, bloom."""
    del seed
    source = expose(image, scale, clarity=0.3, strength=0.8)
    tangent, anisotropy = flow_field(source, 1.3 * scale, 2.8 * scale)
    flat = kuwahara(source, 5.5 * scale, tangent, anisotropy)
    lab = to_oklab(flat)
    light = 0.65 * soft_steps(lab[:, :1], 5, 6.0) + 0.35 * lab[:, :1]
    # Shadows lean to violet, lights to warm: the painted-sky look.
    shade = smoothstep(0.62, 0.40, light)
    tint = torch.cat([0.020 * shade, 0.018 - 0.060 * shade], 1)
    tones = vivid(from_oklab(torch.cat([light, lab[:, 1:] + tint], 1)), 1.75, lift=0.75)
    fine = luminance(kuwahara(source, 2.2 * scale, tangent, anisotropy))
    lines = ink_lines(fine, tangent, 1.7 * scale, 0.012, 0.05)
    drawn = mix(tones, colour("#3b2540", image) * (0.6 + 0.4 * tones), 0.8 * lines)
    glow = blur(tones * smoothstep(0.62, 0.95, luminance(tones)), 12 * scale)
    return screen(drawn, 0.32 * glow)


def woodblock(image: Tensor, scale: float, seed: int) -> Tensor:
    """Woodblock print: indigo key lines, flat ochre, vermilion and blue on washi."""
    source = expose(image, scale, clarity=0.6)
    tangent, anisotropy = flow_field(source, 1.5 * scale, 3.5 * scale)
    flat = flow_average(kuwahara(source, 6.5 * scale, tangent, anisotropy), tangent, 5 * scale, steps=3)
    lab = to_oklab(flat)
    light = soft_steps(lab[:, :1], 5, 10.0)
    base = gradient_map(light, ((0.2, "#1d2f55"), (0.45, "#5f7f8f"), (0.7, "#d9b98a"), (0.95, "#f4e7cb")))
    # The block for warm colours prints vermilion, the one for cool colours Prussian blue.
    warm = smoothstep(0.035, 0.085, lab[:, 1:2])
    cool = smoothstep(0.015, 0.07, -lab[:, 2:3])
    base = mix(
        base, gradient_map(light, ((0.2, "#5e1f1f"), (0.6, "#cf4f32"), (0.95, "#efa27e"))), 0.75 * warm
    )
    base = mix(
        base, gradient_map(light, ((0.2, "#122a52"), (0.6, "#2f6f9f"), (0.95, "#a9cbd0"))), 0.85 * cool
    )
    level = image.new_tensor([1.0, 0.0])[None, :, None, None].expand_as(tangent)
    wood = flow_average(
        grain(image, 1.6 * scale, seed).expand(len(image), -1, -1, -1), level, 24 * scale, steps=8
    )
    base = base * (1 + 0.03 * wood)
    fine = luminance(kuwahara(source, 2.8 * scale, tangent, anisotropy))
    lines = ink_lines(fine, tangent, 2.6 * scale, 0.014, 0.036)
    return mix(base, colour("#17203c", image), 0.95 * lines)
