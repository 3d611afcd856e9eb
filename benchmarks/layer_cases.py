"""The work kernels are measured with: each call of a frame, as the kernel, as torch's own operations, and exactly.

Knows nothing of time.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import unfused
from instantvision import kernels
from instantvision.kernels import (
    Backend,
    reference,
    reference_layers,
    temporal_reference,
    token_reference,
)
from instantvision.pipeline.autoencoder_tiny import AutoencoderTinyConfig
from instantvision.pipeline.config import Settings, Size
from instantvision.pipeline.eight_bit import E4M3
from instantvision.pipeline.latent_diffusion import LatentDiffusion
from instantvision.pipeline.mini import Mini
from instantvision.pipeline.model import LatentModel
from instantvision.pipeline.published import SD_TURBO, SDXL, DiffusionConfig
from recorded_calls import Call, frame_calls, mapped, tensors

REFERENCES: dict[str, Any] = {
    "frame_ops": reference,
    "step_ops": reference,
    "layer_ops": reference_layers,
    "token_ops": token_reference,
    "temporal_ops": temporal_reference,
}
# Arguments that are a layer's own and not a frame's.
WEIGHTS = {
    "weight", "bias", "norm_weight", "norm_bias", "norm", "update_bias", "embedding", "modulation", "scale",
    "folded", "queries_to_scores", "scores_to_out", "query", "keys_values", "out",
}  # fmt: skip
# Tokens, channels and heads of SD-Turbo's self-attention at 512x512.
SD_TURBO_ATTENTION = ((4096, 320, 5), (1024, 640, 10), (256, 1280, 20), (64, 1280, 20))
# Whose frames are taken apart, and the side of these in pixels.
MODELS: dict[str, tuple[DiffusionConfig | None, int]] = {
    "mini": (None, 1024),
    "sd-turbo": (SD_TURBO, 512),
    "sdxl": (SDXL, 1024),
}
# Of all random weights; any number would do.
SEED = 7


@dataclass(frozen=True)
class Way:
    """An operation with its arguments."""

    function: Callable[..., Any]
    arguments: dict[str, Any]

    def __call__(self) -> Any:
        return self.function(**self.arguments)

    def rotated(self, count: int) -> "list[Way]":
        """The same so many times, with weights that are copies."""
        copies = [
            {
                key: value if key not in WEIGHTS else mapped(value, Tensor.clone)
                for key, value in given.items()
            }
            for given in itertools.repeat(self.arguments, count)
        ]
        return [Way(self.function, copy) for copy in copies]

    @property
    def weight_bytes(self) -> int:
        """Of a single call."""
        own = [value for key, value in self.arguments.items() if key in WEIGHTS and isinstance(value, Tensor)]
        return sum(map(size_bytes, own))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel at one shape.

    Args:
        kernel: name of the operation.
        where: model that has the shape.
        shape: of its tensors, for a reader.
        times: calls in a frame with one evaluation; 0 for a shape at which the program takes another.
        ours, unfused, exact: the same work; `exact` is the reference in float32.
    """

    kernel: str
    where: str
    shape: str
    times: int
    ours: Way
    unfused: Way
    exact: Way

    @property
    def multiplies_e4m3(self) -> bool:
        """Whether it reads numbers of eight bits."""
        return any(each.dtype == E4M3 for each in tensors(self.ours.arguments))

    @property
    def in_e4m3(self) -> bool:
        """Whether it reads or writes them."""
        return self.multiplies_e4m3 or self.ours.arguments.get("dtype") == E4M3


def cases(calls: Sequence[Call], where: str, backend: Backend) -> list[Case]:
    """A case for each recorded call."""
    special = {"cross_attention": _cross_case, "conv3x3_doubled": _doubled_case}
    return [
        special[call.name](call, where, backend)
        if call.name in special
        else _case(call.group, call.name, call.arguments, where, call.times, backend)
        for call in calls
    ]


def attention_case(
    tokens: int,
    channels: int,
    heads: int,
    where: str,
    backend: Backend,
    form: tuple[torch.device, torch.dtype],
) -> Case:
    """attention_conv at a shape that the program has another way for."""
    device, dtype = form
    shapes = {
        "qkv": (1, tokens, 3 * channels),
        "weight": (channels, channels),
        "bias": (channels,),
        "residual": (1, tokens, channels),
    }
    arguments: dict[str, Any] = {
        name: _random(*shape, device=device, dtype=dtype) for name, shape in shapes.items()
    }
    arguments["weight"] *= channels**-0.5
    return _case("layer_ops", "attention_conv", arguments | {"heads": heads}, where, 0, backend)


