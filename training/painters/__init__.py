"""Painters: the functions from a photo to its painted picture that the diffusion model learns.

They run at training time only. A painted pixel depends on its surroundings alone: a shifted image gives the
shifted picture, so that what the model learns holds at any place and does not flicker. Where a style wants paper
or bristles, these come from `seed`. The network styles (`neural`) are the exception: their normalisation sees the
whole image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instantvision.training.painters.brush import oil, watercolour
from instantvision.training.painters.cel import anime, comic, woodblock
from instantvision.training.painters.drawing import ink, pencil
from instantvision.training.painters.glass import stained_glass
from instantvision.training.painters.light import cyberpunk, neon
from instantvision.training.painters.neural import candy, poster, starry, wave
from instantvision.training.painters.print import papercut, risograph

SIDE_MULTIPLE_PX = 8
SIDE_MIN_PX = 64


@dataclass(frozen=True)
class Painter:
    """One preset: what a user reads about it, how it paints, and whether the seed shows."""

    description: str
    paint: Callable[[Tensor, float, int], Tensor]
    seeded: bool = True


def _photo(image: Tensor, scale: float, seed: int) -> Tensor:
    del scale, seed
    return image


PAINTERS: dict[str, Painter] = {
    "photo": Painter("The camera's picture, unchanged.", _photo, seeded=False),
    "oil": Painter("Thick oil paint with visible brush strokes and rich colour.", oil),
    "watercolour": Painter("Transparent washes that pool and bleed on white paper.", watercolour),
    "ink": Painter("Brush and black ink with grey washes on warm paper.", ink),
    "pencil": Painter("Graphite hatching on white paper.", pencil),
    "comic": Painter("Bold black outlines and bright flat colours of a comic book.", comic, seeded=False),
    "anime": Painter(
        "Airy animation film: clean thin lines, soft shading, glowing light.", anime, seeded=False
    ),
    "woodblock": Painter("Japanese woodblock print in indigo, ochre and vermilion.", woodblock),
    "neon": Painter("Glowing neon tubes on a midnight wall.", neon, seeded=False),
    "cyberpunk": Painter("Night city: magenta and cyan lamps on deep violet.", cyberpunk, seeded=False),
    "papercut": Painter("Layered sunset-coloured paper with soft shadows.", papercut),
    "risograph": Painter("Two-ink print in fluorescent pink and deep blue.", risograph),
    "stained-glass": Painter("Glowing jewel-coloured panes in black lead.", stained_glass),
    "starry": Painter("Swirling strokes of night blue and gold.", starry, seeded=False),
    "candy": Painter("Pink, turquoise and lemon felt pen on white.", candy, seeded=False),
    "poster": Painter("Crimson, amber and pale blue of an old lithographed poster.", poster, seeded=False),
    "wave": Painter("Sea-blue lines and foam on sand-coloured paper.", wave, seeded=False),
}


def descriptions() -> dict[str, str]:
    """One sentence for each preset, in the order of PAINTERS."""
    return {name: painter.description for name, painter in PAINTERS.items()}


@torch.no_grad()
def paint(name: str, image: Tensor, scale: Tensor | float, seed: int) -> Tensor:
    """Paint a batch in one preset.

    Args:
        name: key of PAINTERS.
        image: [B, 3, H, W], float32 RGB 0..1; sides multiples of 8, at least 64.
        scale: size of strokes and lines, 1 for a frame 512 pixels high, 0.5..2; a number or a one-element tensor.
        seed: of paper, bristles and grain; one seed is the same texture for every image of the batch.

    Returns:
        [B, 3, H, W], float32, 0..1, on the device of `image`.

    Raises:
        ValueError: unknown name, or an image of another shape.
    """
    if name not in PAINTERS:
        raise ValueError(f"unknown preset {name!r}, expected one of {', '.join(PAINTERS)}")
    height, width = image.shape[-2:]
    if image.ndim != 4 or image.shape[1] != 3 or height % SIDE_MULTIPLE_PX or width % SIDE_MULTIPLE_PX:
        raise ValueError(
            f"image is {tuple(image.shape)}, expected [B, 3, H, W] with sides multiples of {SIDE_MULTIPLE_PX}"
        )
    if min(height, width) < SIDE_MIN_PX:
        raise ValueError(f"image is {height}x{width}, expected sides of at least {SIDE_MIN_PX}: resize it")
    return PAINTERS[name].paint(image, float(scale), seed).clamp(0, 1)
