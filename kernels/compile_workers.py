"""Compiles kernels in processes of their own, which leave them in Triton's cache on disk for this process to find.

Triton's front end is Python: threads that compile take turns at the interpreter's lock, and keep a live loop from it.
A server imports the kernels once, never touches CUDA, and forks for each kernel; it ends when this process does:

    this process ── requests ──►  server ── fork ──► kernel ──► Triton's cache
                 ◄─ exit codes ──        └─ fork ──► kernel ──►

Nothing depends on it: whatever it has not compiled, and everything where there is no fork (Windows), is compiled by
whoever launches it. Imports neither torch nor Triton until a function here is called.
"""

import contextlib
import gc
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

# The server imports torch first, which takes as long as these do in this process.
WORTH_A_SERVER = 6
# A kernel takes a second or two, the server's imports some: who answers nothing for so long has failed.
PATIENCE_S = 60.0
# Below this process, its live loop, and OBS.
NICENESS = 10
STAMP_FILE = "instantvision-compiled"
# Of NVIDIA's driver on Linux, and on Windows' Linux.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")


class Request(NamedTuple):
    """A kernel to compile, as Triton describes it; `target` are the arguments of its GPUTarget."""

    module: str
    function: str
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    target: tuple[str, int, int]

    def source(self) -> Any:
        """What Triton compiles."""
        from triton.compiler import ASTSource

        kernel = getattr(importlib.import_module(self.module), self.function)
        return ASTSource(kernel, self.signature, self.constants, self.attributes)

    def gpu(self) -> Any:
        """What for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*self.target)


class Server:
    """The process that forks."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        program = f"from {__name__} import serve; serve({theirs.fileno()})"
        with theirs:
            # In a session of its own: Ctrl-C is for this process alone, and the server's group can be ended at once.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # Without a GPU, and without threads, which a fork would not have.
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            )

    def compile(self, requests: Sequence[Request]) -> list[int]:
        """Wait until all are compiled; how each process ended, in any order, 0 for fine.

        Raises:
            OSError, EOFError: the server failed.
        """
        self._connection.send(requests)
        return [self._answer() for _ in requests]

    def _answer(self) -> int:
        if not self._connection.poll(PATIENCE_S):
            raise TimeoutError(f"compiling took more than {PATIENCE_S:g} s")
        return int(self._connection.recv())

    def stop(self) -> None:
        """End the server and whatever it is compiling."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


_server: Server | None = None
# Also of Triton's hook, of which there is one.
_lock = threading.Lock()


def prepare() -> None:
    """Start the server beside the rest of a program's start, if kernels will probably have to be compiled."""
    global _server
    if sys.platform != "linux" or not any(map(os.path.exists, DRIVER_FILES)) or not _outdated(_stamp()):
        return
    with _lock:
        _server = _server or Server()


def fill_cache(warm_ups: Iterable[Callable[[], object]], *, sparing: bool) -> None:
    """Have kernels compiled that are neither in this process nor in Triton's cache.

    Args:
        warm_ups: ask Triton for a kernel each, by its `warmup`.
        sparing: spare this process even the compiling of a few, for which starting a server takes longer.
    """
    with _lock:
        try:
            missing = [each for each in _requests(warm_ups) if not _in_cache(each)]
            if missing and sys.platform == "linux":
                _compile_all(missing, sparing)
            _stamp().touch()
        # Triton's inside changes, and processes fail in many ways; this one then compiles what is missing.
        except Exception as error:  # noqa: BLE001
            log.info(
                "kernels are compiled in the program's own process (%s: %s)", type(error).__name__, error
            )
        finally:
            _stop()


def _compile_all(missing: Sequence[Request], sparing: bool) -> None:
    global _server
    if _server is None:
        if len(missing) < WORTH_A_SERVER and not sparing:
            return
        _server = Server()
    # Kernels of many arguments take longest: begun first, none of them is what all wait for in the end.
    ordered = sorted(missing, key=lambda request: len(request.signature), reverse=True)
    failed = sum(code != 0 for code in _server.compile(ordered))
    log.info("%d kernels were compiled beside the program, %d failed", len(missing), failed)


