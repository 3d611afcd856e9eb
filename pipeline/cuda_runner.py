"""The engine on a GPU: which graph serves which settings, how many are kept, and what happens when memory is full.

Knows nothing of streams and events (graphs.py) or of a frame's arithmetic (frame_pass.py).
"""

import logging
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from instantvision.pipeline.config import SIZE_MIN_PX, SIZE_MULTIPLE_PX, Pipeline, Settings, Size
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.fitting import fit
from instantvision.pipeline.frame_inputs import Belt, FrameInputs, LatentMemory
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.frames import Pixels
from instantvision.pipeline.graphs import RecordedFrame, Streams, Variant
from instantvision.pipeline.model import LatentModel
from instantvision.pipeline.runner import IN_FLIGHT_MAX, Desk, EngineOptions, Pending
from instantvision.pipeline.temporal import Plan, Work

log = logging.getLogger(__name__)

# Size, mirror, pipeline, whether deep features are kept, and of each variant the shapes of all inputs.
GraphKey: TypeAlias = tuple[Size, bool, Pipeline, bool, tuple[tuple[Variant, tuple[torch.Size, ...]], ...]]


class Recorded(NamedTuple):
    """The graphs of one key, and the belt that they work on, if there is one."""

    frame: RecordedFrame
    belt: Belt | None


@dataclass(frozen=True)
class Wanted:
    """Settings whose graphs are being recorded, and what they are made with."""

    key: GraphKey
    inputs: dict[Variant, FrameInputs]
    desk: Desk
    settings: Settings
    recorded: Future[Recorded | None]


