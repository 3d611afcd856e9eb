"""One frame as one CUDA graph, and the three streams that keep upload, computation and download going at once.

    upload    │ n+1 ───►                     each arrow to the next line is an event; the host waits
    compute   │      n ─────────────►        in one place only, for the download of a finished frame
    download  │             n-1 ───►

Knows nothing of what a frame's arithmetic is (frame_pass.py) or who wants it (engine.py).
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from instantvision import kernels
from instantvision.pipeline.config import Size
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.frame_pass import FrameInputs
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.runner import IN_FLIGHT_MAX

# The first call may still measure algorithms, the second is as all later ones.
WARM_UPS = 2


def capture(call: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Record what a function does on the GPU, to be replayed with the same memory.

    Args:
        call: reads and writes tensors that outlive the graph; called a few times before it is recorded.
        stream: not the default one, and nobody else's meanwhile.

    Raises:
        torch.OutOfMemoryError: the GPU's memory does not suffice.
    """
    with _measured_convolutions():
        with torch.cuda.stream(stream):
            kernels.choose("cuda").compile_all(call)
            for _ in range(WARM_UPS):
                call()
        # Recording must not begin before the warm-up has ended. Not in the frame path.
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": another thread's harmless calls, such as a meter's, must not break the recording.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()
    return graph


@contextlib.contextmanager
def _measured_convolutions() -> Iterator[None]:
    """Let cuDNN choose its algorithms by measuring them, which pays off at constant shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Slot:
    """The buffers and events of one of the frames on their way."""

    def __init__(self, size: Size, device: torch.device) -> None:
        shape = (size.height, size.width, 3)
        self.host_in = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.host_out = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.device_in = torch.empty(shape, dtype=torch.uint8, device=device)
        self.device_out = torch.empty(shape, dtype=torch.uint8, device=device)
        self.uploaded = torch.cuda.Event()
        self.started = torch.cuda.Event(enable_timing=True)
        self.computed = torch.cuda.Event(enable_timing=True)
        # Blocking: a thread that sleeps until the frame is there leaves its core to OBS; spinning gains microseconds.
        self.downloaded = torch.cuda.Event(blocking=True)

    def finish(self) -> tuple[Pixels, float]:
        """Wait for this slot's frame and take it out.

        Raises:
            EngineError: the GPU failed.
        """
        try:
            # The one wait of the frame path: for the finished frame.
            self.downloaded.synchronize()
            return self.host_out.numpy().copy(), self.started.elapsed_time(self.computed)
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


class RecordedFrame:
    """A frame's arithmetic for one size and number of steps: graph, static buffers and slots.

    Args:
        call: (pixels, inputs, out), the arithmetic to record.
        inputs: copied; write over them with `inputs.copy_` on the compute stream.
        size: of the picture.
        streams: the engine's.
        device: of everything.
    """

    def __init__(
        self,
        call: Callable[[Tensor, FrameInputs, Tensor], object],
        inputs: FrameInputs,
        size: Size,
        streams: Streams,
        device: torch.device,
    ) -> None:
        with torch.cuda.stream(streams.recording):
            self.inputs = inputs.clone()
        # A graph has one fixed input and output: copies on the device, 2 µs at 1024x1024, connect them with the slots.
        self._pixels = torch.zeros((size.height, size.width, 3), dtype=torch.uint8, device=device)
        self._output = torch.empty_like(self._pixels)
        self.slots = tuple(Slot(size, device) for _ in range(IN_FLIGHT_MAX))
        self._streams = streams
        self._graph = capture(lambda: call(self._pixels, self.inputs, self._output), streams.recording)

    def launch(self, slot: Slot) -> None:
        """Queue the frame in a slot's `host_in`; returns at once."""
        streams = self._streams
        with torch.cuda.stream(streams.upload):
            slot.device_in.copy_(slot.host_in, non_blocking=True)
            slot.uploaded.record()
        with torch.cuda.stream(streams.compute):
            slot.uploaded.wait()
            slot.started.record()
            self._pixels.copy_(slot.device_in)
            self._graph.replay()
            slot.device_out.copy_(self._output)
            slot.computed.record()
        with torch.cuda.stream(streams.download):
            slot.computed.wait()
            slot.host_out.copy_(slot.device_out, non_blocking=True)
            slot.downloaded.record()
