"""Ours beside the usual stack, in one process and in turns, on the same weights, sizes and noise.

    python benchmarks/peers.py [--work mini,sd-turbo,sdxl,sweep] [--budget S] [--skip-compile] [--out FILE]

The methods: `ours` is the engine with its kernels; `ours fp8` the same with products in e4m3, on a GPU, whose error is
told and not refused; `eager` is diffusers' classes in channels_last; `compiled` is these with torch.compile and
everything in one CUDA graph. mini's UNet runs as diffusers' class too; its autoencoder, which diffusers does not have,
as plain torch. Before anything is timed the results are compared: the relative error of ours to diffusers in float32
may be at most twice that of diffusers in the dtype that is measured, or 1 %.

Needs diffusers, and an otherwise idle GPU. The file is written anew after each work; the exit code is 1 if one failed.
"""

import argparse
import gc
import importlib
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from instantvision.pipeline.device import choose_device
from instantvision.pipeline.machine import describe_machine, energy_counter
from methods import MemoryMeter, Method, OutOfTime, ours, relative_error, theirs, time_limit
from peer_models import DiffusersModel, PeerParts
from subjects import GROUPS, SUBJECTS, Make, Work
from turns import Plan, take_turns

RESULTS = Path(__file__).parent / "results"
# Two orders of the same sums differ by about as much as each differs from float32; a wrong layer by far more.
ERROR_RATIO_MAX = 2.0
# A frame is compared as bytes, where a difference of one is about this much.
ERROR_FLOOR = 0.01
FP8 = "ours fp8"
# Compiling may take this share of a work's time; the rest is for the measurement.
COMPILE_SHARE = 0.8


class Refused(Exception):
    """The results differ, so their times cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure, the same for all works.

    Args:
        device, dtype: of both sides.
        compile_mode: of the peer; None leaves the compiled peer out.
        budget_s: for one work, compiling included.
        plan: of the turns.
    """

    device: torch.device
    dtype: torch.dtype
    compile_mode: str | None
    budget_s: float
    plan: Plan