def _case(group: str, name: str, arguments: dict[str, Any], where: str, times: int, backend: Backend) -> Case:
    exact = {
        key: torch.float32 if isinstance(value, torch.dtype) and key == "dtype" else mapped(value, _exact)
        for key, value in arguments.items()
    }
    wanted, own = getattr(REFERENCES[group], name), getattr(unfused, name, None)
    plain = unfused.in_sixteen_bits(arguments)
    # The unfused sequences do not know what comes multiplied by a constant, for e4m3's sake.
    if plain.get("scale") not in (None, 1.0):
        own = None
    return Case(
        kernel=name,
        where=where,
        shape=_shape(arguments),
        times=times,
        ours=Way(getattr(getattr(backend, group), name), arguments),
        unfused=Way(own, unfused.adapted(plain)) if own else Way(wanted, plain),
        exact=Way(wanted, exact),
    )


def _cross_case(call: Call, where: str, backend: Backend) -> Case:
    """With projections of our own: those that were folded into the recorded context cannot be had back."""
    arguments, heads = dict(call.arguments), call.arguments["heads"]
    to_scores: Tensor = arguments["queries_to_scores"]
    form: dict[str, Any] = {"device": to_scores.device, "dtype": to_scores.dtype}
    channels, slots = to_scores.shape[2], to_scores.shape[1] // heads
    query, key, value, out = (_random(channels, channels, **form) * channels**-0.5 for _ in range(4))
    context = _random(1, slots, channels, **form)
    folded = reference_layers.fold_context(query, key, value, out, context, heads)
    arguments["queries_to_scores"], arguments["scores_to_out"] = folded
    case = _case(call.group, call.name, arguments, where, call.times, backend)
    apart = {key: value for key, value in case.unfused.arguments.items() if "scores" not in key}
    apart |= {"query": query, "keys_values": torch.cat([context @ key.T, context @ value.T], -1), "out": out}
    return replace(case, unfused=Way(unfused.cross_attention, apart))


def _doubled_case(call: Call, where: str, backend: Backend) -> Case:
    """With a weight of our own, for the same reason."""
    arguments = dict(call.arguments)
    folded: Tensor = arguments.pop("folded")
    features, channels = len(folded) // 4, folded.shape[1]
    weight = _random(features, channels, 3, 3, device=folded.device, dtype=folded.dtype) * channels**-0.5 / 3
    weight = weight.contiguous(memory_format=torch.channels_last)
    ours = arguments | {"folded": reference_layers.fold_doubling(weight)}
    case = _case(call.group, call.name, ours, where, call.times, backend)
    apart = {"activation": None} | unfused.adapted(arguments) | {"weight": weight}
    return replace(case, unfused=Way(unfused.conv3x3_doubled, apart))


def _shape(arguments: dict[str, Any]) -> str:
    """Of all tensors but vectors, and the options that are set."""
    sides = ["x".join(map(str, each.shape)) for each in tensors(arguments) if each.dim() > 1]
    options = [
        key if value is True else f"{key} {value}"
        for key, value in arguments.items()
        if isinstance(value, int | str) and value
    ]
    return ", ".join([" ".join(sides), *options])


def _exact(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def size_bytes(tensor: Tensor) -> int:
    """Of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def _random(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def small(config: DiffusionConfig) -> DiffusionConfig:
    """A network of the same kind that a CPU can run at once."""
    changes: dict[str, Any] = {
        "block_out_channels": (32, 32, 64, 64), "attention_head_dim": (1, 2, 4, 4), "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }  # fmt: skip
    codec = AutoencoderTinyConfig(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4)
    return replace(config, unet=replace(config.unet, **changes), autoencoder=codec, tokens=20)


def all_cases(
    device: torch.device,
    dtype: torch.dtype,
    *,
    smoke: bool,
    fp8: bool,
    models: Sequence[str] = ("mini", "sd-turbo"),
) -> list[Case]:
    """Of some of MODELS; in e4m3 only those that differ."""
    backend, found = kernels.choose(device.type), list[Case]()
    for where in models:
        config, side = MODELS[where]
        side = 64 if smoke else side
        make = partial(_model, small(config) if config and smoke else config, device, dtype, fp8)
        found += cases(frame_calls(make, Settings(size=Size(side, side))), where, backend)
    if fp8:
        found = [case for case in found if case.in_e4m3]
    elif "sd-turbo" in models:
        shapes = ((64, 64, 2),) if smoke else SD_TURBO_ATTENTION
        found += [attention_case(*shape, "sd-turbo", backend, (device, dtype)) for shape in shapes]
    return sorted(found, key=lambda case: (case.kernel, case.where))


def _model(
    config: DiffusionConfig | None, device: torch.device, dtype: torch.dtype, fp8: bool
) -> LatentModel:
    if config is None:
        return Mini.load(device, dtype, fp8=fp8)
    return LatentDiffusion.with_random_weights(config, SEED, device, dtype, fp8=fp8)
