"""A moving, colourful picture that needs no camera, with a frame counter that a test can read back.

The background is a window wandering over a larger canvas of colour waves painted once; a disc circles over it, and a
strip of black and white cells along the lower edge spells the frame's number. A frame costs little more than a copy: it
must not take time from the engine at 1024x1024 and 60 fps.
"""

import math
import threading

import numpy as np
from numpy.typing import NDArray

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.pipeline.config import Size
from instantvision.pipeline.frames import Frame, Origin, Pixels

DEFAULT_SIZE, DEFAULT_FPS = Size(512, 512), 60.0

# Strip: white, black, then 16 bits of the frame's number, most significant first, then their parity.
COUNTER_BITS = 16
STRIP_CELLS = COUNTER_BITS + 3
STRIP_SHARE = 16

# Prime periods in frames: the whole picture repeats only after their product.
WINDOW_PERIODS = (241, 307)
DISC_PERIODS = (127, 173)


class TestPatternSource:
    """A generated picture at a constant rate; a reader that is late misses frames, as with a camera.

    Args:
        size: of the picture.
        fps: pictures a second, more than 0.
        clock: what the rate is measured with.
    """

    # pytest takes every class of such a name for a test.
    __test__ = False

    def __init__(
        self, size: Size = DEFAULT_SIZE, fps: float = DEFAULT_FPS, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.name = "test-pattern"
        self.status = ""
        self._size, self._fps, self._clock = size, fps, clock
        self._stop = threading.Event()
        self._canvas: Pixels | None = None
        self._start_s: float | None = None
        self._next = 0

    def open(self) -> None:
        self._canvas = _canvas(self._size)

    def read(self, timeout_s: float) -> Frame | None:
        now_s = self._clock.now_s()
        if self._start_s is None:
            self._start_s = now_s
        index = max(self._next, math.floor((now_s - self._start_s) * self._fps))
        wait_s = self._start_s + index / self._fps - now_s
        if self._clock.wait(self._stop, min(wait_s, timeout_s)) or wait_s > timeout_s or self._canvas is None:
            return None
        self._next = index + 1
        pixels = _paint(self._canvas, self._size, index)
        return Frame(pixels=pixels, index=index, captured_s=self._clock.now_s(), origin=Origin.RAW)

    def close(self) -> None:
        self._stop.set()


def read_counter(pixels: Pixels) -> int | None:
    """The frame number in a pattern picture, modulo 65536; None if there is no intact strip.

    Args:
        pixels: RGB uint8 [H, W, 3], not cropped; survives rescaling and video compression.
    """
    height, width = pixels.shape[:2]
    row = pixels[height - _strip_px(height) // 2 - 1].mean(axis=-1)
    centres = ((np.arange(STRIP_CELLS) + 0.5) * width / STRIP_CELLS).astype(int)
    bits = row[centres] > 127
    if not bits[0] or bits[1] or bits[2:].sum() % 2:
        return None
    return int("".join("01"[int(bit)] for bit in bits[2:-1]), 2)


def _strip_px(height: int) -> int:
    return max(height // STRIP_SHARE, 4)


def _canvas(size: Size) -> Pixels:
    """Colour waves, a quarter larger than the picture on each axis."""
    height, width = size.height * 5 // 4, size.width * 5 // 4
    y, x = np.ogrid[0 : 2.5 * math.pi : height * 1j, 0 : 2.5 * math.pi : width * 1j]
    waves = [
        np.sin(3 * x + channel) + np.sin(4 * y - 2 * channel) + np.sin(2 * (x + y) + 2 * channel)
        for channel in range(3)
    ]
    return np.asarray(np.stack(waves, axis=-1) * 42 + 128, dtype=np.uint8)


def _paint(canvas: Pixels, size: Size, index: int) -> Pixels:
    import cv2

    room_y, room_x = canvas.shape[0] - size.height, canvas.shape[1] - size.width
    top, left = _wander(index, room_y, WINDOW_PERIODS[0]), _wander(index, room_x, WINDOW_PERIODS[1])
    pixels = canvas[top : top + size.height, left : left + size.width].copy()
    diameter = min(size.width, size.height) // 4
    top = _wander(index, size.height - diameter, DISC_PERIODS[0])
    left = _wander(index, size.width - diameter, DISC_PERIODS[1])
    radius, colour = diameter // 2, (255, 220 - index % 200, 40 + index % 200)
    cv2.circle(pixels, (left + radius, top + radius), radius, colour, thickness=cv2.FILLED)
    pixels[-_strip_px(size.height) :] = _strip(index, size.width)[None, :, None]
    return pixels


def _wander(index: int, room_px: int, period: int) -> int:
    """A position in 0..room_px that swings to and fro once in `period` frames."""
    return round(room_px * (0.5 + 0.5 * math.sin(2 * math.pi * index / period)))


def _strip(index: int, width: int) -> NDArray[np.uint8]:
    number = index % 2**COUNTER_BITS
    bits = [1, 0, *(number >> shift & 1 for shift in reversed(range(COUNTER_BITS))), number.bit_count() % 2]
    cells = np.asarray(bits, dtype=np.uint8) * 255
    return cells[np.arange(width) * STRIP_CELLS // width]
