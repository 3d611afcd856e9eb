"""The embedded model on the best device of this computer, and an engine around it.

Imports torch, which takes seconds: import this inside a function, after everything cheap has been checked.
"""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import torch

from instantvision import kernels
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.device import choose_device
from instantvision.pipeline.engine import Engine, EngineOptions
from instantvision.pipeline.errors import EngineError
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.model import LatentModel

SizeOn = Callable[[str], Size]
"""Gives the size for a type of device, `cuda` or `cpu`."""


def load_mini(
    settings: Settings, size_on: SizeOn | None = None, *, fp8: bool = False
) -> tuple[Mini, Settings]:
    """The embedded model on the best device, and the settings with the size for that device.

    Args:
        settings: as the user gave them.
        size_on: None keeps the size of `settings`.
        fp8: multiply in e4m3 what can be.

    Raises:
        EngineError: the device has no arithmetic in e4m3.
        WeightsError: a weights file is missing, damaged or of another model.
    """
    choice = choose_device()
    if fp8 and choice.device.type == "cpu":
        raise EngineError("a CPU has no 8-bit floating point arithmetic: leave --fp8 away")
    with _woken(choice.device):
        model = Mini.load(choice.device, choice.dtype, fp8=fp8)
    if size_on is not None:
        settings = replace(settings, size=size_on(choice.device.type))
    return model, settings


@contextmanager
def _woken(device: torch.device) -> Iterator[None]:
    """Beside what is in the block, let a GPU and its libraries do what they do once a process; little is Python."""
    if device.type != "cuda":
        yield
        return
    with ThreadPoolExecutor(1, "wake") as beside:
        woken = beside.submit(_wake, device)
        yield
    woken.result()


def _wake(device: torch.device) -> None:
    # The driver's context, and the library of matrix products.
    square = torch.zeros(16, 16, device=device)
    torch.mm(square, square)
    kernels.choose(device.type).wake()


@contextmanager
def started_engine(
    settings: Settings, size_on: SizeOn | None = None, *, fp8: bool = False
) -> Iterator[tuple[Engine, str]]:
    """An engine with the embedded model and the type of its device; closed at the end.

    Args:
        settings: of the first frame.
        size_on, fp8: as in load_mini.

    Raises:
        WeightsError: a weights file is missing, damaged or of another model.
        EngineError: the device cannot run it.
    """
    model, settings = load_mini(settings, size_on, fp8=fp8)
    with closing(Engine(model, settings)) as engine:
        yield engine, model.device.type


def started_live_engine(model: LatentModel, settings: Settings) -> Engine:
    """An engine for a live loop: it makes new sizes in the background, and nothing else in the process is held up.

    What is loaded by now, some 200,000 objects of torch and its kind, stays to the end. To look through it for garbage
    stops all threads for 50 to 100 ms, which is several pictures, and torch has that done before it records a graph.
    """
    gc.freeze()
    engine = Engine(model, settings, EngineOptions(in_background=True))
    # What came with the first recording stays, too.
    gc.freeze()
    return engine