def _stop() -> None:
    """The server's memory is not worth keeping: after a start few kernels are ever compiled."""
    global _server
    if _server is not None:
        _server.stop()
    _server = None


def _requests(warm_ups: Iterable[Callable[[], object]]) -> list[Request]:
    """What Triton would compile for these, without doing it."""
    from triton import knobs
    from triton.runtime import driver

    found: dict[str, Request] = {}
    asking = threading.get_ident()
    target = driver.active.get_current_target()

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002
        if threading.get_ident() != asking:
            return False
        described = compile["specialization_data"]
        values = json.loads(described)["options"].items()
        # JSON has no tuples, and Triton's key tells them from lists.
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in values}
        found[described] = Request(
            fn.module,
            fn.name,
            compile["signature"],
            compile["constants"],
            compile["configs"][0],
            options,
            (target.backend, target.arch, target.warp_size),
        )
        return True

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        for warm_up in warm_ups:
            warm_up()
    finally:
        knobs.runtime.jit_cache_hook = before
    return list(found.values())


def _in_cache(request: Request) -> bool:
    """Whether Triton's compiler would find this kernel on disk: it looks for the same file under the same key."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_key, get_cache_manager

    source, backend = request.source(), make_backend(request.gpu())
    options = backend.parse_options(dict(request.options))
    key = get_cache_key(source, backend, options, env_vars=get_cache_invalidating_env_vars())
    file = f"{source.name[:150]}.json"
    return file in (get_cache_manager(hashlib.sha256(key.encode()).hexdigest()).get_group(file) or {})


def _stamp() -> Path:
    """A file in Triton's cache, whose folder Triton finds like this, touched when kernels are complete."""
    folder = os.environ.get("TRITON_CACHE_DIR")
    home = os.environ.get("TRITON_HOME") or Path.home()
    return Path(folder or Path(home, ".triton", "cache"), STAMP_FILE)


def _outdated(stamp: Path) -> bool:
    """As `make` would say: whether the kernels or Triton are newer than their stamp. A guess; it costs no import."""
    triton = importlib.util.find_spec("triton")
    sources = [*Path(__file__).parent.glob("*.py"), Path(triton.origin)] if triton and triton.origin else []
    return not stamp.exists() or any(each.stat().st_mtime > stamp.stat().st_mtime for each in sources)


def serve(descriptor: int) -> None:
    """The server's program: fork for each request that comes over a connection, until that is closed."""
    os.nice(NICENESS)
    from triton.runtime.cache import triton_key

    from instantvision import kernels

    with kernels.forced("triton"):
        kernels.choose("cuda")
    # Triton hashes its 400 MB once a process: all forks have that from here.
    triton_key()
    # A collection in a fork would touch, and so copy, all memory that it shares.
    gc.freeze()
    try:
        _fork_for_each(Connection(descriptor))
    except (EOFError, OSError):
        # The whole group, with compilers that forks have started.
        os.killpg(0, signal.SIGKILL)


def _fork_for_each(connection: Connection) -> None:
    context = get_context("fork")
    waiting: deque[Request] = deque()
    running: dict[Any, Any] = {}
    while True:
        while waiting and len(running) < (os.cpu_count() or 1):
            process = context.Process(target=_compile, args=(waiting.popleft(),))
            process.start()
            running[process.sentinel] = process
        for ready in wait([connection, *running]):
            if ready is connection:
                waiting.extend(connection.recv())
            else:
                process = running.pop(ready)
                process.join()
                connection.send(process.exitcode)


def _compile(request: Request) -> None:
    """In a fork: leave a kernel in Triton's cache, and what launches it, for which Triton 3.6 calls a C compiler."""
    import triton
    from triton.backends.nvidia import driver

    source = request.source()
    compiled = triton.compile(source, target=request.gpu(), options=request.options)
    if hasattr(driver, "make_launcher"):
        driver.CudaLauncher(source, compiled.metadata)
