"""Which graphs are recorded, kept and given up: with recordings that only take notes, and on a real GPU."""

import contextlib
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from instantvision.pipeline import cuda_runner
from instantvision.pipeline.config import Mix, Settings, Size
from instantvision.pipeline.cuda_runner import CudaRunner, is_out_of_memory, next_smaller
from instantvision.pipeline.engine import Engine, EngineOptions
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.frame_inputs import frame_inputs

SETTINGS = Settings(size=Size(64, 64), steps=2, temporal="noise")
SIZES = [Size(side, 64) for side in (64, 80, 96, 112, 128)]


class Recordings:
    """Stands in for graphs.RecordedFrame: counts, and runs out of memory when told to."""

    def __init__(self):
        self.made, self.alive, self.fits = [], set(), lambda size, alive: True

    def __call__(self, paint, show, inputs, size, streams, device, numbers):
        if not self.fits(size, self.alive):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.made.append(size)
        return Recording(self, inputs, size)


class Recording:
    def __init__(self, owner, inputs, size):
        self.owner, self.size = owner, size
        self.inputs = {variant: each.clone() for variant, each in inputs.items()}
        owner.alive.add(size)

    def write(self, variant, inputs):
        self.inputs[variant].copy_(inputs)

    def __del__(self):
        self.owner.alive.discard(self.size)


@pytest.fixture
def recordings(monkeypatch):
    recordings = Recordings()
    monkeypatch.setattr(cuda_runner, "RecordedFrame", recordings)
    idle = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    monkeypatch.setattr(cuda_runner, "Streams", lambda device: SimpleNamespace(compute=None, recording=idle))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    return recordings


def at(size):
    return replace(SETTINGS, size=size)


