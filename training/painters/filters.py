"""Neighbourhood filters that painters share: blurs, structure tensor, flow averages, Kuwahara, ink lines, grain.

All take and give [B, C, H, W] float32 on any device, lengths in pixels of that image. They know nothing of presets
and of scale: the caller has multiplied its lengths by it. Borders repeat the edge pixel.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# A Gaussian wider than this is computed on an image shrunk by 2, 4 or 8: sides are multiples of 8.
WIDE_SIGMA_PX = 5.0
# Squared gradient at which a direction is as much noise as structure: a step of about 1/80 of the range.
TENSOR_NOISE = 1.5e-4
SECTORS = 8
# Samples of the unit disc: (radius, how many, weight), centre first.
RINGS = ((0.0, 1, 1.0), (0.35, 6, 0.9), (0.68, 12, 0.65), (1.0, 16, 0.3))


def blur(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of standard deviation `sigma_px`; below a third of a pixel the image itself."""
    if sigma_px < 0.33:
        return x
    shrink = 1
    while sigma_px / shrink > WIDE_SIGMA_PX and shrink < 8:
        shrink *= 2
    if shrink == 1:
        return _convolve(x, sigma_px)
    small = _convolve(F.avg_pool2d(x, shrink), sigma_px / shrink)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _convolve(x: Tensor, sigma_px: float) -> Tensor:
    radius = max(1, math.ceil(2.7 * sigma_px))
    taps = torch.exp(
        -0.5 * (torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) / sigma_px) ** 2
    )
    taps = taps / taps.sum()
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), taps[None, None, None])
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), taps[None, None, :, None])
    return flat.reshape(x.shape)


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scharr derivatives along x and y, per pixel, each of the shape of x."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., :, 2:] - padded[..., :, :-2]) / 2
    dy = (padded[..., 2:, :] - padded[..., :-2, :]) / 2
    dx = 0.1875 * (dx[..., :-2, :] + dx[..., 2:, :]) + 0.625 * dx[..., 1:-1, :]
    dy = 0.1875 * (dy[..., :-2] + dy[..., 2:]) + 0.625 * dy[..., 1:-1]
    return dx, dy


def flow_field(x: Tensor, fine_px: float, wide_px: float) -> tuple[Tensor, Tensor]:
    """Direction along edges, from the smoothed structure tensor.

    A tenth of a four times wider tensor is mixed in: it lends flat places the direction of the nearest edges.

    Args:
        x: [B, C, H, W].
        fine_px: blur before the derivatives, against camera noise.
        wide_px: blur of the tensor.

    Returns:
        Unit tangent [B, 2, H, W] as (x, y), of arbitrary sign; anisotropy [B, 1, H, W], 0 (none) to 1 (an edge).

    Source: Kyprianidis et al. 2009, Image and Video Abstraction by Anisotropic Kuwahara Filtering, section 3.
    """
    dx, dy = gradient(blur(x, fine_px))
    tensor = torch.cat([(dx * dx).sum(1, True), (dx * dy).sum(1, True), (dy * dy).sum(1, True)], 1)
    near = blur(tensor, wide_px)
    e, f, g = torch.chunk(near + 0.1 * blur(near, 4 * wide_px), 3, dim=1)
    spread = torch.sqrt((e - g) ** 2 + 4 * f * f)
    angle = 0.5 * torch.atan2(2 * f, e - g) + math.pi / 2
    return torch.cat([angle.cos(), angle.sin()], 1), spread / (e + g + TENSOR_NOISE)


def pixel_grid(x: Tensor) -> Tensor:
    """Pixel centres of x in grid_sample's coordinates, [1, H, W, 2]."""
    height, width = x.shape[-2:]
    ys = (torch.arange(height, device=x.device, dtype=x.dtype) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=x.device, dtype=x.dtype) * 2 + 1) / width - 1
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)[None]


def sample(x: Tensor, grid: Tensor, offset_px: Tensor) -> Tensor:
    """Bilinear samples of x at `grid` moved by `offset_px`, [B or 1, 2, H, W] as (x, y) pixels."""
    height, width = x.shape[-2:]
    to_grid = torch.tensor([2 / width, 2 / height], device=x.device, dtype=x.dtype)
    where = grid + offset_px.permute(0, 2, 3, 1) * to_grid
    where = where.expand(x.shape[0], -1, -1, -1)
    return F.grid_sample(x, where, mode="bilinear", padding_mode="border", align_corners=False)


