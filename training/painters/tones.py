"""Point-wise colour: exposure, Oklab, saturation, soft steps, palettes and paper.

Images are [B, 3, H, W] RGB 0..1, lightness [B, 1, H, W]. It knows nothing of edges.
"""

from itertools import pairwise

import torch
from torch import Tensor

from instantvision.training.painters.filters import blur, smoothstep

# Oklab's matrices: Ottosson 2020, A perceptual color space for image processing.
_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix, x)


def to_oklab(rgb: Tensor) -> Tensor:
    """Lightness 0..1 and the opponent axes a, b (about ±0.3)."""
    rgb = rgb.clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    lms = _apply(rgb.new_tensor(_TO_LMS), linear).clamp_min(1e-9) ** (1 / 3)
    return _apply(rgb.new_tensor(_TO_LAB), lms)


def from_oklab(lab: Tensor) -> Tensor:
    """Back to RGB 0..1; colours out of gamut are clamped."""
    lms = _apply(torch.linalg.inv(lab.new_tensor(_TO_LAB)), lab) ** 3
    linear = _apply(torch.linalg.inv(lab.new_tensor(_TO_LMS)), lms).clamp(0, 1)
    return torch.where(
        linear > 0.0031308, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055, 12.92 * linear
    )


def luminance(rgb: Tensor) -> Tensor:
    """Rec. 601 luma, [B, 1, H, W]."""
    return (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, True)


def expose(image: Tensor, scale: float, clarity: float = 0.35, strength: float = 0.65) -> Tensor:
    """Lift dim places and add local contrast, by a fixed curve of the neighbourhood's lightness.

    Args:
        image: [B, 3, H, W].
        scale: 1 for a 512-pixel frame.
        clarity: how much of the difference to the near surroundings is added.
        strength: 0 leaves the exposure, 1 brings every neighbourhood to middle grey.

    Returns:
        [B, 3, H, W].
    """
    light = luminance(image).clamp(0.004, 1)
    around = blur(light, 40 * scale).clamp(0.03, 0.9)
    # light ** gamma takes `around` to 0.48; bright places are hardly darkened, black ones lifted only so far.
    gamma = (torch.log(light.new_tensor(0.48)) / torch.log(around)).clamp(0.42, 1.25) ** strength
    lifted = light**gamma
    lifted = lifted + clarity * (lifted - blur(lifted, 9 * scale))
    # A colour keeps its hue. A lift of four at most: very dark pixels carry noise in place of hue.
    ratio = lifted.clamp(0, 1) / light
    return (image * ratio.clamp(0, 4)).clamp(0, 1)


def vivid(rgb: Tensor, saturation: float, contrast: float = 0.0, lift: float = 0.0) -> Tensor:
    """Saturate in Oklab with a soft ceiling, steepen mid-tones, raise lightness."""
    lab = to_oklab(rgb)
    light = lab[:, :1].clamp(0, 1)
    light = light + contrast * (light * light * (3 - 2 * light) - light) + lift * light * (1 - light)
    chroma = lab[:, 1:]
    size = chroma.norm(dim=1, keepdim=True)
    # Below 0.03 a hue is mostly the camera's white balance: a grey wall stays grey. Skin (0.06) gets the whole
    # factor; the ceiling of 0.3 is about the gamut's.
    wanted = size * (1 + (saturation - 1) * smoothstep(0.005, 0.06, size))
    return from_oklab(
        torch.cat([light, chroma * (wanted / (1 + (wanted / 0.3) ** 3) ** (1 / 3)) / size.clamp_min(1e-6)], 1)
    )


def soft_steps(x: Tensor, levels: int, sharpness: float) -> Tensor:
    """Quantise 0..1 to `levels` with steps of finite steepness, so that small changes do not flicker.

    Source: Winnemöller et al. 2006, Real-Time Video Abstraction, section 3.3.
    """
    scaled = x.clamp(0, 1) * (levels - 1)
    nearest = scaled.round()
    return (
        nearest + 0.5 * torch.tanh(sharpness * (scaled - nearest)) / torch.tanh(x.new_tensor(sharpness / 2))
    ) / (levels - 1)


def colour(code: str, like: Tensor) -> Tensor:
    """The colour '#rrggbb' as [1, 3, 1, 1]."""
    return like.new_tensor([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])[None, :, None, None]


def gradient_map(x: Tensor, stops: tuple[tuple[float, str], ...]) -> Tensor:
    """Map [B, 1, H, W] to colours, linear between (position, '#rrggbb') stops of rising position."""
    out = colour(stops[0][1], x).expand(x.shape[0], 3, *x.shape[-2:])
    for (low, _), (high, code) in pairwise(stops):
        t = ((x - low) / (high - low)).clamp(0, 1)
        out = out + t * (colour(code, x) - out)
    return out


def mix(a: Tensor, b: Tensor, amount: Tensor | float) -> Tensor:
    """a where amount is 0, b where it is 1."""
    return a + (b - a) * amount


def screen(a: Tensor, b: Tensor) -> Tensor:
    """Add light without clipping."""
    return 1 - (1 - a.clamp(0, 1)) * (1 - b.clamp(0, 1))
