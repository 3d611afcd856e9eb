"""Offline rendering: every frame of a clip or a still picture through the engine, into a new file.

Knows nothing of the command line; progress goes to a callback.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instantvision.integrations.video_reader import ClipFrame, VideoReader
from instantvision.integrations.video_writer import FORMATS, VideoWriter
from instantvision.pipeline import pictures
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.errors import ConfigError, SinkError, SourceError
from instantvision.pipeline.outputs import check_output
from instantvision.pipeline.sizes import RENDER_SIDE, shape_within

if TYPE_CHECKING:
    from instantvision.pipeline.engine import Engine, Pending

Progress = Callable[[int, int | None], None]
"""Called with the frames done so far and how many there will be, None if the clip does not tell."""

# The engine holds two frames: one computes while the other is fetched.
FRAMES_IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True)
class RenderJob:
    """What to render.

    Args:
        source: a video file or a picture.
        output: the file to write, of the same kind; replaced if it exists.
        settings: for every frame; its size counts only without `keep_shape`.
        keep_shape: take the size from the source's shape, at most RENDER_SIDE long.
        max_frames: stop after so many; None renders all.
        fp8: multiply in e4m3 what can be.
    """

    source: Path
    output: Path
    settings: Settings
    keep_shape: bool = True
    max_frames: int | None = None
    fp8: bool = False

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(
                f"max-frames is {self.max_frames}, expected 1 or more: leave it out to render all"
            )


@dataclass(frozen=True, kw_only=True)
class RenderSummary:
    """What was rendered: `seconds` and `fps` are of the work, `clip_fps` is the output's own rate (0: a picture).

    `steps` is what a frame has at most, `mean_steps` what the frames had.
    """

    output: str
    frames: int
    seconds: float
    fps: float
    clip_fps: float
    size: str
    preset: str
    steps: int
    mean_steps: float
    temporal: str
    pipeline: str
    strength: float
    seed: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        frames = f"{self.frames} frames of {self.size}, {self.preset}"
        steps = f"{self.mean_steps:g} steps a frame"
        return f"{self.output}: {frames}, {steps}, {self.fps:g} a second on {self.device}"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What came of a job, as it was measured; `steps` of all frames together."""

    frames: int
    steps: int
    seconds: float
    clip_fps: Fraction
    device: str


def render(
    job: RenderJob,
    on_progress: Progress = lambda done, total: None,
    now_s: Callable[[], float] = time.perf_counter,
) -> RenderSummary:
    """Render a clip or a picture; the output appears under its name only when it is complete.

    Raises:
        SourceError: the source is missing or cannot be decoded.
        SinkError: the output cannot be written.
        WeightsError, EngineError: the model cannot run.
    """
    check_job(job)
    if _is_picture(job.source):
        return _render_picture(job, on_progress, now_s)
    return _render_clip(job, on_progress, now_s)


def check_job(job: RenderJob) -> None:
    """Refuse what cannot work before the model loads.

    Raises:
        SourceError: the source is missing or is a folder.
        SinkError: the output's folder does not exist, its ending is not of the source's kind, or it is the source.
    """
    if not job.source.exists():
        raise SourceError(f"no such file: {job.source}")
    if job.source.is_dir():
        raise SourceError(f"cannot read {job.source}: it is a folder, expected a video or a picture")
    check_output(job.output, pictures.SUFFIXES if _is_picture(job.source) else FORMATS)
    if job.output.exists() and job.output.samefile(job.source):
        raise SinkError(f"output {job.output} is the input itself: name another file")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in pictures.SUFFIXES


def _render_picture(job: RenderJob, on_progress: Progress, now_s: Callable[[], float]) -> RenderSummary:
    from instantvision.pipeline.start import started_engine

    pixels = pictures.read_picture(job.source)
    height, width = pixels.shape[:2]
    with started_engine(job.settings, _size_on(job, width, height), fp8=job.fp8) as (engine, device):
        started_s = now_s()
        still = ClipFrame(pixels=pixels, index=0, pts_s=Fraction(0))
        pending, _ = next(stylise_in_order(engine, [still]))
        pictures.write_picture(job.output, pending.result())
        on_progress(1, 1)
        work = Work(
            frames=1, steps=pending.steps, seconds=now_s() - started_s, clip_fps=Fraction(0), device=device
        )
        return _summary(job, engine.settings, work)


def _render_clip(job: RenderJob, on_progress: Progress, now_s: Callable[[], float]) -> RenderSummary:
    with VideoReader(job.source) as clip:
        # Here and not above: torch takes seconds to import, and a source that is no video is refused before that.
        from instantvision.pipeline.start import started_engine

        with started_engine(job.settings, _size_on(job, clip.width, clip.height), fp8=job.fp8) as (
            engine,
            device,
        ):
            total = _frame_total(clip.frame_count, job.max_frames)
            started_s, done, steps = now_s(), 0, 0
            with VideoWriter(job.output, engine.settings.size, clip.fps, audio_from=job.source) as out:
                for pending, frame in stylise_in_order(engine, itertools.islice(clip, job.max_frames)):
                    out.write(pending.result(), frame.pts_s)
                    done, steps = done + 1, steps + pending.steps
                    on_progress(done, total)
            seconds = now_s() - started_s
            work = Work(frames=done, steps=steps, seconds=seconds, clip_fps=clip.fps, device=device)
            return _summary(job, engine.settings, work)


def _size_on(job: RenderJob, width: int, height: int) -> Callable[[str], Size] | None:
    """The size for a device's type, if it is to follow the source's shape."""
    if not job.keep_shape:
        return None
    return lambda device_type: shape_within(width, height, RENDER_SIDE.on(device_type))


def _frame_total(frame_count: int | None, max_frames: int | None) -> int | None:
    known = [count for count in (frame_count, max_frames) if count is not None]
    return min(known, default=None)


def stylise_in_order(engine: "Engine", frames: Iterable[ClipFrame]) -> Iterator[tuple["Pending", ClipFrame]]:
    """Stylise frames in their order, each finished, keeping the engine busy with the next while one is fetched."""
    entered: deque[ClipFrame] = deque()
    waiting: deque[Pending] = deque()
    for frame in frames:
        entered.append(frame)
        waiting.append(engine.submit(frame.pixels))
        if len(waiting) == FRAMES_IN_FLIGHT:
            yield from _fetch(waiting, entered)
    while entered:
        # With throughput the last ones come out while others, whose result nobody wants, come in behind them.
        if sum(pending.delay is not None for pending in waiting) < len(entered):
            waiting.append(engine.submit(entered[-1].pixels))
        yield from _fetch(waiting, entered)


def _fetch(waiting: "deque[Pending]", entered: deque[ClipFrame]) -> Iterator[tuple["Pending", ClipFrame]]:
    pending = waiting.popleft()
    pending.wait()
    if pending.delay is not None:
        yield pending, entered.popleft()


def _summary(job: RenderJob, settings: Settings, work: Work) -> RenderSummary:
    return RenderSummary(
        output=str(job.output),
        frames=work.frames,
        seconds=round(work.seconds, 3),
        fps=round(work.frames / work.seconds, 2) if work.seconds > 0 else 0.0,
        clip_fps=float(work.clip_fps),
        size=str(settings.size),
        preset=str(settings.mix),
        steps=settings.steps,
        mean_steps=round(work.steps / max(work.frames, 1), 2),
        temporal=settings.temporal,
        pipeline=settings.pipeline,
        strength=settings.strength,
        seed=settings.seed,
        device=work.device,
    )
