"""One frame as two CUDA graphs, and the three streams that keep upload, computation and download going at once.

    upload    │ n+1 ───►                       each arrow to the next line is an event; the host waits in one
    compute   │      n ── paint ──►─ show ─►   place only, for a finished frame: asleep while it is painted,
    download  │               n-1 ───►         awake when it arrives

Knows nothing of what a frame's arithmetic is (frame_pass.py) or who wants it (engine.py).
"""

import contextlib
import ctypes
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from instantvision import kernels
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.frame_inputs import FrameInputs
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.runner import IN_FLIGHT_MAX

T = TypeVar("T")

# The first call may still measure algorithms, the second is as all later ones.
WARM_UPS = 2


# Pictures of a size in pinned memory: two on their way, those that slots, the pacer, previews and sinks hold, and some.
PICTURES = 10

# Of waiting for a picture that is painted. Being woken up takes 0.1 to 0.2 ms, which a decoder at work hides.
AWAKE_MAX_MS = 1.0

# A graph's memory pool; torch keeps the type to itself.
Pool: TypeAlias = Any


def capture(call: Callable[[], object], stream: torch.cuda.Stream, pool: Pool = None) -> torch.cuda.CUDAGraph:
    """Record what a function does on the GPU, to be replayed with the same memory.

    Args:
        call: reads and writes tensors that outlive the graph; called a few times before it is recorded.
        stream: not the default one, and nobody else's meanwhile.
        pool: of another graph that never runs at the same time, to share the memory of what lies in between.

    Raises:
        torch.OutOfMemoryError: the GPU's memory does not suffice.
    """
    compile_together([call], stream)
    graph, _ = _record(call, stream, pool)
    return graph


def _record(call: Callable[[], T], stream: torch.cuda.Stream, pool: Pool) -> tuple[torch.cuda.CUDAGraph, T]:
    """See `capture`; the kernels are compiled. With the graph comes what each replay writes."""
    with _measured_convolutions():
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        # Recording must not begin before the warm-up has ended. Not in the frame path.
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": another thread's harmless calls, such as a meter's, must not break the recording.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            written = call()
    return graph, written


def compile_together(calls: Iterable[Callable[[], object]], stream: torch.cuda.Stream) -> None:
    """Compile the kernels of several functions, side by side, of which nothing is computed."""
    with _measured_convolutions(), torch.cuda.stream(stream):
        kernels.choose("cuda").compile_all(lambda: [call() for call in calls])


@contextlib.contextmanager
def _measured_convolutions() -> Iterator[None]:
    """Let cuDNN choose its algorithms by measuring them, which pays off at constant shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Pictures:
    """Pinned memory for finished pictures, which is used again when nobody holds them: none is ever copied.

    A caller who keeps more pictures than a live loop ever does gets ordinary memory for the rest.

    Args:
        shape: of a picture.
        count: of pictures in pinned memory.
        pinned: False on a machine without a GPU, for tests.
    """

    def __init__(self, shape: tuple[int, int, int], count: int = PICTURES, *, pinned: bool = True) -> None:
        # All at once: allocating pinned memory stops the device, which no frame should meet.
        self._free = deque(torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(count))

    def take(self) -> Tensor:
        """Memory for a frame that is launched; hand it to `finished`."""
        return self._free.popleft()

    def finished(self, memory: Tensor) -> Pixels:
        """The picture in a memory that was taken; the caller's own for as long as anything refers to it."""
        # As many as may be on their way stay here.
        if len(self._free) < IN_FLIGHT_MAX:
            picture: Pixels = memory.numpy().copy()
            self._free.append(memory)
            return picture
        # The array, and every view of it, holds on to this object, whose end gives the memory back. A tensor would not
        # do: its arrays hold on to a copy of it.
        holder = (ctypes.c_uint8 * memory.numel()).from_address(memory.data_ptr())
        weakref.finalize(holder, self._free.append, memory).atexit = False
        return np.frombuffer(memoryview(holder), np.uint8).reshape(memory.shape)


class Slot:
    """The buffers and events of one of the frames on their way; `numbers` is how many the frame leaves, 0 for none."""

    def __init__(self, size: Size, device: torch.device, pictures: Pictures, numbers: int = 0) -> None:
        shape = (size.height, size.width, 3)
        self.host_in = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._pictures = pictures
        self.host_out: Tensor | None = None
        self.device_in = torch.empty(shape, dtype=torch.uint8, device=device)
        self.device_out = torch.empty(shape, dtype=torch.uint8, device=device)
        self.host_numbers = torch.zeros(numbers, pin_memory=True)
        self.device_numbers = torch.zeros(numbers, device=device)
        self.uploaded = torch.cuda.Event()
        self.started = torch.cuda.Event(enable_timing=True)
        # Blocking: a thread that sleeps while the frame is painted leaves its core to OBS.
        self.painted, self.computed = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        self.downloaded = torch.cuda.Event()
        self._show_ms = 0.0

    def take_memory(self) -> Tensor:
        """Where the frame that is launched in this slot goes."""
        if self.host_out is None:
            self.host_out = self._pictures.take()
        return self.host_out

    def finish(self) -> tuple[Pixels, float]:
        """Wait for this slot's frame and take it out.

        Raises:
            EngineError: the GPU failed.
        """
        try:
            # The one wait of the frame path: for the finished frame.
            self.painted.synchronize()
            if self._show_ms > AWAKE_MAX_MS:
                self.computed.synchronize()
            self.downloaded.synchronize()
            self._show_ms = self.painted.elapsed_time(self.computed)
            memory, self.host_out = self.take_memory(), None
            return self._pictures.finished(memory), self.started.elapsed_time(self.computed)
        except torch.AcceleratorError as error:
            reason = str(error).splitlines()[0]
            raise EngineError(f"the GPU failed ({reason}): start the program again") from error


