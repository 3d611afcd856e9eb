"""The operations a frame is made of, as Triton kernels or as plain torch: chosen once a device, with the reason kept.

    backend = kernels.choose(model.device.type)
    latents = backend.step_ops.denoise_step(prediction, latents, coefficients)

`reference`, `reference_layers`, `token_reference` and `temporal_reference` have every operation in plain torch;
`frame_ops`, `step_ops`, `layer_ops`, `token_ops` and `temporal_ops` have kernels of the same signatures.
Knows nothing of models or schedules. Imports torch only with the operations.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

Name = Literal["triton", "reference"]


class FrameOps(Protocol):
    """Between a picture in memory and a network's input and output; documented in `reference`."""

    def pixels_to_input(
        self,
        pixels: Tensor,
        *,
        fold: int,
        mirror: bool,
        bgr: bool,
        dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def output_to_pixels(
        self, output: Tensor, *, fold: int, bgr: bool, out: Tensor | None = None
    ) -> Tensor: ...


class StepOps(Protocol):
    """Between two evaluations of the denoiser; documented in `reference`."""

    def add_noise(
        self, clean: Tensor, noise: Tensor, coefficients: Tensor, *, out: Tensor | None = None
    ) -> Tensor: ...

    def denoise_step(
        self,
        prediction: Tensor,
        noisy: Tensor,
        coefficients: Tensor,
        *,
        extra: Tensor | None = None,
        out: Tensor | None = None,
        x0_out: Tensor | None = None,
    ) -> Tensor: ...


class LayerOps(Protocol):
    """The layers of a network; documented in `reference_layers` and `conv_reference`."""

    def frame(
        self,
        pictures: tuple[Tensor, ...],
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    def conv3x3(
        self,
        framed: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: int = 1,
        embedding: Tensor | None = None,
        shortcut: tuple[tuple[Tensor, ...], Tensor] | None = None,
        residual: Tensor | None = None,
        activation: Literal["silu", "relu"] | None = None,
        framed_out: bool = False,
        moments: bool = False,
        scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
        also_plain: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...

    def conv3x3_shallow(
        self,
        picture: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        limit: float | None = None,
        offset: float = 0.0,
        activation: Literal["silu", "relu"] | None = None,
        framed_out: bool = False,
        moments: bool = False,
        dtype: torch.dtype | None = None,
        also_plain: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...

    def conv3x3_doubled(
        self,
        framed: Tensor,
        folded: Tensor,
        bias: Tensor,
        *,
        activation: Literal["silu", "relu"] | None = None,
        framed_out: bool = False,
        moments: bool = False,
        dtype: torch.dtype | None = None,
        also_plain: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...

    def finish(
        self,
        sums: Tensor,
        bias: Tensor,
        embedding: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        moments: bool,
    ) -> tuple[Tensor, Tensor | None]: ...

    def channel_moments(self, x: Tensor) -> Tensor: ...

    def group_norm(
        self,
        pictures: tuple[Tensor, ...],
        moments: tuple[Tensor | None, ...],
        weight: Tensor,
        bias: Tensor,
        *,
        groups: int,
        eps: float,
        modulation: Tensor | None = None,
        silu: bool = False,
        framed_out: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    def norm_linear(
        self,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        eps: float,
        groups: int = 0,
        moments: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor: ...

    def linear(
        self,
        sources: tuple[Tensor, ...],
        weight: Tensor,
        bias: Tensor,
        *,
        residual: Tensor | None = None,
        moments: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...

    def attention_conv(
        self, qkv: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, heads: int
    ) -> Tensor: ...

    def cross_attention(
        self,
        parts: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        queries_to_scores: Tensor,
        scores_to_out: Tensor,
        bias: Tensor,
        *,
        heads: int,
        eps: float,
    ) -> Tensor: ...

    def rms_norm_silu(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor: ...

    def conv3x3_rms(
        self,
        framed: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: Tensor,
        *,
        eps: float,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def space_to_depth_add(
        self, convolved: Tensor, framed: Tensor, norm: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]: ...

    def depth_to_space_add(
        self, projected: Tensor, x: Tensor, norm: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]: ...


class TokenOps(Protocol):
    """The layers of wide transformers; documented in `token_reference`."""

    def add_layer_norm(
        self,
        x: Tensor,
        update: Tensor | None,
        update_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        *,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]: ...

    def geglu(
        self, x: Tensor, bias: Tensor, *, dtype: torch.dtype, scale: float = 1.0, paired: bool = False
    ) -> Tensor: ...

    def gated_product(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scales: tuple[Tensor, Tensor],
        *,
        dtype: torch.dtype,
        gate_scale: float = 1.0,
    ) -> Tensor: ...

    def attention(
        self,
        queries: Tensor,
        keys_values: Tensor | None,
        *,
        heads: int,
        dtype: torch.dtype | None = None,
        scale: float = 1.0,
    ) -> Tensor: ...


class TemporalOps(Protocol):
    """Between a frame and the one before; documented in `temporal_reference`."""

    def motion(self, latents: Tensor, before: Tensor, *, out: Tensor | None = None) -> Tensor: ...

    def gate(self, motion: Tensor, limits: Tensor) -> Tensor: ...

    def spread(self, gate: Tensor) -> Tensor: ...

    def blend(self, kept: Tensor, new: Tensor, share: Tensor, *, out: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Backend:
    """The operations to use on one kind of device, and why these."""

    name: Name
    reason: str
    frame_ops: FrameOps
    step_ops: StepOps
    layer_ops: LayerOps
    token_ops: TokenOps
    temporal_ops: TemporalOps

    def compile_all(self, call: Callable[[], object]) -> None:
        """Compile what a call will launch, several kernels at a time; the call's result is garbage."""
        if self.name == "triton":
            importlib.import_module(f"{__name__}.launch").compile_kernels(call)

    def wake(self) -> None:
        """Do in advance, in the calling thread, what the first kernel of a process would wait for."""
        if self.name == "triton":
            importlib.import_module(f"{__name__}.launch").wake()

    def __str__(self) -> str:
        return f"kernels: {self.name}, because {self.reason}"


_forced: Name | None = None


def choose(device_type: str) -> Backend:
    """The fastest operations that run on a device; the first choice for each is logged with its reason.

    Args:
        device_type: of the tensors, `cuda` or `cpu`.
    """
    return _load(_forced, "it was asked for") if _forced else _choose(device_type)


def prepare() -> None:
    """Begin what compiling kernels takes, in a process beside this one, if any will probably have to be compiled.

    For the beginning of a program that will want a GPU's kernels in some seconds; costs some milliseconds.
    """
    if _decide("cuda")[0] == "triton":
        importlib.import_module(f"{__name__}.compile_workers").prepare()


@contextmanager
def forced(name: Name) -> Iterator[None]:
    """Use one implementation whatever the device, for tests and comparisons.

    Raises:
        ImportError: triton is asked for and not installed.
    """
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@functools.cache
def _choose(device_type: str) -> Backend:
    backend = _load(*_decide(device_type))
    log.info("%s", backend)
    return backend


def _decide(device_type: str) -> tuple[Name, str]:
    if importlib.util.find_spec("triton") is None:
        return "reference", "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "triton", "TRITON_INTERPRET=1 interprets them"
    if device_type != "cuda":
        return "reference", f"triton does not run on the device {device_type}"
    if missing := _missing_for_launches():
        return "reference", f"triton builds its launches with {missing}, which was not found"
    return "triton", "triton is installed and the device is a GPU"


def _missing_for_launches() -> str | None:
    # The Windows package brings a compiler of its own.
    if sys.platform != "linux":
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (package gcc)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's header files (package python3-dev)"
    return None


@functools.cache
def _load(name: Name, reason: str) -> Backend:
    # By name, so that a machine without triton never imports it.
    modules = (
        ("reference", "reference", "reference_layers", "token_reference", "temporal_reference")
        if name == "reference"
        else ("frame_ops", "step_ops", "layer_ops", "token_ops", "temporal_ops")
    )
    frame, step, layer, token, temporal = (importlib.import_module(f"{__name__}.{each}") for each in modules)
    return Backend(
        name,
        reason,
        cast(FrameOps, frame),
        cast(StepOps, step),
        cast(LayerOps, layer),
        cast(TokenOps, token),
        cast(TemporalOps, temporal),
    )
