"""Which kernels a frame calls, and with what: taken down from a frame that is really made, so that no shape is missed.

Knows nothing of what is then done with the calls.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from instantvision import kernels
from instantvision.kernels import Backend
from instantvision.pipeline.config import Settings
from instantvision.pipeline.frame_inputs import Course, LatentMemory
from instantvision.pipeline.frame_pass import FramePass
from instantvision.pipeline.model import LatentModel

# The groups of operations that a backend has.
GROUPS = ("frame_ops", "step_ops", "layer_ops", "token_ops", "temporal_ops")
# Where a result goes is the caller's affair.
RESULTS = ("out", "x0_out")


@dataclass
class Call:
    """An operation with arguments of one form.

    Args:
        group: of GROUPS.
        name: of the operation there.
        arguments: by parameter; tensors are copies, with the values of the first such call.
        times: it was called.
    """

    group: str
    name: str
    arguments: dict[str, Any]
    times: int = 1


# By what calls of one form have in common.
Calls: TypeAlias = dict[object, Call]


class Recorder:
    """Stands in for a group of operations, and takes down what passes through, if it is told where."""

    def __init__(self, group: str, ops: Any) -> None:
        self._group, self._ops = group, ops
        self.calls: Calls | None = None

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        parameters = inspect.signature(operation)

        def call(*args: Any, **options: Any) -> Any:
            if self.calls is not None:
                self._take_down(self.calls, name, parameters.bind(*args, **options).arguments)
            return operation(*args, **options)

        return call

    def _take_down(self, calls: Calls, name: str, arguments: Mapping[str, Any]) -> None:
        kept = {key: value for key, value in arguments.items() if key not in RESULTS}
        form = (self._group, name, *((key, described(value)) for key, value in kept.items()))
        if form in calls:
            calls[form].times += 1
        else:
            calls[form] = Call(
                self._group, name, {key: mapped(value, Tensor.clone) for key, value in kept.items()}
            )


def tensors(value: Any) -> list[Tensor]:
    """All in an argument or a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors(item)]


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """An argument with all its tensors exchanged."""
    if isinstance(value, Tensor):
        return function(value)
    return tuple(mapped(item, function) for item in value) if isinstance(value, tuple) else value


def described(value: Any) -> object:
    """What two arguments of one form have in common."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return tuple(described(item) for item in value) if isinstance(value, tuple) else value


@torch.inference_mode()
def frame_calls(make_model: Callable[[], LatentModel], settings: Settings) -> list[Call]:
    """The calls of a frame with one evaluation of the denoiser, then those that only a warm one has.

    Args:
        make_model: on the device whose kernels are asked about.
        settings: size and so on.
    """
    taken: list[Calls] = [{}, {}]
    settings = replace(settings, steps=1, strength=1.0)
    with _recorded() as (backend, recorders):
        model = make_model()
        frame_pass, course = FramePass(model), Course(model, settings)
        memory = LatentMemory.empty(model, settings)
        shape = (settings.size.height, settings.size.width, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(model.device)

        def plain() -> None:
            frame_pass(pixels, course.full, mirror=False)

        def warm() -> None:
            frame_pass(pixels, course.full, mirror=False, memory=memory, warm=True)

        for frame, calls in zip((plain, warm), taken, strict=True):
            if model.device.type == "cuda":
                backend.compile_all(frame)
            # What it was compiled with was garbage, and some of it may be remembered.
            for tensor in (memory.source, memory.stylised):
                tensor.zero_()
            for recorder in recorders:
                recorder.calls = calls
            frame()
            for recorder in recorders:
                recorder.calls = None
    return [*taken[0].values(), *(call for form, call in taken[1].items() if form not in taken[0])]


@contextmanager
def _recorded() -> Iterator[tuple[Backend, list[Recorder]]]:
    """Within, whoever asks for the operations of a device is given ones that are taken down."""
    choose = kernels.choose
    plain = choose("cuda" if torch.cuda.is_available() else "cpu")
    groups = {group: Recorder(group, getattr(plain, group)) for group in GROUPS}
    changes: dict[str, Any] = dict(groups)

    def recorded_ones(device_type: str) -> Backend:
        del device_type
        return replace(plain, **changes)

    kernels.choose = recorded_ones
    try:
        yield plain, list(groups.values())
    finally:
        kernels.choose = choose
