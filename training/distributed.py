"""One or several GPUs: who am I, how far are we, and do all agree.

Started by torchrun every process has RANK, LOCAL_RANK and WORLD_SIZE; started plainly it is alone.
"""

import math
import os
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """This process among all.

    Args:
        rank: 0..size-1; rank 0 writes files and prints.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> "World":
        """Set up what torchrun announced; a lone process on cuda:0, or the CPU, otherwise."""
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if not torch.cuda.is_available():
            return cls(rank, 1, torch.device("cpu"))
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        if size > 1:
            dist.init_process_group("nccl", device_id=device)
        return cls(rank, size, device)

    def leave(self) -> None:
        """Counterpart of join."""
        if self.size > 1:
            dist.destroy_process_group()

    def say(self, text: str) -> None:
        """Print once, not once a process."""
        if self.rank == 0:
            print(text, flush=True)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values


def average_gradients(parameters: list[nn.Parameter], world: World) -> None:
    """One exchange of all gradients: the networks are small, one large message beats many buckets."""
    if world.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = world.mean(torch.cat([g.flatten() for g in gradients]))
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class Budget:
    """Training time as the schedule's clock: the same fraction in every process, or their learning rates drift apart."""

    def __init__(self, world: World, minutes: float) -> None:
        self._world, self._seconds = world, minutes * 60
        self._start_s: float | None = None
        self._fraction = 0.0

    def fraction(self, iteration: int) -> float:
        """Share of the budget that is spent, 0..1; the clock starts at the second call, after compilation."""
        if iteration == 1:
            self._start_s = time.perf_counter()
        # Every 16 iterations where processes must agree: the exchange waits for the device, which must not run dry.
        if self._start_s is not None and (self._world.size == 1 or iteration % 16 == 0):
            self._fraction = self._agreed((time.perf_counter() - self._start_s) / self._seconds)
        return min(1.0, self._fraction)

    def _agreed(self, fraction: float) -> float:
        if self._world.size == 1:
            return fraction
        shared = torch.tensor(fraction, device=self._world.device)
        dist.broadcast(shared, 0)
        return shared.item()


def learning_rate(fraction: float, iteration: int, peak: float) -> float:
    """Linear warm-up over 300 iterations, then flat for half of the budget and down to 1 % along a cosine.

    Args:
        fraction: of the budget, 0..1.
        iteration: from 0.
        peak: highest rate.
    """
    decay = max(0.0, (fraction - 0.5) / 0.5)
    cosine = 0.5 * (1 + math.cos(math.pi * decay))
    return peak * min(1.0, (iteration + 1) / 300) * max(0.01, cosine)


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
