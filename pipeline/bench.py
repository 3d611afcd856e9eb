"""How long a frame takes: each stage by itself, and the whole from bytes in host memory to bytes in host memory.

Every figure of the README comes from here. The frames are noise, which no cache and no compression can cheat on.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from instantvision.pipeline.config import Settings
from instantvision.pipeline.engine import Engine
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frame_inputs import Belt, frame_inputs
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.graphs import Streams, capture
from instantvision.pipeline.machine import EnergyCounter, Machine, describe_machine, energy_counter
from instantvision.pipeline.model import LatentModel
from instantvision.pipeline.runner import EngineOptions

# What most webcams give and most streams are made at.
CAMERA = (1280, 720)
# Different pictures, so that nothing stays in a cache from one frame to the next.
PICTURES = 8
WARM_UPS = 3
# The energy counter is renewed about ten times a second: over less than this it says nothing.
ENERGY_MIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Percentiles of durations in ms."""

    median: float
    p95: float
    p99: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Self:
        """The percentiles of at least one duration."""
        median, p95, p99 = np.percentile(times_ms, (50, 95, 99)).tolist()
        return cls(median=median, p95=p95, p99=p99)


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """One measurement.

    Args:
        size, steps, strength, spacing, solver, pipeline: of the frames.
        frames: measured, each of `input` size.
        stages_ms: by name, in order, each measured by itself; on a GPU as CUDA graphs, by the GPU's clock, where their
            sum may differ a little from device_ms. `fit` runs on the CPU. With throughput `denoise` is one evaluation,
            of as many frames as there are steps.
        latency_ms: submit to result, one frame at a time; with throughput, the others on their way included.
        period_ms: from one finished frame to the next with two on their way.
        device_ms: time the device spent on each frame of that second run.
        fps: sustained in that run.
        peak_memory_mb: device memory taken from the driver, in MiB; None on a CPU.
        power_w, joules_per_frame: of the whole GPU in that run; None with the reason in `no_power_because`.
        machine: what it was measured on.
    """

    size: str
    steps: int
    strength: float
    spacing: str
    solver: str
    pipeline: str
    frames: int
    input: str
    stages_ms: dict[str, Spread]
    latency_ms: Spread
    period_ms: Spread
    device_ms: Spread
    fps: float
    peak_memory_mb: float | None
    power_w: float | None
    joules_per_frame: float | None
    no_power_because: str | None
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a run with two frames on their way gave."""

    elapsed_s: float
    period_ms: Spread
    device_ms: Spread
    energy_j: float | None
    no_energy_because: str | None


@dataclass(frozen=True, kw_only=True)
class EngineFigures:
    """What was measured through the engine."""

    latency_ms: Spread
    throughput: Throughput
    peak_memory_mb: float | None


def run(
    model: LatentModel, settings: Settings, frames: int, options: EngineOptions | None = None
) -> BenchReport:
    """Measure a model with these settings.

    Args:
        model: on the device to be measured.
        settings: size, steps and so on.
        frames: for each measurement, at least 2.
        options: of the engine.

    Raises:
        ValueError: fewer than 2 frames.
        UnknownPreset, EngineError: from the engine.
    """
    if frames < 2:
        raise ValueError(f"frames is {frames}, expected at least 2")
    options = options or EngineOptions()
    # A whole frame is measured, not how much of it a clip's stillness saves: that is benchmarks/quality.py.
    settings = replace(settings, temporal="noise")
    pictures = random_pictures(*CAMERA)
    figures = measure_engine(model, settings, pictures, frames, options)
    throughput = figures.throughput
    energy_j = throughput.energy_j
    return BenchReport(
        size=str(settings.size),
        steps=settings.steps if settings.strength else 0,
        strength=settings.strength,
        spacing=settings.spacing,
        solver=settings.solver,
        pipeline=settings.pipeline,
        frames=frames,
        input=f"{CAMERA[0]}x{CAMERA[1]}",
        stages_ms=measure_stages(model, settings, pictures, frames),
        latency_ms=figures.latency_ms,
        period_ms=throughput.period_ms,
        device_ms=throughput.device_ms,
        fps=frames / throughput.elapsed_s,
        peak_memory_mb=figures.peak_memory_mb,
        power_w=None if energy_j is None else energy_j / throughput.elapsed_s,
        joules_per_frame=None if energy_j is None else energy_j / frames,
        no_power_because=throughput.no_energy_because,
        machine=describe_machine(model.device),
    )


def measure_engine(
    model: LatentModel, settings: Settings, pictures: list[Pixels], frames: int, options: EngineOptions
) -> EngineFigures:
    """Latency, throughput, energy and memory of whole frames."""
    gpu = model.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    engine = Engine(model, settings, options)
    try:
        for picture in pictures[:WARM_UPS]:
            engine.stylise(picture)
        latency = measure_latency(engine, pictures, frames)
        with energy_counter(model.device) as counter:
            throughput = measure_throughput(engine, pictures, frames, counter)
    finally:
        engine.close()
    peak_mb = torch.cuda.max_memory_reserved(model.device) / 2**20 if gpu else None
    return EngineFigures(latency_ms=latency, throughput=throughput, peak_memory_mb=peak_mb)


def random_pictures(width: int, height: int) -> list[Pixels]:
    """Pictures of noise, the same at every call."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), np.uint8) for _ in range(PICTURES)]


