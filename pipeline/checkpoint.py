"""Weights on disk: safetensors only, checked before use, and packed to int8 where they must be small.

Pickled checkpoints are refused by name: reading one can run any code. Knows nothing of any one network.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from instantvision.pipeline.errors import WeightsError

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"

# A message stays one line: enough names to recognise the model by.
NAMES_SHOWN = 3

INT8_MAX = 127
SCALE_SUFFIX = ".scale"
# Below this a tensor's bytes do not matter, and biases and norms matter more than others.
PACKED_NUMEL_MIN = 1024
# Gaussian rows of up to a few thousand weights are best at 1, longer and heavy-tailed ones lower.
CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)


class WithoutWeights(TorchFunctionMode):
    """Within this context modules are made without their random first weights, for which drawing takes longest.

    What is in them is undefined until a checkpoint is loaded. torch's own way to this, its meta device, first imports
    500 modules.
    """

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand on what a function of torch.nn.init was to fill."""
        del types
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_tensors(
    path: Path, expected_sha256: str | None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Read one safetensors file.

    Args:
        path: the file.
        expected_sha256: in hex; None for files of the user's own.
        device: to bring them to.

    Returns:
        Tensors by name, in the file's dtypes.

    Raises:
        WeightsError: the file is missing, pickled, damaged or not the expected one.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(f"{path} is a pickled checkpoint, which could run any code: use its .safetensors")
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(f"{path} is no .safetensors file: use the .safetensors of the model")
    if not path.is_file():
        raise WeightsError(
            f"weights file {path} does not exist: check the path, or install the program again"
        )
    if expected_sha256 is not None:
        _check_sha256(path, expected_sha256)
    try:
        return load_file(path, str(device))
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"weights file {path} cannot be read ({_one_line(error)}): fetch it again"
        ) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, shared: bool = False) -> None:
    """Copy tensors into a module's parameters and buffers, in the module's dtype and on its device.

    Args:
        module: to be changed.
        tensors: by the names in the module.
        shared: make them the module's own instead, as they are and where they are.

    Raises:
        WeightsError: names or shapes differ in any way; the module is then unchanged.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, expected {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    found = "; ".join(f"{len(names)} {fault} ({_some(names)})" for fault, names in faults if names)
    if found:
        raise WeightsError(
            f"weights do not fit {type(module).__name__}: {found}: use weights of the same model"
        )
    module.load_state_dict(dict(tensors), assign=shared)


def load_diffusers_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read one component of a diffusers model, such as its folder `unet`.

    Args:
        folder: holds config.json and diffusion_pytorch_model.safetensors, whole or in parts with an index.

    Returns:
        The configuration, and all tensors by name.

    Raises:
        WeightsError: a file is missing, damaged or pickled.
    """
    config = _read_json(folder / CONFIG_FILE)
    if not (folder / INDEX_FILE).is_file():
        return config, load_tensors(_weights_file(folder), None)
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(part, str) for part in weight_map.values()):
        raise WeightsError(f"{folder / INDEX_FILE} has no weight_map of file names: fetch it again")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(weight_map.values())):
        # An index is data from elsewhere: it must not lead us out of the folder.
        if Path(part).name != part:
            raise WeightsError(
                f"{folder / INDEX_FILE} names the part {part!r}, expected a file in the same folder"
            )
        tensors |= load_tensors(folder / part, None)
    if tensors.keys() != weight_map.keys():
        odd = sorted(tensors.keys() ^ weight_map.keys())
        raise WeightsError(
            f"the parts in {folder} and their index differ in {_some(odd)}: fetch the folder again"
        )
    return config, tensors


def _weights_file(folder: Path) -> Path:
    """The one weights file of a folder; where there is none, a pickled one, so that it is refused by name."""
    pickled = folder / WEIGHTS_FILE.replace(".safetensors", ".bin")
    return pickled if pickled.is_file() and not (folder / WEIGHTS_FILE).is_file() else folder / WEIGHTS_FILE


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path} does not exist: give the folder of a diffusers model's component"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({_one_line(error)}): fetch it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected an object: fetch it again")
    return content


