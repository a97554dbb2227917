"""One process or many: what torchrun's environment says, and the few things that the processes tell each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from convnext.errors import RunError


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes:
        rank: this process's number, from 0.
        count: all of them.
        local_rank: this process's number on its machine; it takes the GPU of that number.
        local_count: those on this machine, which share its cores.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes of each value."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()


def launched() -> bool:
    """Whether torchrun, or another launcher with its environment, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def is_first() -> bool:
    """Whether this process, of those that torchrun started, is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; without it, this process is the only one.

    Raises:
        RunError: another process has ended, so that this one cannot go on.
    """
    if not launched():
        yield Processes()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_count))
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the processes cannot find each other ({error}): check torchrun's addresses and ports"
        ) from error
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), local_rank, local_count)
    except RuntimeError as error:
        if not of_a_lost_process(error):
            raise
        raise RunError(
            f"another process of this training has ended, process {dist.get_rank()} cannot go on: see what it said; "
            "the same command goes on from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def of_a_lost_process(error: RuntimeError) -> bool:
    """Whether an error comes from the connection to another process."""
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)
