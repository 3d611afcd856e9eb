"""Labelled pictures side by side: the demo's overview of presets and its before-and-after view.

Knows nothing of models or files.
"""

import math
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from instantvision.pipeline.frames import Pixels

# All lengths follow from the tile's height, so a sheet of 256 px tiles looks like one of 768 px tiles.
BACKGROUND = (18, 19, 22)
TEXT = (232, 233, 236)
CHIP = (18, 19, 22)
GAP = 0.05
LABEL_HEIGHT = 0.13
FONT_HEIGHT = 0.068
CHIP_OPACITY = 0.78
# Semi-bold stays readable on a small tile.
FONT_WEIGHT = 600
# The overview fills a wide screen or a README column.
SHEET_ASPECT = 1.6


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def contact_sheet(tiles: Sequence[tuple[str, Pixels]]) -> Pixels:
    """Lay labelled pictures of one size out in rows, left to right.

    Args:
        tiles: (label, RGB uint8 [H, W, 3]) pairs, at least one.

    Returns:
        RGB uint8 picture, about 1.6 times as wide as high.
    """
    height, width = tiles[0][1].shape[:2]
    gap, label_height = round(height * GAP), round(height * LABEL_HEIGHT)
    columns = best_columns(len(tiles), width + gap, height + label_height + gap)
    rows = math.ceil(len(tiles) / columns)
    shape = (rows * (height + label_height) + (rows + 1) * gap, columns * (width + gap) + gap, 3)
    sheet = np.full(shape, BACKGROUND, np.uint8)
    for position, (label, picture) in enumerate(tiles):
        row, column = divmod(position, columns)
        top, left = gap + row * (height + label_height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = picture
        _write(sheet, label, (left, top + height + round(label_height * 0.72)), round(height * FONT_HEIGHT))
    return sheet


def best_columns(count: int, cell_width: int, cell_height: int) -> int:
    """The number of columns that leaves the fewest empty cells among those near the sheet's aspect."""
    ideal = math.sqrt(count * SHEET_ASPECT * cell_height / cell_width)
    candidates = range(max(1, math.floor(ideal)), min(count, math.ceil(ideal) + 1) + 1)
    return min(candidates, key=lambda columns: (-count % columns, abs(columns - ideal)), default=1)


def side_by_side(left: tuple[str, Pixels], right: tuple[str, Pixels]) -> Pixels:
    """Two labelled pictures of one size next to each other, twice as wide as one of them."""
    return np.ascontiguousarray(np.hstack([_with_chip(*left), _with_chip(*right)]))


def _with_chip(label: str, picture: Pixels) -> Pixels:
    """The picture with its label in a dark box in the lower left corner."""
    height = picture.shape[0]
    font_px, margin = round(height * FONT_HEIGHT), round(height * GAP * 0.8)
    pad = font_px // 2
    text_width = cv2.getTextSize((0, 0), label, (0, 0), _font(), font_px, FONT_WEIGHT)[2]
    top, bottom = height - margin - font_px - pad, height - margin
    marked = picture.copy()
    box = marked[top:bottom, margin : margin + text_width + 2 * pad]
    box[:] = cv2.addWeighted(box, 1 - CHIP_OPACITY, np.full_like(box, CHIP), CHIP_OPACITY, 0)
    _write(marked, label, (margin + pad, bottom - round(pad * 0.8)), font_px)
    return marked


def _write(picture: Pixels, text: str, origin: tuple[int, int], font_px: int) -> None:
    """Draw text into a picture, its baseline starting at `origin` (x, y)."""
    cv2.putText(picture, text, origin, TEXT, _font(), font_px, FONT_WEIGHT)
