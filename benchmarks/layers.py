"""Every kernel at the shapes that a frame uses, beside the unfused sequence, in turns, after a check of its results.

    python benchmarks/layers.py [--only NAME] [--fp8] [--smoke]

The shapes are those of a frame of mini at 1024x1024 and of one of SD-Turbo's shape at 512x512, taken down from frames
that are really made (recorded_calls.py); attention_conv is also measured at SD-Turbo's, where the program uses
something else. Unfused is what unfused.py has, in attention with the fastest of torch's ways.

First every kernel's result, in memory that was filled with NaN, has to agree with the reference in float32. Then each
way is a CUDA graph of 16 to 64 calls, so that launches cost the host nothing, and the graphs take turns. Within a graph
each call has a copy of the weights of its own, together larger than the second-level cache, since in a frame weights
come from memory; pictures stay where they are, as if the layer before had just written them. Times are a call's.

--fp8 takes the calls of the same models in e4m3 that read or write it. torch's operations know no e4m3: unfused is then
what they do in bf16.

--smoke does all that on tiny networks, also on a CPU, where the figures mean nothing.
"""

import argparse
import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from call_times import rotated, turns
from instantvision import kernels
from instantvision.kernels.token_reference import E4M3_MAX
from instantvision.pipeline.bench import Spread
from instantvision.pipeline.device import choose_device
from instantvision.pipeline.eight_bit import E4M3
from instantvision.pipeline.machine import describe_machine
from layer_cases import SEED, Case, Way, all_cases, size_bytes
from recorded_calls import tensors
from roofline import COPY, LINEAR, Ceilings

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"
# bfloat16 keeps 8 bits, and the largest of many sums is off by a few of the last one; the interpreter adds up in
# float32 and another order. e4m3 rounds to one of eight numbers between two powers of two, so by up to a sixteenth.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 2e-2, torch.float32: 1e-4, E4M3: 7e-2}
# What an H100 does at best in products of e4m3.
E4M3_TFLOPS = 1331.0
ATTENTIONS = ("attention", "attention_conv", "cross_attention")
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a case. Times in us for a call; bytes are counted, and written ones include what is intermediate.

    `share` is the floor, of all bytes and operations at the ceilings, over the median. `chosen` is what the program
    uses there.
    """

    kernel: str
    where: str
    shape: str
    times: int
    chosen: str
    error: float
    ours_us: Spread
    unfused_us: Spread
    unfused_by: str
    speedup: float
    tbps: float
    tflops: float
    floor_us: float
    share: float
    written_mb: float
    unfused_written_mb: float


class Written(TorchDispatchMode):
    """Adds up the bytes that operations give memory to or write again."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(map(size_bytes, tensors(result)))
        return result


@torch.inference_mode()
def check(case: Case, dtype: torch.dtype) -> float:
    """The largest error of a kernel's results, over the largest value; NaN if something was not written."""
    expected, errors = _settled(case.kernel, case.exact()), []
    for name, way in (("the kernel", case.ours), ("the unfused sequence", case.unfused)):
        with _poisoned():
            results = tensors(way())
        limits = [E4M3_MAX if result.dtype == E4M3 else math.inf for result in results]
        errors.append(max(map(_error, _settled(case.kernel, results), expected, limits)))
        if not errors[-1] <= tolerance(case, dtype):
            log.error("%s %s: %s is off by %.1e", case.kernel, case.shape, name, errors[-1])
    return errors[0]


def tolerance(case: Case, dtype: torch.dtype) -> float:
    """Of a case's results, over the largest value."""
    return TOLERANCES[E4M3 if case.in_e4m3 else dtype]


@torch.inference_mode()
def measure(case: Case, error: float, device: torch.device, ceilings: Ceilings) -> Row:
    """Time a case's ways in turns."""
    ways: dict[str, list[Callable[[], object]]] = {"ours": [*rotated(case.ours)]}
    for name, within in _variants(case, device):
        ways[name] = [partial(_within, within, way) for way in rotated(case.unfused)]
    spreads = {name: Spread.of(times) for name, times in turns(ways, device).items()}
    ours = spreads.pop("ours")
    fastest = min(spreads, key=lambda name: spreads[name].median)
    results = tensors(case.ours())
    moved = sum(map(size_bytes, tensors(case.ours.arguments))) + sum(map(size_bytes, results))
    flops = _flops(case.exact)
    if case.multiplies_e4m3:
        ceilings = replace(ceilings, matmul_tflops=E4M3_TFLOPS)
    floor_us = max(ceilings.floor_us(COPY, moved, 0), ceilings.floor_us(LINEAR, 0, flops))
    return Row(
        kernel=case.kernel,
        where=case.where,
        shape=case.shape,
        times=case.times,
        chosen=_chosen(case, device),
        error=error,
        ours_us=ours,
        unfused_us=spreads[fastest],
        unfused_by=fastest,
        speedup=spreads[fastest].median / ours.median,
        tbps=moved / ours.median / 1e6,
        tflops=flops / ours.median / 1e6,
        floor_us=floor_us,
        share=floor_us / ours.median,
        written_mb=_written(case.ours) / 1e6,
        unfused_written_mb=_written(case.unfused) / 1e6,
    )


