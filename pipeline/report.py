"""What a person reads in the terminal besides the results themselves: a bar while waiting, a table of a measurement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from instantvision.pipeline.bench import BenchReport


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with the time left, on stderr; yields a function of the frames done and of all frames, None if unknown.

    It appears with the first frame: an error before that is one line and no more.
    """
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    bar = progress.Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(escape(label), total=None)

    def on_progress(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()


def bench_table(report: "BenchReport") -> str:
    """A measurement as lines of text."""
    machine = report.machine
    whole = {"latency": report.latency_ms, "device": report.device_ms, "period": report.period_ms}
    lines = [
        f"{report.size}, {report.steps} steps, {report.pipeline}, {report.frames} frames of {report.input}",
        f"{machine.device}, torch {machine.torch}, {machine.kernels}",
        f"{'ms':12}{'p50':>9}{'p95':>9}{'p99':>9}",
    ]
    for name, spread in (report.stages_ms | whole).items():
        lines.append(f"{name:12}{spread.median:9.2f}{spread.p95:9.2f}{spread.p99:9.2f}")
    lines.append(f"{report.fps:.1f} frames a second")
    if report.peak_memory_mb is not None:
        lines.append(f"peak memory {report.peak_memory_mb:.0f} MiB")
    if report.joules_per_frame is None:
        lines.append(f"no power, because {report.no_power_because}")
    else:
        lines.append(f"{report.power_w:.0f} W, {report.joules_per_frame:.2f} J a frame")
    return "\n".join(lines)