class CudaRunner:
    """Queues frames on a GPU; implements Runner.

    A change of settings is queued on the compute stream behind the frames on their way, so it needs no waiting.
    """

    def __init__(self, model: LatentModel, settings: Settings, options: EngineOptions) -> None:
        self._model, self._graphs_kept = model, options.graphs_kept
        self._frame_pass = FramePass(model)
        self._streams = Streams(model.device)
        self._recorded: OrderedDict[GraphKey, Recorded] = OrderedDict()
        self._in_use: GraphKey | None = None
        self._count = 0
        self._recorder = ThreadPoolExecutor(1, "recorder") if options.in_background else None
        self._wanted: Wanted | None = None
        self._change(settings, wait=True)

    @torch.inference_mode()
    def use(self, settings: Settings) -> None:
        # While another size is being recorded, these settings are for that one.
        if self._wanted is None and self._fade_to(settings):
            self._settings = settings
        else:
            self._change(settings, wait=self._recorder is None)

    def _fade_to(self, settings: Settings) -> bool:
        with torch.cuda.stream(self._streams.compute):
            return self._desk.fade_to(settings)

    @torch.inference_mode()
    def _change(self, settings: Settings, *, wait: bool) -> None:
        with torch.cuda.stream(self._streams.compute):
            desk = Desk(self._model, settings)
            inputs = _variants(desk, settings)
        shapes = tuple((variant, each.shapes) for variant, each in inputs.items())
        key = (settings.size, settings.mirror, settings.pipeline, settings.temporal == "full", shapes)
        if key in self._recorded:
            self._wanted = None
            self._switch(key, inputs, desk, settings)
        elif wait or self._recorder is None:
            self._record(key, inputs, desk, settings)
            self._switch(key, inputs, desk, settings)
        elif self._wanted and self._wanted.key == key:
            self._wanted = replace(self._wanted, inputs=inputs, desk=desk, settings=settings)
        else:
            # One after the other: what is no longer wanted when it is ready is dropped.
            recorded = self._recorder.submit(self._try_recording, inputs, desk, settings)
            self._wanted = Wanted(key, inputs, desk, settings, recorded)

    @torch.inference_mode()
    def _switch(
        self, key: GraphKey, inputs: dict[Variant, FrameInputs], desk: Desk, settings: Settings
    ) -> None:
        """Use recorded graphs from the next frame on."""
        self._recorded.move_to_end(key)
        self._current, self._belt = self._recorded[key]
        self._desk, self._settings = desk, settings
        self._generator = torch.Generator(self._model.device).manual_seed(settings.seed)
        resumed, self._in_use = self._in_use != key, key
        with torch.cuda.stream(self._streams.compute):
            if self._belt is None:
                for variant, values in inputs.items():
                    self._current.write(variant, values)
            elif resumed:
                # Frames of before some other settings were in use; what those to come need enters with them.
                self._belt.restart()

    def _adopt(self) -> None:
        """Switch to the graphs that were recorded in the background, if they are ready."""
        wanted = self._wanted
        if wanted is None or not wanted.recorded.done():
            return
        self._wanted = None
        recorded = wanted.recorded.result()
        if recorded is None:
            log.warning("%s", out_of_memory(wanted.settings.size, self._model.device))
            return
        self._forget_graphs(keep=max(1, self._graphs_kept))
        self._recorded[wanted.key] = recorded
        self._switch(wanted.key, wanted.inputs, wanted.desk, wanted.settings)

    @torch.inference_mode()
    def submit(self, pixels: Pixels) -> Pending:
        self._adopt()
        # The engine let the frame before the last one finish, whose slot this is.
        slot = self._current.slots[self._count % IN_FLIGHT_MAX]
        desk, fitted = self._desk, slot.host_in.numpy()
        fit(pixels, self._settings.size, self._settings.fit, out=fitted)
        plan = desk.plan(fitted)
        if plan.work is Work.REPEAT:
            return desk.repeat()
        with torch.cuda.stream(self._streams.compute):
            inputs = desk.course.inputs(plan)
            variant = Variant(inputs.steps, plan.warm, plan.whole)
            delay = self._write(variant, inputs)
            if desk.fresh_noise:
                self._current.inputs[variant].freshen(self._generator)
            self._current.launch(slot, variant)
        self._count += 1

        def finish() -> tuple[Pixels, float]:
            finished = slot.finish()
            desk.measured(plan, slot.host_numbers.tolist())
            return finished

        return desk.painted(Pending(finish, inputs.steps, delay))

    def _write(self, variant: Variant, inputs: FrameInputs) -> int | None:
        """Bring in what a frame needs; how many frames ago the one that comes out went in, None: none comes out."""
        if self._belt:
            return self._belt.enter(inputs, self._current.inputs[variant])
        self._current.write(variant, inputs)
        return 0

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.shutdown(cancel_futures=True)
        self._wanted = None
        del self._current, self._belt
        self._forget_graphs(keep=0)

    def _record(
        self, key: GraphKey, inputs: dict[Variant, FrameInputs], desk: Desk, settings: Settings
    ) -> None:
        """Record graphs for new shapes while the caller waits; the graphs in use stay whatever happens."""
        steps = ", ".join(str(variant.steps) for variant in inputs)
        log.info("recording the frame at %s with %s steps", settings.size, steps)
        self._forget_graphs(keep=max(1, self._graphs_kept))
        recorded = self._try_recording(inputs, desk, settings)
        if recorded is None:
            log.info("GPU memory is full: giving up the graphs of other sizes")
            self._forget_graphs(keep=1)
            recorded = self._try_recording(inputs, desk, settings)
        if recorded is None:
            raise out_of_memory(settings.size, self._model.device)
        self._recorded[key] = recorded

    @torch.inference_mode()
    def _try_recording(
        self, inputs: dict[Variant, FrameInputs], desk: Desk, settings: Settings
    ) -> Recorded | None:
        """None if memory does not suffice; what the try had taken is free again then."""
        self._streams.recording.wait_stream(self._streams.compute)
        try:
            # Its graphs write to it while they are recorded: the first frame after that starts from nothing.
            memory = LatentMemory.empty(self._model, settings) if desk.remembers else None
            belt = Belt(self._model, settings, desk.course.steps) if desk.throughput else None

            def paint(pixels: Tensor, static: FrameInputs, warm: bool) -> Tensor:
                return self._frame_pass.paint(
                    pixels, static, mirror=settings.mirror, memory=memory, warm=warm, belt=belt
                )

            numbers = memory.numbers if memory else None
            recorded = RecordedFrame(
                paint,
                self._frame_pass.show,
                inputs,
                settings.size,
                self._streams,
                self._model.device,
                numbers,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        self._streams.recording.synchronize()
        return Recorded(recorded, belt)

    def _forget_graphs(self, *, keep: int) -> None:
        """Drop the graphs that were used longest ago, and give their memory back. The newest is the one in use."""
        if len(self._recorded) <= keep:
            return
        # A graph must have ended before its memory goes. Not in the frame path.
        torch.cuda.synchronize(self._model.device)
        while len(self._recorded) > keep:
            self._recorded.popitem(last=False)
        torch.cuda.empty_cache()


def _variants(desk: Desk, settings: Settings) -> dict[Variant, FrameInputs]:
    """Inputs of every graph that frames with these settings may need: recorded up front, no frame ever waits."""
    full = desk.course.full
    inputs = {Variant(full.steps, False): full}
    if not desk.remembers:
        return inputs
    ceiling = min(settings.steps_ceiling, full.steps)
    every = tuple(range(ceiling))
    # With deep features all steps are taken, at most one of them whole; otherwise some are left out.
    reusing = settings.temporal == "full"
    for whole in (None, *every) if reusing else ():
        inputs[Variant(ceiling, True, whole)] = desk.course.inputs(Plan(Work.WARM, every, whole))
    for steps in () if reusing else range(ceiling, min(settings.steps_floor, ceiling) - 1, -1):
        inputs[Variant(steps, True)] = desk.course.warm(every[:steps])
    return inputs


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one it was raised in place of, is about device memory.

    Recording and compiling wrap it: a failed recording ends with an error of its own, the driver's has no type.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def out_of_memory(size: Size, device: torch.device) -> EngineError:
    """The error that says which size did not fit and which to try."""
    smaller = next_smaller(size)
    advice = f"pass --size {smaller}" if smaller else "close other programs that use the GPU"
    return EngineError(
        f"{torch.cuda.get_device_name(device)} has too little free memory for {size}: {advice}"
    )


def next_smaller(size: Size) -> Size | None:
    """Three quarters of a size along each axis, in multiples of 16; None if it is the smallest already."""

    def shrink(px: int) -> int:
        return max(SIZE_MIN_PX, px * 3 // 4 // SIZE_MULTIPLE_PX * SIZE_MULTIPLE_PX)

    smaller = Size(shrink(size.width), shrink(size.height))
    return None if smaller == size else smaller
