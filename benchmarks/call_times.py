"""Several ways to do the same call, timed in turns: on a GPU as graphs of many calls whose weights come from memory."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from instantvision.pipeline.graphs import capture
from layer_cases import Way

# Half again an H100's second-level cache.
ROTATED_BYTES = 75 * 2**20
CALLS_MIN, CALLS_MAX = 16, 64
REPEATS = 30


def rotated(way: Way) -> list[Way]:
    """The same call with copies of its weights, so many that no cache holds them all."""
    return way.rotated(min(CALLS_MAX, max(CALLS_MIN, math.ceil(ROTATED_BYTES / max(way.weight_bytes, 1)))))


def turns(ways: Mapping[str, Sequence[Callable[[], object]]], device: torch.device) -> dict[str, list[float]]:
    """Times of a call, in us, by the name of its way.

    Args:
        ways: each the same call several times, of `rotated`.
        device: that they run on; on a CPU, where the figures mean nothing, the first of each is called twice.
    """
    return _turns_on_gpu(ways) if device.type == "cuda" else _turns_on_cpu(ways)


def _turns_on_gpu(ways: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, list[float]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graphs = {name: capture(partial(_run, calls), stream) for name, calls in ways.items()}
    order = [name for _ in range(REPEATS) for name in ways]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(order) + 1)]
    with torch.cuda.stream(stream):
        for name in ways:
            graphs[name].replay()
        marks[0].record()
        # All at once: the GPU never waits for the host between two marks.
        for name, mark in zip(order, marks[1:], strict=True):
            graphs[name].replay()
            mark.record()
    stream.synchronize()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name, (before, after) in zip(order, itertools.pairwise(marks), strict=True):
        times[name].append(before.elapsed_time(after) * 1e3 / len(ways[name]))
    return times


def _turns_on_cpu(ways: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name in [*ways] * 2:
        started_s = time.perf_counter()
        ways[name][0]()
        times[name].append((time.perf_counter() - started_s) * 1e6)
    return times


def _run(calls: Sequence[Callable[[], object]]) -> None:
    # Each result's memory serves the next call again, as a frame's own does.
    for call in calls:
        call()
