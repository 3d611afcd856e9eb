"""Time as an argument: what the paced sources read and wait on, so that tests never sleep."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A steady clock that can be waited on."""

    def now_s(self) -> float:
        """Seconds since an arbitrary moment, never going back."""

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        """Wait `timeout_s`, or until `stop` is set; True if it is."""


class SystemClock:
    """The machine's clock: time.perf_counter, the one Frame.captured_s is measured on."""

    def now_s(self) -> float:
        return time.perf_counter()

    def wait(self, stop: threading.Event, timeout_s: float) -> bool:
        return stop.wait(max(timeout_s, 0.0))


SYSTEM_CLOCK = SystemClock()