def flow_average(x: Tensor, tangent: Tensor, length_px: float, steps: int = 5) -> Tensor:
    """Average x along the flow, Gaussian weights, `length_px` to either side.

    Source: Cabral and Leedom 1993 (line integral convolution); Kang et al. 2009 (flow-based filtering).
    """
    grid, stride = pixel_grid(x), length_px / steps
    both = torch.cat([x, tangent], 1)
    total, weight_sum = x.clone(), 1.0
    for sign in (1.0, -1.0):
        heading = sign * tangent
        offset = heading * stride
        for step in range(1, steps + 1):
            here = sample(both, grid, offset)
            weight = math.exp(-2.0 * (step / steps) ** 2)
            total = total + weight * here[:, :-2]
            weight_sum += weight
            if step < steps:
                # A tangent has no sign: keep to the side we are walking to, or lines would turn back.
                ahead = here[:, -2:]
                heading = ahead * torch.where((ahead * heading).sum(1, True) < 0, -1.0, 1.0)
                offset = offset + heading * stride
    return total / weight_sum


def kuwahara(
    x: Tensor, radius_px: float, tangent: Tensor, anisotropy: Tensor, sharpness: float = 8.0
) -> Tensor:
    """Anisotropic Kuwahara filter: the mean of the calmest sectors of an ellipse laid along the flow.

    The disc is sampled at 35 points that are fixed in the ellipse's own frame, so each point's weight in each of
    the 8 sectors is a constant, and no neighbourhood is unfolded.

    Args:
        x: [B, 3, H, W], 0..1.
        radius_px: radius of the disc that the ellipse has the area of.
        tangent, anisotropy: from `flow_field`.
        sharpness: exponent of the preference for calm sectors.

    Returns:
        [B, 3, H, W].

    Source: Kyprianidis et al. 2009; overlapping sectors as in Kyprianidis et al. 2010 (polynomial weights).
    """
    # The samples are radius/3 apart: what is finer would alias.
    x = blur(x, 0.16 * radius_px)
    stretch = 1 + anisotropy
    along, across = radius_px * stretch * tangent, radius_px / stretch * tangent.flip(1)
    across = torch.cat([-across[:, :1], across[:, 1:]], 1)
    values = torch.cat([x, (x * x).sum(1, True)], 1)
    grid = pixel_grid(x)
    sectors: list[Tensor | float] = [0.0] * SECTORS
    totals = [0.0] * SECTORS
    for u, v, weights in _disc_samples():
        here = sample(values, grid, u * along + v * across)
        for k, weight in weights:
            sectors[k] = sectors[k] + weight * here
            totals[k] += weight
    out, norm = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for sector, total in zip(sectors, totals, strict=True):
        mean = sector[:, :3] / total  # type: ignore[index]
        variance = (sector[:, 3:] / total - (mean * mean).sum(1, True)).clamp_min(0)  # type: ignore[index]
        # 100: a deviation of 1/100 is as good as flat, so camera noise does not choose the sector.
        trust = 1 / (1 + (100 * variance.sqrt()) ** sharpness)
        out, norm = out + trust * mean, norm + trust
    return out / norm.clamp_min(1e-20)


def _disc_samples() -> list[tuple[float, float, list[tuple[int, float]]]]:
    """Points (u, v) of the unit disc with their weights in the sectors they belong to."""
    points = []
    for radius, count, weight in RINGS:
        for i in range(count):
            angle = 2 * math.pi * (i + 0.5 * (count == 12)) / count
            share = [
                max(0.0, math.cos(angle - 2 * math.pi * k / SECTORS)) ** 4 if radius else 0.4
                for k in range(SECTORS)
            ]
            members = [(k, weight * s) for k, s in enumerate(share) if s > 0.03]
            points.append((radius * math.cos(angle), radius * math.sin(angle), members))
    return points


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, a smooth ramp between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def ink_lines(light: Tensor, tangent: Tensor, width_px: float, low: float, high: float) -> Tensor:
    """Coverage of ink on the dark side of edges, averaged along the flow so that lines are long and calm.

    Args:
        light: [B, 1, H, W], lightness 0..1.
        tangent: from `flow_field`.
        width_px: about the width of a line.
        low, high: differences of lightness at which ink starts and is full.

    Returns:
        [B, 1, H, W], 0 (paper) to 1 (ink).

    Source: Winnemöller et al. 2012, XDoG; the flow average after Kang et al. 2007, Coherent Line Drawing.
    """
    sigma = 0.45 * width_px
    response = blur(light, 1.6 * sigma * 1.6) - blur(light, sigma)
    response = flow_average(response, tangent, 2.2 * width_px, steps=4)
    return smoothstep(low, high, response)


def grain(x: Tensor, size_px: float, seed: int) -> Tensor:
    """Seeded noise of unit deviation and grain `size_px`, [1, 1, H, W], the same for every image of a batch.

    It is drawn on the CPU, so one seed is one grain on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 1, *x.shape[-2:], generator=generator).to(x.device)
    sigma = 0.5 * size_px
    soft = blur(noise, sigma)
    # Blurring white noise divides its deviation by 2 sigma sqrt(pi), once the kernel is wider than a pixel.
    return soft * (max(1.0, 2 * sigma * math.sqrt(math.pi)) if sigma >= 0.33 else 1.0)
