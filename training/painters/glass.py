"""Stained glass: cells that cling to the content, lead between them, light through them."""

import torch
from torch import Tensor

from instantvision.training.painters.filters import blur, flow_field, grain, ink_lines, kuwahara, smoothstep
from instantvision.training.painters.tones import (
    colour,
    expose,
    gradient_map,
    luminance,
    mix,
    to_oklab,
    vivid,
)

# Rounds of assigning pixels to cells and moving the cells; later ones hardly move any.
ROUNDS = 4
# Price of a pixel one cell away from its seed, in lightness: low, so that panes follow contours.
COMPACTNESS = 0.13
# Glass for what has no colour of its own, by lightness.
JEWELS = ((0.08, "#0d1a5c"), (0.3, "#12518f"), (0.48, "#7d4a9c"), (0.66, "#e0a136"), (0.9, "#fff0b8"))


def cells(features: Tensor, cell_px: int, compactness: float, seed: int) -> tuple[Tensor, Tensor]:
    """Grow superpixels from a jittered lattice.

    Args:
        features: [B, C, H, W], colour in units in which 0.1 is a clear step.
        cell_px: distance of the seeds.
        compactness: price of leaving the seed by one cell, in units of the features.
        seed: of the jitter.

    Returns:
        Index of each pixel's cell, int64 [B, 1, H, W]; by how much the second-best cell is further than the best,
        [B, 1, H, W], 0 on a border.

    Source: Achanta et al. 2012, SLIC superpixels.
    """
    batch, _, height, width = features.shape
    rows, columns = -(-height // cell_px), -(-width // cell_px)
    device = features.device
    ys, xs = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    place = torch.stack([xs, ys])[None] * (compactness / cell_px)
    points = torch.cat([features, place.expand(batch, -1, -1, -1)], 1)
    generator = torch.Generator().manual_seed(seed)
    jitter = (torch.rand(2, rows, columns, generator=generator).to(device) - 0.5) * 0.7
    home_y, home_x = (ys / cell_px).long(), (xs / cell_px).long()
    start_y = (
        ((torch.arange(rows, device=device)[:, None] + 0.5 + jitter[0]) * cell_px).long().clamp(0, height - 1)
    )
    start_x = (
        ((torch.arange(columns, device=device)[None] + 0.5 + jitter[1]) * cell_px).long().clamp(0, width - 1)
    )
    centres = points[:, :, start_y, start_x]
    for turn in range(ROUNDS):
        best = torch.full((batch, height, width), torch.inf, device=device)
        second = best.clone()
        label = torch.zeros((batch, height, width), dtype=torch.int64, device=device)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                cy, cx = (home_y + dy).clamp(0, rows - 1), (home_x + dx).clamp(0, columns - 1)
                index = cy * columns + cx
                distance = (points - centres[:, :, cy, cx]).square().sum(1)
                # A clamped neighbour is a cell seen before: it must not count as its own second best.
                fresh = (index != label) | (best == torch.inf)
                nearer = distance < best
                second = torch.where(
                    nearer & fresh, best, torch.where(fresh, torch.minimum(second, distance), second)
                )
                label = torch.where(nearer, index, label)
                best = torch.minimum(best, distance)
        if turn < ROUNDS - 1:
            centres = cell_means(points, label[:, None], rows * columns).reshape(batch, -1, rows, columns)
    return label[:, None], (second.sqrt() - best.sqrt())[:, None]


def cell_means(x: Tensor, label: Tensor, count: int) -> Tensor:
    """Mean of x [B, C, H, W] over each of `count` cells, [B, C, count]."""
    batch, channels = x.shape[:2]
    index = label.reshape(batch, 1, -1)
    sums = x.new_zeros(batch, channels, count).scatter_add_(
        2, index.expand(-1, channels, -1), x.reshape(batch, channels, -1)
    )
    sizes = x.new_zeros(batch, 1, count).scatter_add_(2, index, torch.ones_like(index, dtype=x.dtype))
    return sums / sizes.clamp_min(1)


def stained_glass(image: Tensor, scale: float, seed: int) -> Tensor:
    """Panes of jewel-coloured glass in black lead: small where there is detail, large elsewhere."""
    source = expose(image, scale, clarity=0.6)
    tangent, anisotropy = flow_field(source, 1.5 * scale, 3.0 * scale)
    calm = kuwahara(source, 4.0 * scale, tangent, anisotropy)
    lab = to_oklab(calm)
    detail = blur((lab[:, :1] - blur(lab[:, :1], 6 * scale)).abs(), 5 * scale)
    fine = smoothstep(0.028, 0.036, detail)
    features = lab * lab.new_tensor([1.3, 1.8, 1.8])[None, :, None, None]
    glass, lead = torch.zeros_like(image), torch.zeros_like(detail)
    for cell_px, width_px, chosen in ((26 * scale, 1.2 * scale, 1 - fine), (10 * scale, 0.35 * scale, fine)):
        size_px = max(3, round(cell_px))
        label, margin = cells(features, size_px, COMPACTNESS, seed)
        count = -(-image.shape[-2] // size_px) * -(-image.shape[-1] // size_px)
        pane = cell_means(calm, label, count).gather(2, label.reshape(len(image), 1, -1).expand(-1, 3, -1))
        # In a flat place the margin of two panes falls to 0 at 2 x compactness / cell a pixel.
        lead_px = margin * size_px / (2 * COMPACTNESS)
        lead = lead + chosen * smoothstep(width_px + 0.8, width_px - 0.5, lead_px)
        glass = glass + chosen * pane.reshape(image.shape)
    glass = mix(glass, calm, 0.3)
    light = luminance(glass)
    jewels = gradient_map(light, JEWELS)
    # Grey glass is dull glass: what has no colour of its own gets the jewel of its lightness.
    own = smoothstep(0.012, 0.06, to_oklab(glass)[:, 1:].norm(dim=1, keepdim=True))
    glass = mix(jewels, vivid(glass, 2.4, contrast=0.4, lift=0.3), 0.40 + 0.45 * own)
    # The main leads run along contours, where a glazier would cut.
    contour = ink_lines(luminance(calm), tangent, 3.4 * scale, 0.020, 0.045)
    lead = torch.maximum(lead, contour)
    glow = blur(glass, 5 * scale)
    glass = glass * (0.94 + 0.03 * grain(image, 5 * scale, seed)) + 0.16 * glow * glow
    return mix(glass, colour("#0b0a10", image), 0.92 * lead)