def measure_latency(engine: Engine, pictures: list[Pixels], frames: int) -> Spread:
    """Time from submit to result, one frame at a time."""
    return Spread.of([_time_ms(partial(engine.stylise, picture)) for picture in _endless(pictures, frames)])


def measure_throughput(
    engine: Engine, pictures: list[Pixels], frames: int, counter: EnergyCounter
) -> Throughput:
    """Frames finished while two are on their way, as in a live run."""
    finished_s, device_ms = [], []
    pending = engine.submit(pictures[0])
    energy_before_j = counter.read_j()
    started_s = time.perf_counter()
    for picture in _endless(pictures, frames):
        following = engine.submit(picture)
        pending.result()
        finished_s.append(time.perf_counter())
        device_ms.append(pending.device_ms or 0.0)
        pending = following
    elapsed_s = finished_s[-1] - started_s
    energy_after_j = counter.read_j()
    pending.result()
    energy_j, reason = energy_used(energy_before_j, energy_after_j, elapsed_s)
    return Throughput(
        elapsed_s=elapsed_s,
        period_ms=Spread.of((np.diff([started_s, *finished_s]) * 1e3).tolist()),
        device_ms=Spread.of(device_ms),
        energy_j=energy_j,
        no_energy_because=counter.reason or reason,
    )


def energy_used(
    before_j: float | None, after_j: float | None, elapsed_s: float
) -> tuple[float | None, str | None]:
    """Joules between two readings of the counter, or None and the reason why that is not known."""
    if before_j is None or after_j is None:
        return None, "the counter gave no value"
    if elapsed_s < ENERGY_MIN_S:
        return None, f"the run took {elapsed_s:.2f} s, expected {ENERGY_MIN_S:g} s: measure more frames"
    return after_j - before_j, None


@torch.inference_mode()
def measure_stages(
    model: LatentModel, settings: Settings, pictures: list[Pixels], frames: int
) -> dict[str, Spread]:
    """Each stage of a frame by itself, with the data it has in a frame."""
    fitted = np.empty((settings.size.height, settings.size.width, 3), np.uint8)
    fits = [
        partial(fit, picture, settings.size, settings.fit, fitted) for picture in _endless(pictures, frames)
    ]
    spreads = {"fit": Spread.of([_time_ms(call) for call in fits])}
    if model.device.type == "cpu":
        for name, call in _stage_calls(FramePass(model), settings, fitted).items():
            spreads[name] = Spread.of([_time_ms(call) for _ in range(frames)])
        return spreads
    stream = Streams(model.device).compute
    with torch.cuda.stream(stream):
        for name, call in _stage_calls(FramePass(model), settings, fitted).items():
            spreads[name] = _gpu_spread(call, stream, frames)
    return spreads


def _stage_calls(
    frame_pass: FramePass, settings: Settings, fitted: Pixels
) -> dict[str, Callable[[], object]]:
    """The stages as functions without arguments, over buffers that stay where they are."""
    gpu = frame_pass.model.device.type == "cuda"
    inputs = frame_inputs(frame_pass.model, settings)
    host_in = torch.from_numpy(fitted).pin_memory() if gpu else torch.from_numpy(fitted)
    host_out = torch.empty_like(host_in, pin_memory=gpu)
    pixels = torch.empty_like(host_in, device=frame_pass.model.device)
    pixels.copy_(host_in)
    folded = frame_pass.unpack(pixels, mirror=settings.mirror)
    source = frame_pass.encode(folded)
    output = frame_pass.decode(source)

    belt = Belt(frame_pass.model, settings, inputs.steps) if inputs.steps else None

    def denoise() -> None:
        if belt and settings.pipeline == "throughput":
            frame_pass.advance(source, inputs, belt)
        else:
            frame_pass.denoise(source, inputs)

    def upload() -> None:
        pixels.copy_(host_in, non_blocking=True)
        frame_pass.unpack(pixels, mirror=settings.mirror)

    def download() -> None:
        host_out.copy_(frame_pass.pack(output), non_blocking=True)

    return {
        "upload": upload,
        "encode": lambda: frame_pass.encode(folded),
        "denoise": denoise,
        "decode": lambda: frame_pass.decode(source),
        "download": download,
    }


def _gpu_spread(call: Callable[[], object], stream: torch.cuda.Stream, frames: int) -> Spread:
    graph = capture(call, stream)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(frames + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    # Everything is queued at once, so the GPU never waits for the host between two marks.
    stream.synchronize()
    return Spread.of([before.elapsed_time(after) for before, after in itertools.pairwise(marks)])


def _endless(pictures: list[Pixels], frames: int) -> Iterator[Pixels]:
    return itertools.islice(itertools.cycle(pictures), frames)


def _time_ms(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1e3
