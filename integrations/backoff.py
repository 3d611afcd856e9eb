"""How long to wait before the next attempt to get a lost device back.

Knows nothing of the device: a counter of recent attempts and a formula.
"""

from collections import deque

FIRST_S, LONGEST_S, WINDOW_S = 0.25, 10.0, 60.0


class Backoff:
    """Doubles the wait with every attempt of the last minute, up to 10 s.

    Five attempts fall into the first 8 s, later ones come every 8 to 10 s. Attempts that succeeded count too: a camera
    that comes back and dies again at once is not asked for more often than one that stays away.
    """

    def __init__(self) -> None:
        self._attempts_s: deque[float] = deque()

    def record(self, now_s: float) -> None:
        """Note an attempt made at `now_s`, seconds on any steady clock."""
        self._attempts_s.append(now_s)

    def delay_s(self, now_s: float) -> float:
        """Seconds to wait from the last attempt, or from the loss, to the next attempt."""
        while self._attempts_s and now_s - self._attempts_s[0] > WINDOW_S:
            self._attempts_s.popleft()
        return min(FIRST_S * 2.0 ** len(self._attempts_s), LONGEST_S)