@pytest.mark.parametrize(
    "change", [{"seed": 3}, {"strength": 0.5}, {"mix": Mix.parse("ink")}, {"fit": "letterbox"}]
)
def test_a_changed_look_records_nothing_and_rewrites_the_buffers(recordings, toy_model, change):
    runner = CudaRunner(toy_model, SETTINGS, EngineOptions())
    inputs = runner._current.inputs
    before = {variant: each.clone() for variant, each in inputs.items()}
    runner.use(replace(SETTINGS, **change))
    assert recordings.made == [SETTINGS.size]
    assert runner._current.inputs is inputs
    for variant in before:
        pairs = zip(inputs[variant]._tensors(), before[variant]._tensors(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs) == ("fit" not in change)


@pytest.mark.parametrize(
    "change", [{"size": Size(80, 64)}, {"steps": 3}, {"mirror": True}, {"strength": 0.0}]
)
def test_a_changed_frame_records_once(recordings, toy_model, change):
    runner = CudaRunner(toy_model, SETTINGS, EngineOptions())
    for _ in range(2):
        runner.use(replace(SETTINGS, **change))
        runner.use(SETTINGS)
    assert len(recordings.made) == 2


def test_there_is_one_graph_for_each_plan_and_none_is_missing(recordings, layered_toy_model):
    settings = replace(SETTINGS, steps=8, temporal="full", steps_ceiling=4)
    runner = CudaRunner(layered_toy_model, settings, EngineOptions())
    turns = (None, 0, 1, 2, 3)
    assert set(runner._current.inputs) == {(8, False, None), *((4, True, whole) for whole in turns)}
    assert {inputs.whole for inputs in runner._current.inputs.values()} == set(turns)
    runner.use(replace(settings, temporal="warm"))
    assert set(runner._current.inputs) == {(8, False, None), *((steps, True, None) for steps in (4, 3, 2))}


def test_a_fade_records_nothing_and_takes_another_look(recordings, toy_model):
    settings = replace(SETTINGS, steps=8, temporal="warm")
    runner = CudaRunner(toy_model, settings, EngineOptions())
    desk = runner._desk
    runner.use(replace(settings, mix=Mix.parse("oil:0.9,ink:0.1")))
    assert (runner._desk, recordings.made) == (desk, [SETTINGS.size])
    assert str(runner._settings.mix) == "oil:0.9,ink:0.1"
    # Nothing in common is a cut, which no memory survives.
    runner.use(replace(settings, mix=Mix.parse("comic")))
    assert runner._desk is not desk


@torch.inference_mode()
def test_frames_on_their_way_go_on_with_another_look_and_not_after_another_size(recordings, toy_model):
    first = replace(SETTINGS, pipeline="throughput", temporal="noise")
    runner = CudaRunner(toy_model, first, EngineOptions())
    belt, inputs = runner._belt, runner._desk.course.full
    static = next(iter(runner._current.inputs.values()))
    assert [belt.enter(inputs, static) for _ in range(3)] == [None, 1, 1]
    belt.latents.fill_(torch.nan)
    runner.use(replace(first, seed=3))
    assert belt is runner._belt
    assert belt.enter(runner._desk.course.full, static) == 1
    runner.use(replace(first, size=Size(80, 64)))
    assert belt is not runner._belt
    runner.use(first)
    assert belt is runner._belt
    assert belt.enter(inputs, static) is None
    assert not belt.latents.any()
    runner.use(SETTINGS)
    assert runner._belt is None


def test_the_graphs_used_last_are_kept(recordings, toy_model):
    runner = CudaRunner(toy_model, at(SIZES[0]), EngineOptions(graphs_kept=2))
    for size in (SIZES[1], SIZES[2], SIZES[0], SIZES[3]):
        runner.use(at(size))
    assert recordings.alive == {SIZES[0], SIZES[2], SIZES[3]}


def test_full_memory_gives_up_other_sizes_before_it_fails(recordings, toy_model):
    runner = CudaRunner(toy_model, at(SIZES[0]), EngineOptions(graphs_kept=3))
    runner.use(at(SIZES[1]))
    recordings.fits = lambda size, alive: len(alive) < 2
    runner.use(at(SIZES[2]))
    assert recordings.alive == {SIZES[1], SIZES[2]}


def test_a_size_that_does_not_fit_is_named_with_the_next_smaller(recordings, toy_model):
    runner = CudaRunner(toy_model, at(SIZES[0]), EngineOptions())
    recordings.fits = lambda size, alive: False
    with pytest.raises(
        EngineError, match="GPU has too little free memory for 1024x1024: pass --size 768x768"
    ):
        runner.use(at(Size(1024, 1024)))
    # What ran before goes on.
    assert runner._current.size == SIZES[0]
    assert runner._settings.size == SIZES[0]


def test_another_error_is_not_taken_for_full_memory(recordings, toy_model, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("misaligned address")

    monkeypatch.setattr(cuda_runner, "RecordedFrame", broken)
    with pytest.raises(RuntimeError, match="misaligned"):
        CudaRunner(toy_model, SETTINGS, EngineOptions())


@pytest.fixture
def held(recordings, monkeypatch):
    """Recordings after the first wait until this event is set."""
    go = threading.Event()

    def recorded(*arguments):
        if recordings.made:
            assert go.wait(10)
        return recordings(*arguments)

    monkeypatch.setattr(cuda_runner, "RecordedFrame", recorded)
    return go


def ready(runner):
    runner._wanted.recorded.result(10)
    runner._adopt()


def test_the_old_size_serves_while_a_new_one_is_recorded(recordings, toy_model, held):
    runner = CudaRunner(toy_model, at(SIZES[0]), EngineOptions(in_background=True))
    runner.use(at(SIZES[1]))
    runner._adopt()
    assert runner._current.size == runner._settings.size == SIZES[0]
    # What changes meanwhile comes with the new size.
    runner.use(replace(at(SIZES[1]), seed=5))
    held.set()
    ready(runner)
    assert runner._current.size == SIZES[1]
    assert runner._settings.seed == 5
    expected = frame_inputs(toy_model, replace(at(SIZES[1]), seed=5)).noise
    assert all(torch.equal(inputs.noise, expected) for inputs in runner._current.inputs.values())
    assert recordings.made == [SIZES[0], SIZES[1]]
    runner.close()


def test_the_size_wanted_last_wins(recordings, toy_model, held):
    runner = CudaRunner(toy_model, at(SIZES[0]), EngineOptions(in_background=True))
    runner.use(at(SIZES[1]))
    runner.use(at(SIZES[2]))
    held.set()
    ready(runner)
    assert runner._current.size == SIZES[2]
    runner.use(at(SIZES[3]))
    runner.use(at(SIZES[0]))
    assert runner._current.size == SIZES[0]
    assert runner._wanted is None
    runner.close()


def test_a_size_that_does_not_fit_leaves_the_old_one(recordings, toy_model, caplog):
    runner = CudaRunner(toy_model, at(SIZES[0]), EngineOptions(in_background=True))
    recordings.fits = lambda size, alive: False
    runner.use(at(Size(1024, 1024)))
    ready(runner)
    assert runner._current.size == SIZES[0]
    assert "too little free memory for 1024x1024: pass --size 768x768" in caplog.text
    runner.close()


def test_closing_gives_up_every_graph(recordings, toy_model):
    runner = CudaRunner(toy_model, SETTINGS, EngineOptions())
    runner.use(at(SIZES[1]))
    runner.close()
    assert recordings.alive == set()


def test_full_memory_is_recognised_behind_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    failed_recording = RuntimeError("capture failed")
    failed_recording.__context__ = torch.OutOfMemoryError("no")
    assert is_out_of_memory(failed_recording)
    assert not is_out_of_memory(RuntimeError("misaligned address"))


def test_next_smaller_sizes_end():
    assert next_smaller(Size(1280, 720)) == Size(960, 528)
    assert next_smaller(Size(64, 80)) == Size(64, 64)
    assert next_smaller(Size(64, 64)) is None


@pytest.mark.gpu
def test_every_size_on_a_gpu(toy_model_on_gpu):
    engine = Engine(toy_model_on_gpu, SETTINGS, EngineOptions(graphs_kept=1))
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    first = engine.stylise(picture)
    for size in (*SIZES, SETTINGS.size):
        engine.update(at(size))
        assert engine.stylise(picture).shape == (size.height, size.width, 3)
    assert np.array_equal(engine.stylise(picture), first)
    engine.close()


@pytest.mark.gpu
def test_sizes_change_in_the_background_on_a_gpu(toy_model_on_gpu):
    engine = Engine(toy_model_on_gpu, SETTINGS, EngineOptions(in_background=True))
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    expected = Engine(toy_model_on_gpu, at(SIZES[1])).stylise(picture)
    engine.update(at(SIZES[1]))
    for _ in range(10_000):
        result = engine.stylise(picture)
        if result.shape[:2] != (64, 64):
            break
    assert np.array_equal(result, expected)
    engine.close()


@pytest.mark.gpu
def test_memory_comes_back_on_a_gpu(toy_model_on_gpu):
    before = torch.cuda.memory_allocated()
    engine = Engine(toy_model_on_gpu, at(Size(2048, 2048)))
    engine.stylise(np.zeros((64, 64, 3), np.uint8))
    taken = torch.cuda.memory_allocated() - before
    engine.close()
    del engine
    # The pixel buffers alone are 72 MiB; a library's workspace for the engine's stream, up to 32 MiB, stays.
    assert taken > 72 * 2**20
    assert torch.cuda.memory_allocated() - before <= 32 * 2**20
