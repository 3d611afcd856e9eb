"""How fast a network could be on a GPU: bytes and operations of its layers, and the time that these alone would take.

    python benchmarks/roofline.py --model mini --side 1024 [--shapes] [--measured FILE] [--json]

Counted by running the networks on torch's meta device, which computes nothing: no GPU is needed. The time of a layer is
at least its bytes over the copy bandwidth and its operations over the arithmetic's peak, whichever is longer. `apart`
sums that up over all calls, each reading and writing memory; `fused` is the bound that no program can go below: all
operations, but only weights, input and output moved, once each. The ceilings are an H100's, as measured with torch.

FILE holds measured times in us by part and kind: {"evaluation": {"conv3x3": 210.5, "all": 402}}.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from instantvision.pipeline.autoencoder import Autoencoder
from instantvision.pipeline.autoencoder_tiny import AutoencoderTiny
from instantvision.pipeline.latent_diffusion import token_width
from instantvision.pipeline.mini_denoiser import MINI_UNET, STYLE_TOKENS, STYLE_WIDTH
from instantvision.pipeline.published import SD_15, SD_TURBO, SDXL, DiffusionConfig
from instantvision.pipeline.unet import UNet
from recorded_calls import tensors

META = torch.device("meta")
PUBLISHED: Mapping[str, DiffusionConfig] = {"sd-1.5": SD_15, "sd-turbo": SD_TURBO, "sdxl": SDXL}
CONVOLUTION, LINEAR, ATTENTION, NORM = "conv3x3", "linear", "attention", "norm"
ELEMENTWISE, COPY = "elementwise", "copy"
# With the deep part left to another evaluation; no part of a plain frame.
SHALLOW = "shallow evaluation"
KINDS = (CONVOLUTION, LINEAR, ATTENTION, NORM, ELEMENTWISE, COPY)

aten = torch.ops.aten
NORMS = {aten.native_group_norm, aten.native_layer_norm}
MATRICES = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
COPIES = {
    aten.cat,
    aten.clone,
    aten.copy_,
    aten.upsample_nearest2d,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.repeat,
    aten.index,
    aten.index_select,
}
# They give memory, and write nothing into it; the last is a view that does not call itself one.
NO_BYTES = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten._unsafe_view}


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the device does at best.

    Args:
        matmul_tflops: of convolutions and matrix products; an H100's bf16, 1331 in fp8.
        attention_tflops: likewise for attention.
        copy_tbps: bytes read and bytes written, together.
    """

    matmul_tflops: float = 784.0
    attention_tflops: float = 784.0
    copy_tbps: float = 3.02

    def floor_us(self, kind: str, moved: int, flops: int) -> float:
        """The least time for so many bytes and operations."""
        peak = self.attention_tflops if kind == ATTENTION else self.matmul_tflops
        return max(moved / self.copy_tbps / 1e6, flops / peak / 1e6)


@dataclass(frozen=True)
class Call:
    """One call of an operation.

    Args:
        kind: of KINDS.
        shape: of what it reads and writes, for a reader.
        moved: bytes read and written.
        flops: two for each multiplication and addition of convolutions, matrix products and attention; other kinds
            are bound by their bytes and count none.
    """

    kind: str
    shape: str
    moved: int
    flops: int


class Calls(TorchDispatchMode):
    """Writes down every operation that moves bytes, while it is active together with its `attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.attention = AttentionCalls(self.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation on tensors without values."""
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if not func.is_view and operation not in NO_BYTES:
            read, written = tensors(args), tensors(result)
            kind = _kind(operation, args)
            if read and written:
                count = flop_registry.get(operation)
                flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
                moved = sum(map(_bytes, read)) + sum(map(_bytes, _written(kind, written)))
                self.calls.append(Call(kind, _shape(operation, read, written), moved, flops))
        return result