def _check_sha256(path: Path, expected: str) -> None:
    found = file_sha256(path)
    if found != expected.lower():
        raise WeightsError(
            f"weights file {path} is damaged or of another version (sha256 {found[:12]}…, "
            f"expected {expected[:12]}…): fetch it again, or install the program again"
        )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:NAMES_SHOWN])
    return f"{shown}, …" if len(names) > NAMES_SHOWN else shown


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def pack_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantise large weights to int8, symmetrically, with one scale for each output channel (axis 0).

    Of each channel's scales `ratio * peak / 127`, the one with the smallest squared error is taken: cutting
    off a rare large value can cost less than coarser steps for all others.

    Args:
        tensors: floating-point tensors by name.

    Returns:
        For each tensor of 2 or more axes and 1024 or more elements, `name` as int8 and `name.scale` as
        float32 [out]; all others in float16. The original is about `int8 * scale`.

    Raises:
        ValueError: a tensor is not floating-point, not finite, outside of float16, or named as a scale is.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _check_packable(name, tensor, tensors)
        if tensor.ndim < 2 or tensor.numel() < PACKED_NUMEL_MIN:
            packed[name] = tensor.to(torch.float16).contiguous()
            continue
        rows = tensor.detach().float().flatten(1)
        scale = _best_scale(rows)
        packed[name] = _quantise(rows, scale).to(torch.int8).reshape(tensor.shape)
        packed[name + SCALE_SUFFIX] = scale
    return packed


def unpack(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Undo `pack_int8`.

    Args:
        tensors: what `pack_int8` gave.
        dtype: of the result.

    Returns:
        Tensors under their first names.

    Raises:
        WeightsError: int8 values without their scale, or a scale of another length.
    """
    unpacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            unpacked[name] = _dequantise(name, tensor, tensors.get(name + SCALE_SUFFIX)).to(dtype)
        elif not _is_scale(name, tensors):
            unpacked[name] = tensor.to(dtype)
    return unpacked


def packing_errors(tensors: Mapping[str, Tensor], packed: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative error of each packed tensor: norm of the difference over norm of the original; 0 for zeros."""
    restored = unpack(packed)
    norms = {name: tensor.float().norm().item() for name, tensor in tensors.items()}
    errors = {name: (restored[name] - tensor.float()).norm().item() for name, tensor in tensors.items()}
    return {name: errors[name] / norms[name] if norms[name] else errors[name] for name in tensors}


def _best_scale(rows: Tensor) -> Tensor:
    """The scale of each row, [out, n] -> [out], that leaves the smallest squared error."""
    peak = rows.abs().amax(dim=1)
    # A row of zeros takes any scale.
    peak = torch.where(peak > 0, peak, 1.0)
    candidates = [peak * (ratio / INT8_MAX) for ratio in CLIP_RATIOS]
    errors = [(rows - _quantise(rows, scale) * scale[:, None]).square().sum(dim=1) for scale in candidates]
    best = torch.stack(errors).argmin(dim=0)
    return torch.stack(candidates).gather(0, best[None])[0]


def _quantise(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX)


def _dequantise(name: str, values: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None or values.ndim < 2 or scale.shape != values.shape[:1]:
        found = "missing" if scale is None else list(scale.shape)
        raise WeightsError(f"the scale of {name} {list(values.shape)} is {found}: fetch the weights again")
    return (values.float().flatten(1) * scale.float()[:, None]).reshape(values.shape)


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    packed = tensors.get(name.removesuffix(SCALE_SUFFIX)) if name.endswith(SCALE_SUFFIX) else None
    return packed is not None and packed.dtype == torch.int8


def _check_packable(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype}, expected floating-point weights")
    if not tensor.abs().le(torch.finfo(torch.float16).max).all():
        raise ValueError(f"{name} has values that are not finite or outside of float16")
    if name + SCALE_SUFFIX in tensors:
        raise ValueError(f"{name + SCALE_SUFFIX} is a name that packing {name} needs")
