"""What flows through the program: a picture with its history, and the one-slot mailbox between two threads.

Knows nothing of torch, cameras or models.
"""

import threading
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Pixels = NDArray[np.uint8]


class Origin(Enum):
    """Where a picture came from; sinks take all but RAW.

    CAMERA is the raw picture shown by the user's deliberate act: only the live loop makes such frames, and only while
    Control says so.
    """

    RAW = "raw"
    STYLISED = "stylised"
    SLATE = "slate"
    CAMERA = "camera"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture on its way from source to sink.

    Args:
        pixels: RGB, uint8, [H, W, 3], C-contiguous. Never written to after construction.
        index: running number given by the source, from 0; gaps are dropped frames.
        captured_s: time.perf_counter() at which the source had the picture.
        origin: raw camera picture, engine output, slate, or camera picture on the user's word.
    """

    pixels: Pixels
    index: int
    captured_s: float
    origin: Origin

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise ValueError(f"frame is {dtype}{list(shape)}, expected uint8[H, W, 3]")


class Closed(Exception):
    """The mailbox was closed: nothing will ever be put again."""


class Latest(Generic[T]):
    """A one-slot mailbox: putting replaces what nobody has taken yet, so the reader is never behind.

    Thread-safe. `dropped` counts values that were replaced unread.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._value: T | None = None
        self._closed = False
        self.dropped = 0

    def put(self, value: T) -> None:
        """Make `value` the one the reader gets next. Ignored after close()."""
        with self._condition:
            if self._closed:
                return
            if self._value is not None:
                self.dropped += 1
            self._value = value
            self._condition.notify()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Remove and return the value; None after `timeout_s` without one (0: do not wait).

        Raises:
            Closed: the mailbox was closed and is empty.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._value is not None or self._closed, timeout_s)
            if self._value is None and self._closed:
                raise Closed
            value, self._value = self._value, None
            return value

    def close(self) -> None:
        """Wake the reader for good; what is still in the slot can be taken once."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
