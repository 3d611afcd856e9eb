"""The training loop both networks share: a time budget, an averaged copy to ship, and a checkpoint every minute.

Knows nothing of pictures or networks: a loss and a way to save are handed in.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from instantvision.training.distributed import World
from instantvision.training.painters import PAINTERS

SAVE_EVERY_S = 60
PRINT_EVERY = 200
WARM_UP = 300


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one run does; see --help for the meaning."""

    photos: Path
    out: Path
    minutes: float
    crops: int
    batch: int
    styles: tuple[str, ...]
    resume: bool
    compile: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the weights are moved.

    Args:
        name: for the progress lines.
        peak_rate: highest learning rate.
        weight_decay: of AdamW.
        averaging: decay of the moving average that is shipped.
        minutes: training time, after compilation.
        milestone: share of the budget at which `fit` calls back once, and starts the average anew.
    """

    name: str
    peak_rate: float
    weight_decay: float
    averaging: float
    minutes: float
    milestone: float = math.inf


class MovingAverage:
    """Exponential moving average of a module's parameters: what is shipped."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._sources = [p.detach() for p in module.parameters()]
        self._targets = list(self.values.values())

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the present parameters; the average is short while training is young."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(self._targets, self._sources, 1 - decay)


def learning_rate(fraction: float, iteration: int, peak: float) -> float:
    """Linear warm-up, then flat for half of the budget and down to 1 % along a cosine.

    Args:
        fraction: of the budget, 0..1.
        iteration: from 0.
        peak: highest rate.
    """
    decay = max(0.0, (fraction - 0.5) / 0.5)
    cosine = 0.5 * (1 + math.cos(math.pi * decay))
    return peak * min(1.0, (iteration + 1) / WARM_UP) * max(0.01, cosine)


def fit(
    module: nn.Module,
    loss: Callable[[], Tensor],
    save: Callable[[MovingAverage], None],
    world: World,
    plan: Plan,
    at_milestone: Callable[[], None] = lambda: None,
) -> None:
    """Minimise `loss` until the budget is spent.

    Args:
        module: whose parameters are moved, the same in every process at the start.
        loss: of the next batch of this process.
        save: called with the averaged parameters, in the first process alone.
        world: all processes.
        plan: rates and times.
        at_milestone: see Plan.
    """
    parameters, average = list(module.parameters()), MovingAverage(module, plan.averaging)
    optimiser = torch.optim.AdamW(
        parameters, lr=plan.peak_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )
    clock, recent = Budget(world, plan.minutes), torch.zeros((), device=world.device)
    iteration, saved_s, due = 0, time.perf_counter(), plan.milestone <= 1
    while (fraction := clock.fraction(iteration)) < 1 or due:
        if due and fraction >= plan.milestone:
            at_milestone()
            average, due = MovingAverage(module, plan.averaging), False
        value = loss()
        optimiser.param_groups[0]["lr"] = learning_rate(fraction, iteration, plan.peak_rate)
        _step(value, parameters, optimiser, world)
        average.update(iteration)
        recent.lerp_(value.detach(), 0.02 if iteration else 1.0)
        if iteration % PRINT_EVERY == 0:
            world.say(f"{plan.name} {iteration:6d}  {100 * fraction:5.1f} %  loss {recent.item():.4f}")
        if world.rank == 0 and time.perf_counter() - saved_s > SAVE_EVERY_S:
            saved_s = time.perf_counter()
            save(average)
        iteration += 1
    if world.rank == 0:
        save(average)
    world.say(f"{plan.name} done: {iteration} iterations in each of {world.size} processes")


def _step(
    value: Tensor, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, world: World
) -> None:
    optimiser.zero_grad()
    value.backward()
    world.average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


class Budget:
    """Training time as the schedule's clock.

    Every process sees the same fraction, or their learning rates, and then their weights, would drift apart.
    """

    def __init__(self, world: World, minutes: float) -> None:
        self._world, self._seconds = world, minutes * 60
        self._start_s: float | None = None
        self._fraction = 0.0

    def fraction(self, iteration: int) -> float:
        """Share of the budget that is spent, 0..1; the clock starts at the second call, after compilation."""
        if iteration == 1:
            self._start_s = time.perf_counter()
        # Every 16 iterations where processes must agree: asking waits for the device, which must not run dry.
        if self._start_s is not None and (self._world.size == 1 or iteration % 16 == 0):
            spent = (time.perf_counter() - self._start_s) / self._seconds
            self._fraction = self._world.as_in_first(spent)
        return min(1.0, self._fraction)


def recipe_from_command_line(description: str, *, minutes: float, crops: int, batch: int) -> Recipe:
    """Read a training command's arguments; the parameters are its defaults for one GPU of 80 GB."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of training photos")
    parser.add_argument("out", type=Path, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time, after compilation")
    parser.add_argument("--crops", type=int, default=crops, help="painted crops in each process")
    parser.add_argument("--batch", type=int, default=batch, help="samples a process and iteration")
    parser.add_argument("--styles", default=",".join(PAINTERS), help="painters to learn, by name")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="skip torch.compile")
    parser.add_argument(
        "--smoke", action="store_true", help="a minute on a CPU: does it run? The weights are worthless"
    )
    args = vars(parser.parse_args())
    args["styles"] = tuple(args["styles"].split(","))
    if args.pop("smoke"):
        styles = ("photo", "ink", "cyberpunk")
        args |= {"minutes": 0.1, "crops": 2, "batch": 2, "compile": False, "styles": styles}
    if unknown := set(args["styles"]) - set(PAINTERS):
        parser.error(f"no painter {sorted(unknown)[0]!r}, there are {', '.join(PAINTERS)}")
    args["out"].mkdir(parents=True, exist_ok=True)
    return Recipe(**args)
