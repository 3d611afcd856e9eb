"""A live run as the command line starts it: parts put together, Ctrl-C turned into a clean end, figures written.

The threads and the loop are those of stages.py.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from instantvision.integrations.base import Sink
from instantvision.integrations.factory import parse_sink, parse_source
from instantvision.pipeline.config import LiveConfig, Settings
from instantvision.pipeline.frames import Latest
from instantvision.pipeline.outputs import check_output, write_whole
from instantvision.pipeline.sizes import RUN_SIDE

if TYPE_CHECKING:
    from instantvision.pipeline.meter import LiveStats


@dataclass(frozen=True, kw_only=True)
class LiveJob:
    """What to run.

    Args:
        source, sink: as the user names them.
        settings: at the start.
        size_given: False takes RUN_SIDE instead of the size in `settings`.
        config: pace and end.
        loop: begin a file again at its end.
        stats_json: file for the figures of the run, or None.
    """

    source: str
    sink: str
    settings: Settings
    size_given: bool
    config: LiveConfig
    loop: bool = True
    stats_json: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LiveEnd:
    """How a run ended: its figures, and whether Ctrl-C ended it."""

    stats: "LiveStats"
    interrupted: bool


def live(job: LiveJob, on_stats: Callable[["LiveStats"], None]) -> LiveEnd:
    """Run until the source ends, the duration is over, or Ctrl-C.

    Raises:
        ConfigError: the source or sink is not of a known form.
        SourceError, SinkError, WeightsError, EngineError: of the part that failed.
    """
    sink = _checked_sink(job)
    # Built for its check alone: the size is known later, and a malformed source is refused before torch is imported.
    parse_source(job.source)

    from instantvision.pipeline.engine import Engine
    from instantvision.pipeline.stages import LiveParts, run_live
    from instantvision.pipeline.start import load_mini

    # Loaded here and not in the engine's thread: a damaged file is found before anything is opened.
    model, settings = load_mini(job.settings, None if job.size_given else RUN_SIDE.square_on)
    parts = LiveParts(
        source=parse_source(job.source, size=settings.size, fps=job.config.fps, loop=job.loop),
        sink=sink,
        make_engine=lambda: Engine(model, settings),
        settings_box=Latest(),
        on_stats=on_stats,
    )
    stop = threading.Event()
    with _interrupts(stop) as interrupted:
        stats = run_live(parts, settings.size, job.config, stop)
    if job.stats_json is not None:
        write_whole(job.stats_json, (json.dumps(stats.to_json(), indent=2) + "\n").encode())
    return LiveEnd(stats=stats, interrupted=interrupted.is_set())


def _checked_sink(job: LiveJob) -> Sink:
    if job.stats_json is not None:
        check_output(job.stats_json)
    sink = parse_sink(job.sink)
    kind, _, path = job.sink.partition(":")
    if kind == "file":
        check_output(Path(path))
    return sink


@contextmanager
def _interrupts(stop: threading.Event) -> Iterator[threading.Event]:
    """While inside, Ctrl-C and a polite kill set `stop` and the event given, instead of raising anywhere."""
    interrupted = threading.Event()

    def end(number: int, _frame: FrameType | None) -> None:
        # Once: whoever presses Ctrl-C again, because the end hangs, is obeyed by the system itself.
        signal.signal(number, signal.SIG_DFL)
        interrupted.set()
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
