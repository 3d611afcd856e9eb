"""How kernels are launched: tiles through the tensor memory accelerator, starts that overlap, compiling side by side.

Programmatic dependent launch sets a kernel up while the one before it drains; each kernel waits with gdc_wait before it
touches what others wrote. Descriptors and overlap need compute capability 9; elsewhere plain pointers and plain
launches are used. Needs triton.
"""

import functools
import math
import os
import threading
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.cache import triton_key
from triton.runtime.jit import MockTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from instantvision.kernels import compile_workers

Grid: TypeAlias = tuple[int, ...]

Launch: TypeAlias = tuple[Any, Grid, tuple[Any, ...], dict[str, Any]]


class _Notes(threading.local):
    """Launches of different machine code, of which this thread takes note instead of carrying them out."""

    kept: dict[Hashable, Launch] | None = None


_notes = _Notes()

# Whether this process has compiled what it starts with: others may be waiting for the interpreter's lock since.
_started = False


def launch(kernel: Any, grid: Grid, *args: Any, **meta: Any) -> None:
    """Launch a kernel, or only take note of it within `compile_kernels`."""
    if _notes.kept is None:
        kernel[grid](*args, **meta)
        return
    signature = _signature(kernel, grid, args, meta)
    if signature not in _notes.kept:
        # Tensors themselves would be all that a frame ever computes, at once.
        _notes.kept[signature] = kernel, grid, tuple(map(_without_memory, args)), meta


def taking_notes() -> bool:
    """Whether this thread's launches are only noted, within `compile_kernels`."""
    return _notes.kept is not None


def compile_kernels(call: Callable[[], object]) -> None:
    """Compile all kernels that a call launches, several at a time; the call's result is not computed.

    A frame has some 50 kernels of a second each: one after the other they would be most of a cold start.
    The first time whatever worker processes leave over is compiled in as many threads; later ones would hold up
    the frames that are on their way.

    Args:
        call: allocates and launches through `launch` only; whatever else it computes is computed from garbage.
    """
    global _started
    warm_ups = [partial(_warm_up, *entry) for entry in noted(call)]
    compile_workers.fill_cache(warm_ups, sparing=_started)
    device, threads = torch.cuda.current_device(), 1 if _started else os.cpu_count()
    with ThreadPoolExecutor(threads, initializer=torch.cuda.set_device, initargs=(device,)) as pool:
        for done in [pool.submit(_build, each) for each in warm_ups]:
            done.result()
    _started = True


def noted(call: Callable[[], object]) -> Collection[Launch]:
    """What a call would launch, without carrying it out; of launches that share their machine code the first."""
    kept: dict[Hashable, Launch] = {}
    _notes.kept = kept
    try:
        call()
    finally:
        _notes.kept = None
    return kept.values()


def wake() -> None:
    """Let Triton do what it does once a process: hash itself, all 400 MB, and ask its assembler for a version.

    Most of that is no Python, so that a thread does it beside other work.
    """
    make_backend(driver.active.get_current_target()).hash()
    triton_key()


def _warm_up(kernel: Any, grid: Grid, args: tuple[Any, ...], meta: dict[str, Any]) -> Any:
    return kernel.warmup(*args, grid=grid, **meta)


def _build(warm_up: Callable[[], Any]) -> None:
    # Asking for the launcher builds it, for which Triton calls a C compiler.
    _ = warm_up().run


@functools.cache
def hopper(device: torch.device) -> bool:
    """Whether a device has the tensor memory accelerator and programmatic dependent launch."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def uses_descriptors(tensor: Tensor) -> bool:
    """Whether tiles of this tensor's device are fetched through descriptors; the interpreter can, too."""
    return tensor.device.type == "cpu" or hopper(tensor.device)


def shared_memory(tensor: Tensor) -> int:
    """Bytes of shared memory that a program may have on a tensor's device; a CPU passes for a Hopper GPU."""
    return _shared_memory(tensor.device)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    # torch's type hints leave this one out.
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def fit_pipeline(rows: int, columns: int, depth: int, stages: int, shared: int) -> tuple[int, int]:
    """Depth of a step and pipeline stages of a matrix product whose tiles fit into shared memory.

    Args:
        rows, columns: of the result's tile, in 16-bit numbers.
        depth, stages: as measured to be best where memory suffices.
        shared: bytes that a program may have; some are left for sums across warps.
    """
    while stages * (rows + columns) * depth * 2 > shared - 8192:
        if depth > 64 or stages <= 2:
            depth //= 2
        else:
            stages -= 1
    return depth, stages


