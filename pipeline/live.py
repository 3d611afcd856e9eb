"""A live run as the command line starts it: parts put together, Ctrl-C turned into a clean end, figures written.

The threads and the loop are those of stages.py.
"""

import gc
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

from instantvision import kernels
from instantvision.integrations.base import Sink
from instantvision.integrations.factory import parse_sink, parse_source
from instantvision.pipeline import driver
from instantvision.pipeline.config import LiveConfig, Settings
from instantvision.pipeline.control import FADE_S, Control, Show
from instantvision.pipeline.outputs import check_output, write_whole
from instantvision.pipeline.preview import Preview
from instantvision.pipeline.sizes import RUN_SIDE

if TYPE_CHECKING:
    from instantvision.pipeline.meter import LiveStats

OnStats: TypeAlias = Callable[["LiveStats"], None]
Controls: TypeAlias = Callable[[Control, Preview, threading.Event], AbstractContextManager[OnStats]]
"""Opens what changes or ends the run from outside, for as long as it lasts; gives what to tell the figures to."""


@dataclass(frozen=True, kw_only=True)
class LiveJob:
    """What to run.

    Args:
        source, sink: as the user names them.
        settings: at the start.
        size_given: False takes RUN_SIDE instead of the size in `settings`.
        config: pace and end.
        fade_s: duration of cross-fades.
        panic: what the panic button shows.
        loop: begin a file again at its end.
        stats_json: file for the figures of the run, or None.
        fp8: multiply in e4m3 what can be.
    """

    source: str
    sink: str
    settings: Settings
    size_given: bool
    config: LiveConfig
    fade_s: float = FADE_S
    panic: Show = Show.SLATE
    loop: bool = True
    stats_json: Path | None = None
    fp8: bool = False


@dataclass(frozen=True, kw_only=True)
class LiveEnd:
    """How a run ended: its figures, and whether Ctrl-C ended it."""

    stats: "LiveStats"
    interrupted: bool


def no_controls(
    _control: Control, _preview: Preview, _stop: threading.Event
) -> AbstractContextManager[OnStats]:
    """Nothing changes the run from outside."""
    return nullcontext(lambda _stats: None)


def live(job: LiveJob, on_stats: OnStats, controls: Controls = no_controls) -> LiveEnd:
    """Run until the source ends, the duration is over, or Ctrl-C.

    Args:
        job: what to run.
        on_stats: told the figures about once a second.
        controls: opened before the source and closed after the sink.

    Raises:
        ConfigError: the source or sink is not of a known form, or the fade is out of range.
        SourceError, SinkError, WeightsError, EngineError: of the part that failed.
    """
    sink = _checked_sink(job)
    # Like the source below: what is wrong is told before torch is imported. The size is not known yet.
    Control(job.settings, fade_s=job.fade_s, panic=job.panic)
    # Built for its check alone: the size is known later, and a malformed source is refused before torch is imported.
    parse_source(job.source)
    kernels.prepare()
    driver.wake()

    with _nothing_is_garbage():
        from instantvision.pipeline.stages import LiveParts, run_live
        from instantvision.pipeline.start import load_mini, started_live_engine

        # Loaded here and not in the engine's thread: a damaged file is found before anything is opened.
        model, settings = load_mini(job.settings, None if job.size_given else RUN_SIDE.square_on, fp8=job.fp8)
    control, preview = Control(settings, fade_s=job.fade_s, panic=job.panic), Preview()
    stop = threading.Event()
    with _interrupts(stop) as interrupted, controls(control, preview, stop) as tell_controls:

        def tell(stats: "LiveStats") -> None:
            on_stats(stats)
            tell_controls(stats)

        parts = LiveParts(
            source=parse_source(job.source, size=settings.size, fps=job.config.fps, loop=job.loop),
            sink=sink,
            make_engine=lambda: started_live_engine(model, settings),
            control=control,
            on_stats=tell,
            preview=preview,
        )
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
def _nothing_is_garbage() -> Iterator[None]:
    """Do not look for any while torch is imported and the model loaded: that would be a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        # What was made stays to the end: later searches leave it out.
        gc.freeze()
        gc.enable()


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