class AttentionCalls(TorchFunctionMode):
    """Counts attention as the one operation that it is: a device without values would take it apart."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for attention, and let all else through."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        *batch, tokens, width = query.shape
        context, value_width = value.shape[-2:]
        flops = 2 * math.prod(batch) * tokens * context * (width + value_width)
        result = query.new_empty((*batch, tokens, value_width))
        moved = sum(map(_bytes, (query, key, value, result)))
        shape = f"{math.prod(batch)} heads of {width}, {tokens} to {context} tokens"
        self._calls.append(Call(ATTENTION, shape, moved, flops))
        return result


@dataclass(frozen=True)
class Part:
    """A network, or half of one, at one size.

    Args:
        calls: in order.
        needed: bytes of weights, input and output.
    """

    calls: list[Call]
    needed: int


@torch.no_grad()
def count(module: nn.Module, call: Callable[..., Tensor], *inputs: Tensor) -> Part:
    """What a call of a network does.

    Args:
        module: that the weights belong to which the call uses, on any device; best without values.
        call: of the module.
        inputs: of the call.
    """
    counter = Calls()
    with counter.attention, counter:
        output = call(*inputs)
    return Part(counter.calls, sum(map(_bytes, (*module.parameters(), *inputs, output))))


def parts(model: str, side: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Part]:
    """Encoder, one evaluation of the denoiser, whole and of its outermost level, and decoder, for a square picture.

    Embedding the timestep is left out: it is computed once a preset.

    Args:
        model: mini or a name in PUBLISHED.
        side: in pixels.
        dtype: of weights and features.
    """

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, device=META, dtype=dtype).to(memory_format=_format(shape))

    codec: Any
    if model == "mini":
        with META:
            unet, codec = UNet(MINI_UNET).to(dtype), Autoencoder().to(dtype)
        fold, down, latent = codec.config.fold, codec.config.downsampling, codec.config.latent_channels
        tokens = tensor(1, STYLE_TOKENS, STYLE_WIDTH)
    else:
        config = PUBLISHED[model]
        with META:
            unet, codec = UNet(config.unet).to(dtype), AutoencoderTiny(config.autoencoder).to(dtype)
        fold, down, latent = 1, 8, config.autoencoder.latent_channels
        tokens = tensor(1, config.tokens, token_width(config))
    place = side // down
    picture, latents = tensor(1, 3 * fold**2, side // fold, side // fold), tensor(1, latent, place, place)
    cast(Any, unet).to(memory_format=torch.channels_last)
    codec.to(memory_format=torch.channels_last)
    noisy, emb = tensor(1, unet.config.in_channels, place, place), tensor(1, unet.config.emb_channels)
    deep = tensor(1, unet.config.block_out_channels[1], place, place)
    return {
        "encode": count(codec.encoder, codec.encode, picture),
        "evaluation": count(unet, unet.forward_embedded, noisy, emb, tokens),
        SHALLOW: count(_outermost(unet), unet.forward_reusing, noisy, emb, tokens, deep),
        "decode": count(codec.decoder, codec.decode, latents),
    }


def _outermost(unet: UNet) -> nn.ModuleList:
    """What `UNet.forward_reusing` uses."""
    first: Any = unet.down_blocks[0]
    return nn.ModuleList(
        [
            unet.conv_in,
            first.resnets,
            first.attentions,
            unet.up_blocks[-1],
            unet.conv_norm_out,
            unet.conv_out,
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in us, `ratio` is measured over floor."""

    part: str
    kind: str
    calls: int
    mbytes: float
    gflop: float
    floor_us: float
    measured_us: float | None
    ratio: float | None


def rows(name: str, part: Part, ceilings: Ceilings, measured: Mapping[str, float]) -> list[Row]:
    """The lines of one part: its kinds, all of them apart, and all of them fused."""
    groups = {kind: [call for call in part.calls if call.kind == kind] for kind in KINDS}
    lines = [
        _row(name, kind, calls, _apart_us(calls, ceilings), measured.get(kind))
        for kind, calls in groups.items()
        if calls
    ]
    lines.append(_row(name, "all, apart", part.calls, _apart_us(part.calls, ceilings), measured.get("all")))
    return [*lines, fused(name, part, ceilings, measured)]


def fused(name: str, part: Part, ceilings: Ceilings, measured: Mapping[str, float]) -> Row:
    """The bound that no program can go below."""
    by_arithmetic = sum(ceilings.floor_us(call.kind, 0, call.flops) for call in part.calls)
    floor_us = max(by_arithmetic, ceilings.floor_us(COPY, part.needed, 0))
    return _row(name, "all, fused", part.calls, floor_us, measured.get("all"), moved=part.needed)


def by_shape(name: str, part: Part, ceilings: Ceilings) -> list[Row]:
    """A line for each kind and shape, the longest floors first."""
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in part.calls:
        groups.setdefault((call.kind, call.shape), []).append(call)
    lines = [
        _row(name, f"{kind} {shape}", calls, _apart_us(calls, ceilings), None)
        for (kind, shape), calls in groups.items()
    ]
    return sorted(lines, key=lambda row: -row.floor_us)