class Bench:
    """One subject on both sides, with what all its works share.

    Args:
        make: gives the subject.
        options: of all works.
    """

    def __init__(self, make: Make, options: Options) -> None:
        self._options = options
        meter = MemoryMeter(options.device)
        self._subject = make(options.device, options.dtype)
        ours_mb = meter.held_mb()
        meter = MemoryMeter(options.device)
        self._peer = DiffusersModel(self._subject.ours, self._subject.weights, options.dtype)
        theirs_mb = meter.held_mb()
        self._weights_mb = {"ours": ours_mb, "eager": theirs_mb, "compiled": theirs_mb}
        self._eager = PeerParts(self._peer, None)
        self._compiled: PeerParts | None = None

    @torch.no_grad()
    def measure(self, work: Work, entry: dict[str, Any]) -> None:
        """Compare and time the methods of one work, and write into `entry` what is known as soon as it is.

        Raises:
            Refused: the results differ by more than arithmetic explains.
        """
        end_s = time.perf_counter() + self._options.budget_s
        methods: dict[str, Method] = {}
        with ExitStack() as closing:
            for name in ("ours", "eager"):
                methods[name] = self._build(name, work, entry, closing)
            expected = self._expected(work)
            entry["comparison"] = compare(methods, expected)
            if FP8 in work.methods and self._options.device.type == "cuda":
                methods[FP8] = self._build(FP8, work, entry, closing)
                error = entry["comparison"][FP8] = relative_error(methods[FP8].output(), expected)
                print(f"  relative error of {FP8}: {error:.2e}", flush=True)
            if "compiled" in work.methods and self._options.compile_mode:
                compile_s = COMPILE_SHARE * (end_s - time.perf_counter())
                if compiled := self._try_compiled(work, entry, closing, compile_s):
                    methods["compiled"] = compiled
                    entry["comparison"]["compiled"] = relative_error(compiled.output(), expected)
            entrants = [method.entrant for name, method in methods.items() if name in work.methods]
            with energy_counter(self._options.device) as counter:
                for name, figures in take_turns(entrants, self._options.plan, counter).items():
                    entry["methods"][name] |= asdict(figures)

    def _build(self, name: str, work: Work, entry: dict[str, Any], closing: ExitStack) -> Method:
        meter, started_s = MemoryMeter(self._options.device), time.perf_counter()
        method = self._method(name, work)
        closing.callback(method.close)
        build_s = time.perf_counter() - started_s
        weights_mb, working_mb = self._weights_mb.get(name), meter.peak_mb(method.entrant.once)
        entry["methods"][name] = {
            "build_s": build_s,
            "weights_mb": weights_mb,
            "peak_memory_mb": None if weights_mb is None or working_mb is None else weights_mb + working_mb,
        }
        return method

    def _method(self, name: str, work: Work) -> Method:
        if name == FP8:
            return ours(self._subject.fp8(), work, FP8)
        return ours(self._subject.ours, work) if name == "ours" else theirs(name, self._parts(name), work)

    def _parts(self, name: str) -> PeerParts:
        if name == "eager":
            return self._eager
        self._compiled = self._compiled or PeerParts(self._peer, self._options.compile_mode)
        return self._compiled

    def _expected(self, work: Work) -> Tensor:
        """diffusers' result in float32, all of it."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        try:
            model = DiffusersModel(self._subject.ours, self._subject.weights, torch.float32)
            return theirs("eager", PeerParts(model, None), work).output()
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def _try_compiled(
        self, work: Work, entry: dict[str, Any], closing: ExitStack, seconds: float
    ) -> Method | None:
        """The compiled peer, or a note why there is none; the others are measured all the same."""
        try:
            # What the limit interrupts must not be an import: its modules would stay half done.
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module("torch._inductor.compile_fx")
            with time_limit(seconds):
                return self._build("compiled", work, entry, closing)
        except OutOfTime:
            error = f"not finished: compiling took more than {seconds:.0f} s"
        # Whatever a compiler says about the peer, ours is still to be measured.
        except Exception as failure:  # noqa: BLE001
            error = f"{type(failure).__name__}: {failure}"
        print(f"  compiled: {error.splitlines()[0]}", flush=True)
        entry["methods"]["compiled"] = {"error": error}
        self._compiled = None
        torch._dynamo.reset()
        return None


def compare(methods: Mapping[str, Method], expected: Tensor) -> dict[str, float]:
    """The methods' relative errors, and the limit that ours was held to.

    Raises:
        Refused: ours is beyond it.
    """
    errors = {name: relative_error(method.output(), expected) for name, method in methods.items()}
    limit = max(ERROR_FLOOR, ERROR_RATIO_MAX * errors["eager"])
    told = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
    print(f"  relative error to diffusers in float32: {told}, limit for ours {limit:.2e}", flush=True)
    # Written so that NaN is refused.
    if not errors["ours"] <= limit:
        raise Refused(f"relative errors to float32 are {told}, expected at most {limit:.2e} of ours")
    return errors | {"limit": limit}


def run(groups: Sequence[tuple[Work, ...]], options: Options, path: Path, commit: str | None = None) -> bool:
    """Do all works and write the file after each; whether all went well.

    Args:
        groups: works of one subject each.
        options: of all works.
        path: of the file.
        commit: that is measured, in a copy that git knows nothing of.
    """
    # Peers too may have cuDNN choose its algorithms by measuring them.
    torch.backends.cudnn.benchmark = True
    machine = asdict(describe_machine(options.device, commit))
    report = {"machine": machine, "options": _plain(options), "works": {}}
    for works in groups:
        bench: Bench | None = None
        for work in works:
            print(work, flush=True)
            entry: dict[str, Any] = {"work": asdict(work), "methods": {}, "error": None}
            report["works"][str(work)] = entry
            try:
                bench = bench or Bench(SUBJECTS[work.subject], options)
                bench.measure(work, entry)
            # One work must not cost the others on a machine that is lent by the minute.
            except Exception as failure:  # noqa: BLE001
                traceback.print_exc()
                entry["error"] = f"{type(failure).__name__}: {failure}"
            gc.collect()
            print(table(entry), flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        del bench
    return not any(entry["error"] for entry in report["works"].values())


def table(entry: dict[str, Any]) -> str:
    """One work's figures as lines of text."""
    lines = [
        f"  {'':10}{'device p50':>11}{'p95':>9}{'host p50':>10}{'p95':>9}{'fps':>9}{'J':>8}{'MiB':>8}{'n':>6}"
    ]
    for name, method in entry["methods"].items():
        if "host_ms" not in method:
            continue
        device, host = method["device_ms"], method["host_ms"]
        energy, memory = method["joules_per_frame"], method["peak_memory_mb"]
        lines.append(
            f"  {name:10}{device['median']:11.3f}{device['p95']:9.3f}{host['median']:10.3f}{host['p95']:9.3f}"
            f"{method['fps']:9.1f}{'-' if energy is None else format(energy, '.3f'):>8}"
            f"{'-' if memory is None else format(memory, '.0f'):>8}{method['samples']:6}"
        )
    return "\n".join(lines if len(lines) > 1 else [f"  {entry['error'] or 'nothing was timed'}"])


def _plain(options: Options) -> dict[str, Any]:
    return asdict(options) | {"device": str(options.device), "dtype": str(options.dtype)}


def _path(device: torch.device) -> Path:
    machine = describe_machine(device)
    name = re.sub(r"[^a-z0-9]+", "-", machine.device.lower()).strip("-")
    return RESULTS / f"peers-{machine.date[:10]}-{name}.json"


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", default="mini,sd-turbo,sdxl", help=f"of {', '.join(GROUPS)}")
    parser.add_argument(
        "--budget", type=float, default=150.0, help="seconds for one work, compiling included"
    )
    parser.add_argument("--skip-compile", action="store_true", help="leave the compiled peer out")
    parser.add_argument("--compile-mode", default="max-autotune-no-cudagraphs", help="of the compiled peer")
    parser.add_argument(
        "--samples", type=int, default=Plan.samples, help="timed calls of each method, at most"
    )
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of the timed calls of one work")
    parser.add_argument("--commit", help="that is measured, in a copy that git knows nothing of")
    parser.add_argument("--out", type=Path, help="JSON file; default: in benchmarks/results")
    args = parser.parse_args()
    if unknown := set(args.work.split(",")) - GROUPS.keys():
        parser.error(f"--work {sorted(unknown)[0]} is none of {', '.join(GROUPS)}")
    # Warns at every cast of a whole model that no part of it must stay in float32.
    diffusers_logging.set_verbosity_error()
    choice = choose_device()
    options = Options(
        device=choice.device,
        dtype=choice.dtype,
        compile_mode=None if args.skip_compile else args.compile_mode,
        budget_s=args.budget,
        plan=Plan(samples=args.samples, seconds=args.seconds),
    )
    path = args.out or _path(choice.device)
    fine = run([GROUPS[name] for name in args.work.split(",")], options, path, args.commit)
    print(path)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