class Blocks(NamedTuple):
    """Tile of the result, depth of a step, warps and pipeline stages of a program."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def fitted(self, shared: int, value_bytes: int = 2) -> "Blocks":
        """The same tile within `shared` bytes of shared memory."""
        # Memory for twice as many numbers of half the size.
        shared = shared * 2 // value_bytes
        depth, stages = fit_pipeline(self.rows, self.columns, self.depth, self.stages, shared)
        return self._replace(depth=depth, stages=stages)


def step_depth(channels: int) -> int:
    """Depth of a matrix product's step, which divides its channels: the largest of those that are fast."""
    return next(depth for depth in (64, 32, 16) if channels % depth == 0)


def matrix(tensor: Tensor, block: tuple[int, ...], descriptor: bool) -> Any:
    """A contiguous matrix, or several, as a kernel takes it: a descriptor of its tiles, or the tensor."""
    return TensorDescriptor.from_tensor(tensor, list(block)) if descriptor else tensor


def overlapped(tensor: Tensor) -> dict[str, Any]:
    """Launch options for a kernel with a parameter USE_PDL that waits for the kernel before it."""
    overlap = hopper(tensor.device)
    return {"USE_PDL": overlap, "launch_pdl": overlap}


@triton.jit
def prefetch(p_weight, values, i_program, programs, PREFETCH: tl.constexpr, THREADS: tl.constexpr):
    """Ask for a program's share of a weight's cache lines, of 128 bytes each; waits for nothing.

    Weights come from memory at every step: they are fetched into the cache while the kernel before ends.
    """
    in_line: tl.constexpr = 1024 // p_weight.dtype.element_ty.primitive_bitwidth
    for i in tl.static_range(PREFETCH):
        i_line = (i * programs + i_program) * THREADS + tl.arange(0, THREADS)
        address = (p_weight + tl.minimum(i_line * in_line, values - 1)).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], tl.int32, is_pure=False, pack=1
        )


def prefetches(weight: Tensor, grid: Grid, warps: int) -> int:
    """How many cache lines of 128 bytes each thread of a launch fetches so that all of a weight is; at most 8."""
    threads = math.prod(grid) * warps * 32
    return min(8, -(-weight.numel() * weight.element_size() // (128 * threads)))


def product_options(blocks: Blocks, weight: Tensor, grid: Grid) -> dict[str, Any]:
    """Launch options of a matrix product that prefetches its weight; the tile's rows are its kernel's own affair."""
    return {
        "BLOCK_N": blocks.columns,
        "BLOCK_K": blocks.depth,
        "PREFETCH": prefetches(weight, grid, blocks.warps),
        "THREADS": 32 * blocks.warps,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        **overlapped(weight),
    }


def _signature(kernel: Any, grid: Grid, args: tuple[Any, ...], meta: dict[str, Any]) -> Hashable:
    """Launches of one signature share their machine code, as far as Triton specialises on arguments."""
    del grid
    fixed = [_specialised(arg, parameter) for arg, parameter in zip(args, kernel.params, strict=False)]
    return kernel, tuple(fixed), tuple(sorted(meta.items()))


def _without_memory(arg: Any) -> Any:
    """The same to the compiler."""
    if isinstance(arg, TensorDescriptor):
        return replace(arg, base=MockTensor(arg.base.dtype))
    # One at an odd address is kept: there is no other way to say so.
    return MockTensor(arg.dtype) if isinstance(arg, Tensor) and arg.data_ptr() % 16 == 0 else arg


def _specialised(arg: Any, parameter: Any) -> Hashable:
    if isinstance(arg, TensorDescriptor):
        return arg.base.dtype, tuple(arg.block_shape)
    if isinstance(arg, Tensor):
        return arg.dtype, arg.data_ptr() % 16 == 0
    if isinstance(arg, int) and not parameter.do_not_specialize:
        return arg == 1, arg % 16 == 0
    return type(arg).__name__
