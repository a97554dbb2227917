"""One rank or many: the process group that torchrun's environment describes, and what its ranks exchange."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from convnext.errors import RunError


@dataclass(frozen=True)
class Ranks:
    """The ranks of a distributed training, as one of them sees them; by default a single one.

    Attributes:
        rank: this process's rank.
        world_size: the number of ranks.
        local_rank: this process's rank on its machine, and the index of its GPU.
        local_world_size: the number of ranks on this machine, which share its cores.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for rank 0, which writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum each value over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have arrived here."""
        if self.world_size > 1:
            dist.barrier()


SINGLE_RANK = Ranks()


def gather(value: Any) -> list[Any]:
    """The values of all ranks, by rank; of this process alone where there is no process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_launched() -> bool:
    """True if torchrun, or another launcher that sets its variables, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def is_main_rank() -> bool:
    """True for rank 0, also before and after the process group exists."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes; without torchrun, this process is the only rank.

    Raises:
        RunError: the ranks cannot connect, or another rank has exited, so that this one cannot continue.
    """
    if not is_launched():
        yield Ranks()
        return
    uses_gpu = device != "cpu" and torch.cuda.is_available()
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if uses_gpu:
        torch.cuda.set_device(local_rank)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size))
    try:
        dist.init_process_group("nccl" if uses_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the ranks cannot connect ({error}): check torchrun's addresses and ports") from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_world_size)
    except RuntimeError as error:
        if not is_connection_error(error):
            raise
        raise RunError(
            f"another rank of this training has exited, rank {dist.get_rank()} cannot continue: see the other rank's "
            "message; the same command resumes from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def is_connection_error(error: RuntimeError) -> bool:
    """True if an error comes from the connection to another rank."""
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)
