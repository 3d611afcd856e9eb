"""One or several GPUs: who am I, and how do all agree.

Started by torchrun every process has RANK, LOCAL_RANK and WORLD_SIZE; started plainly it is alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


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

    def say(self, text: str) -> None:
        """Print once, not once a process."""
        if self.rank == 0:
            print(text, flush=True)

    def mean(self, values: Tensor) -> Tensor:
        """Average over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def as_in_first(self, value: float) -> float:
        """The value of the first process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.broadcast(shared, 0)
        return shared.item()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """One exchange of all gradients: the networks are small, one large message beats many buckets."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


@contextmanager
def joined_world() -> Iterator[World]:
    """Set up what torchrun announced; a lone process on cuda:0, or the CPU, otherwise."""
    torch.set_float32_matmul_precision("high")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not torch.cuda.is_available():
        yield World(0, 1, torch.device("cpu"))
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    if size > 1:
        dist.init_process_group("nccl", device_id=device)
    try:
        yield World(rank, size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()
