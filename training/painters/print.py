"""Painters in layers: papercut and risograph."""

import torch
from torch import Tensor

from instantvision.training.painters.filters import (
    blur,
    flow_average,
    flow_field,
    grain,
    ink_lines,
    kuwahara,
    pixel_grid,
    sample,
    smoothstep,
)
from instantvision.training.painters.tones import colour, expose, luminance, mix

# Sheets from back to front: lightness from which a sheet covers, and its colour.
SHEETS = (
    (0.20, "#5a2a6e"),
    (0.33, "#b0386f"),
    (0.46, "#e8605a"),
    (0.60, "#f79a5b"),
    (0.74, "#fcd08a"),
    (0.87, "#fff3d9"),
)
BACK_SHEET = "#1f1b45"


def papercut(image: Tensor, scale: float, seed: int) -> Tensor:
    """Sheets of coloured paper, one for each step of lightness, with soft shadows on those behind."""
    source = expose(image, scale, clarity=0.5)
    tangent, anisotropy = flow_field(source, 1.5 * scale, 3.0 * scale)
    light = luminance(kuwahara(source, 5.5 * scale, tangent, anisotropy))
    # Scissors cut smooth curves.
    light = blur(flow_average(light, tangent, 9 * scale), 1.5 * scale)
    out = colour(BACK_SHEET, image).expand_as(image)
    drop = image.new_tensor([-2.2 * scale, -2.8 * scale])[None, :, None, None].expand(1, 2, *image.shape[-2:])
    grid = pixel_grid(image)
    for threshold, code in SHEETS:
        sheet = smoothstep(-0.015, 0.015, light - threshold)
        shadow = blur(sample(sheet, grid, drop), 2.4 * scale)
        out = mix(out * (1 - 0.42 * shadow), colour(code, image), sheet)
    return out * (1 + 0.015 * grain(image, 1.5 * scale, seed))


def risograph(image: Tensor, scale: float, seed: int) -> Tensor:
    """Two inks on off-white stock: fluorescent pink for the mid-tones, deep blue for the shadows, grain."""
    source = expose(image, scale, clarity=0.8)
    tangent, anisotropy = flow_field(source, 1.3 * scale, 2.6 * scale)
    calm = kuwahara(source, 3.0 * scale, tangent, anisotropy)
    light = luminance(calm)
    speck = 0.035 * grain(image, 1.4 * scale, seed)
    pink = smoothstep(0.86, 0.44, light + speck)
    blue = smoothstep(0.50, 0.24, light + 0.8 * speck)
    blue = torch.maximum(blue, ink_lines(light, tangent, 2.2 * scale, 0.012, 0.045))
    # The drums never meet exactly: pink sits 1.3 px to the right of blue.
    shift = image.new_tensor([-1.3 * scale, 0.8 * scale])[None, :, None, None].expand(1, 2, *image.shape[-2:])
    pink = sample(pink, pixel_grid(pink), shift)
    out = colour("#f7f2e6", image).expand_as(image)
    for coverage, code in ((pink, "#ff4f9a"), (blue, "#1b3fa6")):
        out = out * mix(torch.ones_like(out), colour(code, image), 0.94 * coverage)
    return out
