"""How a live run is doing, on a line of the terminal that is rewritten once a second, and what else there is to say.

Knows LiveStats and nothing else of the pipeline. Where the stream is no terminal, it writes a plain line now and then.
"""

import sys
import threading
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from instantvision.pipeline.meter import LiveStats, Summary

# Often enough to see in a log that the run is alive, rarely enough not to fill it.
PLAIN_EVERY_S = 10.0
# What is said beside the figures, in this order; the keys only to somebody who sits there.
ON_AIR, OBS, KEYS = "on air", "obs", "keys"


class StatusLine:
    """Shows the figures of a run, and below them what else is said; a context manager, safe to use from any thread.

    Args:
        stream: standard error if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        self._next_plain_s = 0.0
        self._figures = ""
        self._said: dict[str, str] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, stats: LiveStats) -> None:
        """Write the present figures."""
        with self._lock:
            self._figures = text(stats)
            if self._console.is_terminal:
                self._rewrite()
            elif stats.duration_s >= self._next_plain_s:
                self._console.print(self._plain(), soft_wrap=True)
                self._next_plain_s = stats.duration_s + PLAIN_EVERY_S

    def say(self, subject: str, words: str) -> None:
        """Say this of a subject (ON_AIR, OBS, KEYS) from now on, "" for nothing."""
        with self._lock:
            changed = self._said.get(subject, "") != words
            self._said[subject] = words
            # Before the first figures, there is no line yet.
            if changed and self._live is not None:
                self._rewrite()

    def tell(self, words: str) -> None:
        """Write a line that stays, above the one that is rewritten."""
        with self._lock:
            self._console.print(words, soft_wrap=True)

    def close(self) -> None:
        """Leave the last figures on their line and end it; may be called twice."""
        with self._lock:
            if self._live is not None:
                # Nobody reads keys any longer.
                self._said.pop(KEYS, None)
                self._rewrite()
                self._live.stop()
                self._live = None

    def _plain(self) -> str:
        return " · ".join([self._figures, *self._words(ON_AIR, OBS)])

    def _words(self, *subjects: str) -> list[str]:
        return [words for subject in subjects if (words := self._said.get(subject))]

    def _rewrite(self) -> None:
        line = Text(self._figures, overflow="ellipsis", no_wrap=True)
        if words := self._words(ON_AIR, OBS, KEYS):
            line.append("\n" + " · ".join(words), style="dim")
        if self._live is None:
            # No refreshing by itself: that would be a thread.
            self._live = Live(line, console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(line, refresh=True)


def text(stats: LiveStats) -> str:
    """The line: rates, times and losses of the last seconds, drops of the whole run, what is being made."""
    recent = stats.recent
    parts = [f"{recent.fps_out:.1f} fps out"]
    if stats.engine_frames:
        parts += [_engine(recent.fps_engine, recent.device_ms), _latency(recent.latency_ms)]
        parts.append(f"drops {stats.dropped_capture + stats.dropped_engine}")
        parts.append(f"repeats {100 * recent.repeated_fraction:.1f} %")
    if stats.status:
        parts.append(f"waiting: {stats.status}")
    if stats.settings is not None:
        parts.append(f"{stats.settings.mix} {stats.settings.size}")
    else:
        parts.append("loading the model")
    return " · ".join(parts)


def _engine(fps: float, device_ms: Summary) -> str:
    time = f" {device_ms.p50:.1f} ms" if device_ms.count else ""
    return f"engine {fps:.1f} fps{time}"


def _latency(latency_ms: Summary) -> str:
    return f"latency p50 {latency_ms.p50:.0f} p95 {latency_ms.p95:.0f} ms"