class Streams:
    """Where a frame's three parts are queued."""

    def __init__(self, device: torch.device) -> None:
        self.upload, self.compute, self.download = (torch.cuda.Stream(device) for _ in range(3))
        # Of its own, so that frames go on while another size is recorded.
        self.recording = torch.cuda.Stream(device)
        # The model's weights were put there on the default stream.
        self.compute.wait_stream(torch.cuda.default_stream(device))


class Variant(NamedTuple):
    """Which of a size's graphs: how many steps, whether it starts from the frame before, and which step is whole."""

    steps: int
    warm: bool
    whole: int | None = None


class Graphs(NamedTuple):
    """Of one variant: a picture to latents, and these to the picture that is shown."""

    paint: torch.cuda.CUDAGraph
    show: torch.cuda.CUDAGraph


class RecordedFrame:
    """A frame's arithmetic for one size: graphs for each variant, static buffers and slots, which all of them share.

    Args:
        paint: (pixels, inputs, warm) to latents, the arithmetic to record.
        show: (latents, out), likewise.
        inputs: by variant; copied; `write` replaces their values.
        size: of the picture.
        streams: the engine's.
        device: of everything.
        numbers: that `paint` leaves on the device for the host, float32 [N], or None.
    """

    def __init__(
        self,
        paint: Callable[[Tensor, FrameInputs, bool], Tensor],
        show: Callable[[Tensor, Tensor], object],
        inputs: Mapping[Variant, FrameInputs],
        size: Size,
        streams: Streams,
        device: torch.device,
        numbers: Tensor | None = None,
    ) -> None:
        # The graphs use memory that only it holds, such as what a frame leaves behind for the next one.
        self._paint = paint
        self._written = dict(inputs)
        with torch.cuda.stream(streams.recording):
            self.inputs = {variant: each.clone() for variant, each in inputs.items()}
        # Graphs have one fixed input and output: copies on the device, 2 µs at 1024x1024, connect them with the slots.
        self._pixels = torch.zeros((size.height, size.width, 3), dtype=torch.uint8, device=device)
        self._output, self._numbers = torch.empty_like(self._pixels), numbers
        count = 0 if numbers is None else len(numbers)
        pictures = Pictures((size.height, size.width, 3))
        self.slots = tuple(Slot(size, device, pictures, count) for _ in range(IN_FLIGHT_MAX))
        self._streams = streams
        calls = {
            variant: partial(paint, self._pixels, static, variant.warm)
            for variant, static in self.inputs.items()
        }
        # The kernels of all graphs at once: that fills more processors than those of one after another.
        compile_together([partial(self._whole, call, show) for call in calls.values()], streams.recording)
        # One after the other in the same memory: nothing in it outlives a frame.
        self._graphs: dict[Variant, Graphs] = {}
        pool: Pool = None
        for variant, call in calls.items():
            painting, latents = _record(call, streams.recording, pool)
            pool = pool or painting.pool()
            showing, _ = _record(partial(show, latents, self._output), streams.recording, pool)
            self._graphs[variant] = Graphs(painting, showing)

    def _whole(self, paint: Callable[[], Tensor], show: Callable[[Tensor, Tensor], object]) -> None:
        show(paint(), self._output)

    def write(self, variant: Variant, inputs: FrameInputs) -> None:
        """Use other values from the next launch on; call it on the compute stream. Free for the values written last."""
        if self._written[variant] is not inputs:
            self.inputs[variant].copy_(inputs)
            self._written[variant] = inputs

    def launch(self, slot: Slot, variant: Variant) -> None:
        """Queue the frame in a slot's `host_in`; returns at once. Call it within a block of some stream.

        Streams are named or set here, not entered: torch asks for the current one each time, 10 µs before there is
        anything to do for the GPU. That block's end brings back the caller's.
        """
        streams, graphs = self._streams, self._graphs[variant]
        torch.cuda.set_stream(streams.upload)
        slot.device_in.copy_(slot.host_in, non_blocking=True)
        slot.uploaded.record(streams.upload)
        torch.cuda.set_stream(streams.compute)
        slot.uploaded.wait(streams.compute)
        slot.started.record(streams.compute)
        self._pixels.copy_(slot.device_in)
        graphs.paint.replay()
        slot.painted.record(streams.compute)
        graphs.show.replay()
        slot.device_out.copy_(self._output)
        if self._numbers is not None:
            slot.device_numbers.copy_(self._numbers)
        slot.computed.record(streams.compute)
        torch.cuda.set_stream(streams.download)
        slot.computed.wait(streams.download)
        slot.take_memory().copy_(slot.device_out, non_blocking=True)
        slot.host_numbers.copy_(slot.device_numbers, non_blocking=True)
        slot.downloaded.record(streams.download)
