"""A small picture before and after, for whoever looks at the controls.

Costs the live loop two references a few times a second, and only while somebody looks: the work is done by whoever
asks. Pictures stay in this process; nothing here reaches a sink.
"""

import math
import threading
from typing import Literal

import numpy as np

from instantvision.integrations.clock import SYSTEM_CLOCK, Clock
from instantvision.pipeline.errors import ConfigError
from instantvision.pipeline.frames import Pixels

HZ = 5.0
# Whoever has not asked for so long has looked away.
WATCHED_S = 2.0
SIDE_MIN_PX, SIDE_MAX_PX = 32, 1024
# Blocks become visible below, files twice as large above.
JPEG_QUALITY = 80

Which = Literal["before", "after"]


class Preview:
    """Keeps the newest pair of pictures; every method may be called from any thread.

    Args:
        hz: pairs kept a second at most.
        clock: measures that.
    """

    def __init__(self, hz: float = HZ, clock: Clock = SYSTEM_CLOCK) -> None:
        self._period_s, self._clock = 1 / hz, clock
        self._lock = threading.Lock()
        self._pair: tuple[Pixels, Pixels] | None = None
        self._asked_s = self._kept_s = -math.inf

    def offer(self, raw_pixels: Pixels, stylised_pixels: Pixels) -> None:
        """Keep a pair if it is time for one and somebody looks; RGB uint8 [H, W, 3], never written again."""
        now_s = self._clock.now_s()
        with self._lock:
            if now_s - self._asked_s > WATCHED_S:
                # A picture of hours ago would be the first one shown to who looks again.
                self._pair = None
            elif now_s - self._kept_s >= self._period_s:
                self._pair, self._kept_s = (raw_pixels, stylised_pixels), now_s

    def take_jpeg(self, side_px: int, which: Which) -> bytes | None:
        """The newest picture as JPEG; None if there is none yet: asking brings the next.

        Args:
            side_px: of the longer side, 32..1024; a smaller picture is not enlarged.
            which: `before` or `after` the engine.

        Raises:
            ConfigError: side_px or which is none of these.
        """
        if not SIDE_MIN_PX <= side_px <= SIDE_MAX_PX:
            raise ConfigError(f"side is {side_px} px, expected {SIDE_MIN_PX} to {SIDE_MAX_PX}: try 320")
        if which not in ("before", "after"):
            raise ConfigError(f"picture is {which!r}, expected before or after")
        with self._lock:
            self._asked_s = self._clock.now_s()
            pair = self._pair
        return None if pair is None else _jpeg(pair[which == "after"], side_px)


def _jpeg(pixels: Pixels, side_px: int) -> bytes:
    import cv2

    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"cannot write a picture of {width}x{height} as JPEG")
    return data.tobytes()