def table(lines: Sequence[Row]) -> str:
    """A table in Markdown."""
    head = ("part", "what", "calls", "MB", "GFLOP", "floor, us", "measured, us", "ratio")
    cells = [
        (
            row.part,
            row.kind,
            str(row.calls),
            f"{row.mbytes:.2f}",
            f"{row.gflop:.2f}",
            f"{row.floor_us:.1f}",
            "" if row.measured_us is None else f"{row.measured_us:.1f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
        )
        for row in lines
    ]
    rule = ("---", "---", *(["---:"] * 6))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *cells))


def _apart_us(calls: Sequence[Call], ceilings: Ceilings) -> float:
    return sum(ceilings.floor_us(call.kind, call.moved, call.flops) for call in calls)


def _row(
    part: str,
    kind: str,
    calls: Sequence[Call],
    floor_us: float,
    measured_us: float | None,
    moved: int | None = None,
) -> Row:
    moved = sum(call.moved for call in calls) if moved is None else moved
    return Row(
        part=part,
        kind=kind,
        calls=len(calls),
        mbytes=moved / 1e6,
        gflop=sum(call.flops for call in calls) / 1e9,
        floor_us=floor_us,
        measured_us=measured_us,
        ratio=None if measured_us is None else measured_us / floor_us,
    )


def _kind(operation: Any, args: Sequence[Any]) -> str:
    if operation is aten.convolution:
        return LINEAR if args[1].shape[2:].numel() == 1 else CONVOLUTION
    if operation in MATRICES:
        return LINEAR
    if operation in NORMS:
        return NORM
    return COPY if operation in COPIES else ELEMENTWISE


def _written(kind: str, tensors: list[Tensor]) -> list[Tensor]:
    # A norm's mean and deviation are there for training only.
    return tensors[:1] if kind == NORM else tensors


def _bytes(tensor: Tensor) -> int:
    # What is repeated by a stride of 0 is in memory once.
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()


def _shape(operation: Any, read: list[Tensor], written: list[Tensor]) -> str:
    shapes = " ".join("x".join(map(str, tensor.shape)) for tensor in read if tensor.dim() > 1)
    return f"{operation.__name__} {shapes} -> {'x'.join(map(str, written[0].shape))}"


def _format(shape: Sequence[int]) -> torch.memory_format:
    return torch.channels_last if len(shape) == 4 else torch.contiguous_format


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", choices=("mini", *PUBLISHED))
    parser.add_argument("--side", type=int, default=1024, help="of the square picture in pixels")
    parser.add_argument("--steps", type=int, default=8, help="evaluations a frame")
    parser.add_argument("--shapes", action="store_true", help="a line for each shape instead")
    parser.add_argument("--measured", type=Path, help="JSON file of times in us")
    parser.add_argument("--matmul-tflops", type=float, default=Ceilings.matmul_tflops)
    parser.add_argument("--attention-tflops", type=float, default=Ceilings.attention_tflops)
    parser.add_argument("--copy-tbps", type=float, default=Ceilings.copy_tbps)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ceilings = Ceilings(
        matmul_tflops=args.matmul_tflops,
        attention_tflops=args.attention_tflops,
        copy_tbps=args.copy_tbps,
    )
    measured = json.loads(args.measured.read_text(encoding="utf-8")) if args.measured else {}
    counted = parts(args.model, args.side)
    if args.shapes:
        lines = [line for name, part in counted.items() for line in by_shape(name, part, ceilings)]
    else:
        lines = [
            line
            for name, part in counted.items()
            for line in rows(name, part, ceilings, measured.get(name, {}))
        ]
        lines += frame_rows(counted, args.steps, ceilings, measured.get("frame", {}))
    print(json.dumps([vars(line) for line in lines], indent=2) if args.json else table(lines))
    return 0


def frame_rows(
    counted: Mapping[str, Part], steps: int, ceilings: Ceilings, measured: Mapping[str, float]
) -> list[Row]:
    """The lines of a whole frame: encode, so many evaluations, decode."""
    repeats = {"encode": 1, "evaluation": steps, "decode": 1}
    counted = {name: part for name, part in counted.items() if name in repeats}
    calls = [call for name, part in counted.items() for call in part.calls * repeats[name]]
    apart = _row("frame", "all, apart", calls, _apart_us(calls, ceilings), measured.get("all"))
    bounds = [(repeats[name], fused(name, part, ceilings, {})) for name, part in counted.items()]
    floor_us = sum(repeat * row.floor_us for repeat, row in bounds)
    moved = sum(repeat * counted[row.part].needed for repeat, row in bounds)
    return [apart, _row("frame", "all, fused", calls, floor_us, measured.get("all"), moved=moved)]


if __name__ == "__main__":
    sys.exit(main())
