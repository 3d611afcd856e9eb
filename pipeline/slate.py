"""The picture shown when there is no stylised one: the product's name and the reason, at any size.

Knows nothing of the engine or the camera; needs OpenCV 5 for its scalable fonts.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame, Origin, Pixels

NAME = "Instant Vision"

# RGB: a night blue lit from the upper left, and the two ends of the mark.
DARK, LIGHT = (13, 14, 22), (44, 40, 74)
WHITE, GREY = (242, 242, 246), (164, 166, 184)
WARM, COOL = (255, 122, 89), (122, 104, 255)

# Shares of the text's unit, which is chosen so that everything fits (see _unit_px).
NAME_SIZE, REASON_SIZE, MARK_SIZE, GAP = 1.0, 0.5, 1.6, 0.6
HEAD_SIZE = MARK_SIZE + GAP + NAME_SIZE + GAP
BOLD, REGULAR = 700, 400
REASON_LINES, LEADING = 4, 1.5
# A tenth of the picture's width stays free on either side.
TEXT_WIDTH = 0.8
# Under this a letter is a smudge: on a tiny picture only the mark is shown.
READABLE_PX = 7
# Reasons change with errors, and those with the names in them: the last few are kept, not all.
KEPT = 8


class Slate:
    """Slates of one size; a text is drawn once."""

    def __init__(self, size: Size) -> None:
        empty = background(size)
        self._draw = lru_cache(maxsize=KEPT)(lambda reason: draw(empty, reason))

    def frame(self, reason: str, index: int, now_s: float) -> Frame:
        """The slate that says `reason`, as picture number `index` of a run, at the time `now_s`."""
        return Frame(pixels=self._draw(reason), index=index, captured_s=now_s, origin=Origin.SLATE)


def draw(empty: Pixels, reason: str) -> Pixels:
    """Draw a slate.

    Args:
        empty: the background, RGB uint8 [H, W, 3]; not changed.
        reason: why there is no picture; shown on at most four lines, the rest cut off with an ellipsis.

    Returns:
        RGB, uint8, [H, W, 3], read-only.
    """
    pixels = empty.copy()
    height, width = pixels.shape[:2]
    unit = _unit_px(width, height)
    if REASON_SIZE * unit < READABLE_PX:
        _mark(pixels, width / 2, height / 2, min(width, height) / 3)
    else:
        _text_block(pixels, unit, reason)
    pixels.flags.writeable = False
    return pixels


def _text_block(pixels: Pixels, unit: float, reason: str) -> None:
    """The mark, the name and the reason, one under the other and together in the middle."""
    height, width = pixels.shape[:2]
    lines = _wrapped(reason, round(REASON_SIZE * unit), TEXT_WIDTH * width)
    line_px = LEADING * REASON_SIZE * unit
    y = (height - HEAD_SIZE * unit - line_px * len(lines)) / 2 + MARK_SIZE * unit / 2
    _mark(pixels, width / 2, y, MARK_SIZE * unit)
    y += (MARK_SIZE / 2 + GAP + NAME_SIZE) * unit
    _centred(pixels, NAME, y, round(NAME_SIZE * unit), BOLD, WHITE)
    y += GAP * unit
    for line in lines:
        y += line_px
        _centred(pixels, line, y, round(REASON_SIZE * unit), REGULAR, GREY)


def _unit_px(width: int, height: int) -> float:
    """Height of the name's letters: a twelfth of the height, less if the width or four lines of reason ask for it."""
    rows = HEAD_SIZE + LEADING * REASON_SIZE * REASON_LINES
    name_width = _width(NAME, 100, BOLD) / 100
    return min(height / 12, height * 0.9 / rows, TEXT_WIDTH * width / name_width)


def background(size: Size) -> Pixels:
    """A soft light in the upper left that fades into the dark, RGB uint8 [H, W, 3]."""
    across = np.exp(-3 * (np.linspace(0, 1, size.width, dtype=np.float32) - 0.3) ** 2)
    down = np.exp(-3 * (np.linspace(0, 1, size.height, dtype=np.float32) - 0.15) ** 2)
    glow, dither = np.outer(down, across), _dither(size)
    pixels = np.empty((size.height, size.width, 3), np.uint8)
    for channel, (dark, light) in enumerate(zip(DARK, LIGHT, strict=True)):
        pixels[..., channel] = dark + (light - dark) * glow + dither
    return pixels


def _dither(size: Size) -> NDArray[np.float32]:
    """Noise in 0..1 [H, W], a tile repeated: eight bits alone would show rings in so soft a light."""
    tile = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    repeats = (-(-size.height // 256), -(-size.width // 256))
    return np.tile(tile, repeats)[: size.height, : size.width]


def _mark(pixels: Pixels, x: float, y: float, side: float) -> None:
    """The mark: an aperture ring of six blades that turn from the warm colour to the cool one."""
    blades, radius = 6, side / 2
    for blade in range(blades):
        share = blade / (blades - 1)
        colour = tuple(round(warm + share * (cool - warm)) for warm, cool in zip(WARM, COOL, strict=True))
        start = 2 * np.pi * blade / blades - np.pi / 2
        # A blade: from the rim over most of its sixth, to the next blade's inner end.
        rim = start + np.linspace(0.06, 2 * np.pi / blades - 0.06, 24)
        inner = start + np.array([1.35, 0.55])
        outline = np.concatenate(
            [
                _polar(x, y, radius, rim),
                _polar(x, y, 0.42 * radius, inner[:1]),
                _polar(x, y, 0.55 * radius, inner[1:]),
            ]
        )
        cv2.fillPoly(pixels, [np.round(outline * 16).astype(np.int32)], colour, cv2.LINE_AA, shift=4)


def _polar(x: float, y: float, radius: float, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=-1)


def _wrapped(text: str, size_px: int, width: float) -> list[str]:
    """Break into lines of at most `width` pixels, at spaces where there are any; at most REASON_LINES."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < REASON_LINES:
        fitting = _fitting(rest, size_px, width)
        cut = fitting if fitting == len(rest) else rest.rfind(" ", 0, fitting + 1)
        cut = cut if cut > 0 else fitting
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    if rest:
        last = f"{lines[-1]} {rest}"
        lines[-1] = last[: _fitting(last, size_px, width - _width("…", size_px, REGULAR))].rstrip() + "…"
    return lines


def _fitting(text: str, size_px: int, width: float) -> int:
    """How many characters of the beginning fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _width(text[:middle], size_px, REGULAR) <= width else (low, middle - 1)
    return low


def _centred(
    pixels: Pixels, text: str, baseline: float, size_px: int, weight: int, rgb: tuple[int, int, int]
) -> None:
    left = round((pixels.shape[1] - _width(text, size_px, weight)) / 2)
    cv2.putText(pixels, text, (left, round(baseline)), rgb, _font(), size_px, weight)


def _width(text: str, size_px: int, weight: int) -> float:
    """Of a text on one line, in pixels."""
    # A box wider than any text: OpenCV would wrap at its right edge.
    box = cv2.getTextSize((1 << 20, 1 << 10), text, (0, 0), _font(), size_px, weight)
    return float(box[0] + box[2])


@lru_cache(maxsize=1)
def _font() -> cv2.FontFace:
    """The sans face that OpenCV carries."""
    return cv2.FontFace("sans")