def _variants(case: Case, device: torch.device) -> Iterator[tuple[str, SDPBackend | None]]:
    """Ways to do the unfused work that this device has."""
    if case.kernel not in ATTENTIONS:
        yield "torch", None
        return
    for name, backend in BACKENDS.items():
        try:
            _within(backend, case.unfused)
        except RuntimeError as error:
            log.debug("no attention by %s on %s: %s", name, device, error)
        else:
            yield name, backend


def _within(backend: SDPBackend | None, way: Way) -> object:
    with sdpa_kernel(backend) if backend is not None else nullcontext():
        return way()


def _chosen(case: Case, device: torch.device) -> str:
    """What the program uses at this shape."""
    if not case.times:
        return "unfused"
    if case.kernel == "attention":
        return "the fastest"
    if case.kernel == "conv3x3" and device.type == "cuda":
        from instantvision.kernels.library_conv import unfused_way

        given = case.ours.arguments
        form = given["framed"], given["weight"], given.get("stride", 1)
        if not given.get("activation") and not given.get("framed_out") and (way := unfused_way(*form)):
            return f"{way}, finish"
    return "ours"


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    head = (
        "kernel", "model", "shapes", "calls", "chosen", "ours p50 / p95, µs", "unfused, µs", "by", "speed-up", "TB/s",
        "TFLOP/s", "of the ceiling", "written, MB", "unfused",
    )  # fmt: skip
    cells = [
        (
            row.kernel, row.where, row.shape, str(row.times), row.chosen,
            f"{row.ours_us.median:.1f} / {row.ours_us.p95:.1f}",
            f"{row.unfused_us.median:.1f} / {row.unfused_us.p95:.1f}", row.unfused_by, f"{row.speedup:.2f}",
            f"{row.tbps:.2f}", f"{row.tflops:.0f}", f"{row.share:.0%}", f"{row.written_mb:.2f}",
            f"{row.unfused_written_mb:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    rule = (*["---"] * 3, "---:", "---", *["---:"] * 2, "---", *["---:"] * 6)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *cells))


def _settled(kernel: str, result: Any) -> list[Tensor]:
    """Results of a kernel and of its reference alike: attention's parts and moments added up."""
    found = [tensor.float() for tensor in tensors(result)]
    if kernel in ("conv3x3", "conv3x3_doubled", "conv3x3_shallow", "finish", "linear"):
        return [*found[:1], *(moments.sum(1) for moments in found[1:])]
    if kernel == "channel_moments" or (kernel == "attention_conv" and found[0].dim() == 4):
        return [found[0].sum(1)]
    return found


def _error(found: Tensor, expected: Tensor, limit: float = math.inf) -> float:
    """Over the largest expected value; what is beyond `limit` is expected to be it."""
    expected = expected.clamp(-limit, limit)
    if found.shape != expected.shape:
        # The unfused results have no frame.
        expected = expected[..., 1:-1, 1:-1]
    if found.shape != expected.shape:
        return math.nan
    # The small number is for what is all zeros, such as the motion of a picture that stands still.
    return ((found - expected).abs().max() / (expected.abs().max() + 1e-6)).item()


@contextmanager
def _poisoned() -> Iterator[None]:
    """Memory that nobody wrote to reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _flops(way: Way) -> int:
    with FlopCounterMode(display=False) as counter:
        way()
    return int(counter.get_total_flops())


def _written(way: Way) -> int:
    with Written() as counter:
        way()
    return counter.total


@torch.inference_mode()
def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="kernels whose name has this in it")
    parser.add_argument("--fp8", action="store_true", help="the calls that read or write e4m3")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; writes no file")
    parser.add_argument("--commit", help="that is measured, in a copy that git knows nothing of")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(SEED)
    choice = choose_device()
    device, dtype = choice.device, choice.dtype
    wanted = [
        case
        for case in all_cases(device, dtype, smoke=args.smoke, fp8=args.fp8)
        if not args.only or args.only in case.kernel
    ]
    if device.type == "cuda":
        kernels.choose("cuda").compile_all(lambda: [case.ours() for case in wanted])
    checked = [(case, check(case, dtype)) for case in wanted]
    # NaN is no number up to the tolerance either.
    right = [(case, error) for case, error in checked if error <= tolerance(case, dtype)]
    worst = max((error for _, error in right), default=0.0)
    print(
        f"{len(right)} of {len(wanted)} kernels and shapes agree with the reference, the worst to {worst:.1e}"
    )
    rows = [measure(case, error, device, Ceilings()) for case, error in right]
    print(table(rows))
    if not args.smoke:
        for row in rows:
            if row.speedup < 1 and row.chosen == "ours":
                print(f"slower than unfused where the program uses it: {row.kernel} {row.where} {row.shape}")
        print(_write(rows, device, args.commit, "-e4m3" if args.fp8 else ""))
    return 0 if len(right) == len(wanted) else 1


def _write(rows: Sequence[Row], device: torch.device, commit: str | None, ending: str) -> Path:
    machine = describe_machine(device, commit)
    name = re.sub(r"[^a-z0-9]+", "-", machine.device.lower()).strip("-")
    path = RESULTS / f"layers-{machine.date[:10]}-{name}{ending}.json"
    report = {
        "machine": dataclasses.asdict(machine),
        "ceilings": dataclasses.asdict(Ceilings()),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
