"""A live run as the command line starts it: parts put together, Ctrl-C turned into a clean end, figures written.

The threads and the loop are those of stages.py.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from instantvision.integrations.base import Sink
from instantvision.integrations.factory import parse_sink, parse_source
from instantvision.pipeline.config import LiveConfig, Settings
from instantvision.pipeline.control import FADE_S, Control, Show
from instantvision.pipeline.outputs import check_output, write_whole
from instantvision.pipeline.preview import Preview
from instantvision.pipeline.sizes import RUN_SIDE
from instantvision.plugin.front_ends import FrontEnds, open_front_ends

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
        front_ends: what may change the run from outside.
        fade_s: duration of cross-fades.
        panic: what the panic button shows.
    """

    source: str
    sink: str
    settings: Settings
    size_given: bool
    config: LiveConfig
    loop: bool = True
    stats_json: Path | None = None
    front_ends: FrontEnds = field(default_factory=FrontEnds)
    fade_s: float = FADE_S
    panic: Show = Show.SLATE


@dataclass(frozen=True, kw_only=True)
class LiveEnd:
    """How a run ended: its figures, and whether Ctrl-C ended it."""

    stats: "LiveStats"
    interrupted: bool


def live(job: LiveJob, on_stats: Callable[["LiveStats"], None], announce: Callable[[str], None]) -> LiveEnd:
    """Run until the source ends, the duration is over, or Ctrl-C.

    Args:
        job: what to run.
        on_stats: told the figures about once a second.
        announce: told the dock's address.

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
    control, preview = Control(settings, fade_s=job.fade_s, panic=job.panic), Preview()
    parts = LiveParts(
        source=parse_source(job.source, size=settings.size, fps=job.config.fps, loop=job.loop),
        sink=sink,
        make_engine=lambda: Engine(model, settings),
        control=control,
        preview=preview,
        on_stats=on_stats,
    )
    stop = threading.Event()
    front_ends = open_front_ends(job.front_ends, control, preview, announce)
    with _interrupts(stop) as interrupted, front_ends as told:

        def tell(stats: "LiveStats") -> None:
            on_stats(stats)
            told(stats)

        stats = run_live(replace(parts, on_stats=tell), settings.size, job.config, stop)
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
