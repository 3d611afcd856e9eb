"""Kernels compiled by other processes are found by this one; who fails, or is not needed, costs nothing. No GPU."""

import importlib.util
import itertools
import logging
import os
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if importlib.util.find_spec("triton") is None or sys.platform != "linux":
    pytest.skip("needs triton and fork", allow_module_level=True)

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from instantvision.kernels import compile_workers, launch, step_ops, temporal_ops
from instantvision.kernels.compile_workers import Server, fill_cache, prepare

# Kernels keep what is compiled by device: each test has a new one.
DEVICES = itertools.count(1000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of Triton's, and no server."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield folder
    compile_workers._stop()


@pytest.fixture
def warm_ups(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Of two kernels, for an H100 that is not there."""
    device = next(DEVICES)
    absent = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: device,
        get_current_stream=lambda _device: 0,
    )
    monkeypatch.setattr(driver, "_active", absent)
    latents = torch.empty(1, 32, 8, 8, dtype=torch.bfloat16, device="meta")

    def two_kernels() -> None:
        temporal_ops.blend(latents, latents, latents[:, :1].float())
        step_ops.denoise_step(latents, latents, torch.empty(4, device="meta"))

    return [partial(launch._warm_up, *entry) for entry in launch.noted(two_kernels)]


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each kernel that this process asked Triton for was in the cache."""
    found: list[bool] = []
    monkeypatch.setattr(
        knobs.compilation, "listener", lambda *, cache_hit, **_: found.append(cache_hit), raising=False
    )
    return found


def test_launches_are_noted_once_and_without_their_memory():
    made: list[weakref.ref] = []

    def twice() -> None:
        for _ in range(2):
            latents = torch.empty(1, 32, 8, 8)
            made.append(weakref.ref(latents))
            step_ops.denoise_step(latents, latents, torch.empty(4))

    assert len(launch.noted(twice)) == 1
    assert not any(each() is not None for each in made)


def refuse() -> Server:
    raise AssertionError("a server is started")


@pytest.mark.slow
def test_this_process_finds_what_others_compiled(warm_ups, hits, monkeypatch):
    fill_cache(warm_ups, sparing=True)
    # The second time nothing is missing.
    monkeypatch.setattr(compile_workers, "Server", refuse)
    fill_cache(warm_ups, sparing=True)
    assert not hits
    for warm_up in warm_ups:
        warm_up()
    assert hits == [True, True]


def test_a_server_that_fails_leaves_the_kernels_to_this_process(warm_ups, hits, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with caplog.at_level(logging.INFO):
        fill_cache(warm_ups, sparing=True)
    assert "in the program's own process" in caplog.text
    warm_ups[0]()
    assert hits == [False]


def test_few_kernels_are_not_worth_a_server(warm_ups, monkeypatch, caplog):
    monkeypatch.setattr(compile_workers, "Server", refuse)
    with caplog.at_level(logging.INFO):
        fill_cache(warm_ups, sparing=False)
    assert not caplog.records


def test_other_threads_compile_as_ever_meanwhile(warm_ups):
    answers: list[object] = []

    def elsewhere() -> None:
        thread = threading.Thread(
            target=lambda: answers.append(knobs.runtime.jit_cache_hook(fn=None, compile={}))
        )
        thread.start()
        thread.join()

    assert len(compile_workers._requests([*warm_ups, elsewhere])) == len(warm_ups)
    assert answers == [False]
    assert knobs.runtime.jit_cache_hook is None


def test_a_server_ends_with_the_process_that_started_it():
    server = Server()
    # As the end of this process would.
    server._connection.close()
    assert server._process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.parametrize(("age_s", "needed"), [(None, True), (-1, True), (1, False)])
def test_a_server_is_prepared_when_kernels_are_newer_than_their_stamp(age_s, needed, cache, monkeypatch):
    monkeypatch.setattr(compile_workers, "DRIVER_FILES", ("/",))
    started: list[Server] = []
    stub = SimpleNamespace(stop=lambda: None)
    monkeypatch.setattr(compile_workers, "Server", lambda: started.append(stub) or stub)
    if age_s is not None:
        newest = max(path.stat().st_mtime for path in Path(compile_workers.__file__).parent.glob("*.py"))
        triton = importlib.util.find_spec("triton").origin
        newest = max(newest, Path(triton).stat().st_mtime)
        cache.mkdir()
        compile_workers._stamp().touch()
        os.utime(compile_workers._stamp(), (newest + age_s, newest + age_s))
    prepare()
    prepare()
    assert len(started) == needed


def test_no_server_is_prepared_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(compile_workers, "DRIVER_FILES", ("/nowhere",))
    monkeypatch.setattr(compile_workers, "Server", refuse)
    prepare()


def test_a_complete_cache_is_stamped(warm_ups, cache, monkeypatch):
    for warm_up in warm_ups:
        warm_up()
    monkeypatch.setattr(compile_workers, "Server", refuse)
    fill_cache(warm_ups, sparing=True)
    assert (cache / compile_workers.STAMP_FILE).exists()


@pytest.mark.gpu
def test_launchers_are_built_with_their_kernels(warm_ups):
    server = Server()
    try:
        assert server.compile(compile_workers._requests(warm_ups)) == [0, 0]
    finally:
        server.stop()
