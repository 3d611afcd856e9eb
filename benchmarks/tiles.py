"""Which tiles are fastest for the convolutions of a frame: candidates beside the program's own choice, in turns.

    python benchmarks/tiles.py [--model mini,sd-turbo,sdxl] [--fp8] [--only TEXT]

For whoever changes `_blocks` in kernels/conv3x3.py: every convolution of a frame for which it is asked is computed with
each candidate, compared with the program's own result, and timed as in layers.py. Prints a line a convolution, those
where most is lost first, and what all losses add up to. Needs a GPU.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from call_times import rotated, turns
from instantvision import kernels
from instantvision.pipeline.device import choose_device
from layer_cases import MODELS, SEED, Case, Way, all_cases

# Rows, columns and warps; each with these numbers of pipeline stages.
TILES = (
    (64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 4), (128, 128, 8), (256, 64, 4), (256, 64, 8),
    (256, 128, 8), (64, 256, 4), (128, 256, 8),
)  # fmt: skip
STAGES = (3, 4)
# Of the norm of the program's own result: both round the same sums.
TOLERANCE = 1e-2
OWN = "own"
# Candidates that a line names.
FASTEST = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of a convolution: the program's choice and the fastest, with the time of a call of each in us.

    Wrong are candidates whose result was another; those that want more of a GPU than there is are left out.
    """

    where: str
    shape: str
    calls: int
    own: str
    own_us: float
    fastest: tuple[tuple[str, float], ...]
    wrong: tuple[str, ...]

    @property
    def lost_us(self) -> float:
        """In a frame with one evaluation."""
        return self.calls * (self.own_us - min([self.own_us, *(median for _, median in self.fastest)]))


@contextmanager
def tiled(blocks: Any) -> Iterator[list[Any]]:
    """Within, `_blocks` gives these, or with None what it always does; what it gave is in the list."""
    from instantvision.kernels import conv3x3

    choose, given = conv3x3._blocks, list[Any]()

    def chosen(*form: int) -> Any:
        given.append(choose(*form) if blocks is None else blocks)
        return given[-1]

    vars(conv3x3)["_blocks"] = chosen
    try:
        yield given
    finally:
        vars(conv3x3)["_blocks"] = choose


def with_tile(function: Callable[..., Any], blocks: Any, **arguments: Any) -> Any:
    """Call a convolution with a tile."""
    with tiled(blocks):
        return function(**arguments)


def candidates(own: Any) -> dict[str, Any]:
    """All tiles, with the depth of the program's own, by name."""
    found = [
        own._replace(rows=rows, columns=columns, warps=warps, stages=stages)
        for rows, columns, warps in TILES
        for stages in STAGES
    ]
    return {name(blocks): blocks for blocks in found}


def name(blocks: Any) -> str:
    """Rows x columns x depth, warps and stages."""
    return "{}x{}x{} {}w {}s".format(*blocks)


def asked(case: Case) -> Any:
    """The program's choice for a convolution, or None if it takes another way than tiles of its own choosing."""
    with tiled(None) as given:
        case.ours()
    return given[0] if given else None


def tried(case: Case, own: Any, device: torch.device) -> Trial:
    """Compare and time all candidates."""
    function, arguments = case.ours.function, case.ours.arguments
    expected = _first(case.ours()).float()
    ways, wrong = {OWN: case.ours}, list[str]()
    for candidate, blocks in candidates(own).items():
        way = Way(partial(with_tile, function, blocks), arguments)
        try:
            error = ((_first(way()).float() - expected).norm() / expected.norm()).item()
        # Triton has several ways of saying that a tile wants more of a GPU than there is.
        except Exception:  # noqa: BLE001, S112
            continue
        # Written so that NaN is wrong.
        if error <= TOLERANCE:
            ways[candidate] = way
        else:
            wrong.append(f"{candidate} ({error:.1e})")
    times = turns({key: rotated(way) for key, way in ways.items()}, device)
    medians = {key: statistics.median(each) for key, each in times.items()}
    others = [(key, median) for key, median in medians.items() if key != OWN]
    return Trial(
        where=case.where,
        shape=case.shape,
        calls=case.times,
        own=name(own),
        own_us=medians[OWN],
        fastest=tuple(sorted(others, key=itemgetter(1))[:FASTEST]),
        wrong=tuple(wrong),
    )


def table(trials: Iterable[Trial]) -> str:
    """Lines of text, the largest loss first."""
    ordered = sorted(trials, key=lambda trial: trial.lost_us, reverse=True)
    lines = [
        f"{trial.lost_us:7.1f} us lost  {trial.calls:3} x {trial.own_us:6.1f} us by {trial.own:20} "
        f"{trial.where} {trial.shape}: "
        + ", ".join(f"{median:.1f} by {candidate}" for candidate, median in trial.fastest)
        + "".join(f", wrong: {each}" for each in trial.wrong)
        for trial in ordered
    ]
    return "\n".join([*lines, f"{sum(trial.lost_us for trial in ordered):7.1f} us lost in all"])


def _first(result: Any) -> torch.Tensor:
    picture: torch.Tensor = result[0]
    return picture


@torch.inference_mode()
def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd-turbo,sdxl", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--fp8", action="store_true", help="the convolutions in e4m3")
    parser.add_argument("--only", default="", help="convolutions whose shapes and options have this in them")
    args = parser.parse_args()
    if unknown := set(args.model.split(",")) - MODELS.keys():
        parser.error(f"--model {sorted(unknown)[0]} is none of {', '.join(MODELS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(SEED)
    choice = choose_device()
    if choice.device.type != "cuda":
        sys.stderr.write("no GPU was found, and only a GPU has tiles\n")
        return 1
    models = args.model.split(",")
    found = [
        (case, own)
        for case in all_cases(choice.device, choice.dtype, smoke=False, fp8=args.fp8, models=models)
        if case.kernel == "conv3x3" and args.only in case.shape and (own := asked(case)) is not None
    ]
    ways = [
        partial(with_tile, case.ours.function, blocks, **case.ours.arguments)
        for case, own in found
        for blocks in candidates(own).values()
    ]
    # A tile that wants more of a GPU than there is raises, after all others have been compiled; it does so again below.
    with suppress(Exception):
        kernels.choose("cuda").compile_all(lambda: [way() for way in ways])
    print(table([tried(case, own, choice.device) for case, own in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
