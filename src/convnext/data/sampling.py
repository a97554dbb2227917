"""Which image comes when: the order of an epoch, its division into steps, and of a step over processes and parts."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from convnext.errors import UsageError
from convnext.randomness import position_seed


class Draw(NamedTuple):
    """An image to read: its number, the epoch, and which of its repetitions; all that its variation is seeded by."""

    image: int
    epoch: int
    repeat: int


class TrainingOrder:
    """One process's part of every step of an epoch, in an order that the seed decides.

    Args:
        count: images there are.
        batch_size: images a step; all there are, where there are fewer.
        repeats: times that each drawn image comes.
        seed: of the order.
        rank: this process among ``processes``.
        processes: all of them.
        accumulate: parts of a process's share of a step.

    Raises:
        UsageError: a step cannot be divided evenly.
    """

    def __init__(
        self, count: int, batch_size: int, repeats: int, seed: int, rank: int, processes: int, accumulate: int
    ) -> None:
        check_batch_size(batch_size)
        self.parts = processes * accumulate
        if batch_size % self.parts:
            raise UsageError(
                f"batch_size is {batch_size}, needs a multiple of {self.parts} ({processes} processes, each "
                f"accumulating {accumulate}): pass --batch-size {-(-batch_size // self.parts) * self.parts}"
            )
        if count < self.parts:
            raise UsageError(f"{count} training images cannot be divided over {self.parts} parts: use fewer processes")
        self.batch_size = min(batch_size, count // self.parts * self.parts)
        self.steps = count // self.batch_size
        self.count, self.repeats, self.seed = count, repeats, seed
        self.own = range(rank, self.parts, processes)  # the parts of a step that are this process's
        self.epoch, self.skip = 0, 0

    def positions(self) -> Iterator[tuple[int, int, int]]:
        """Epoch, step and part of each batch."""
        return ((self.epoch, step, part) for step in range(self.skip, self.steps) for part in self.own)

    def __len__(self) -> int:
        return (self.steps - self.skip) * len(self.own)

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = torch.Generator().manual_seed(position_seed(self.seed, self.epoch))
        indices = torch.randperm(self.count, generator=generator).tolist()
        draws = (Draw(index, self.epoch, repeat) for index in indices for repeat in range(self.repeats))
        for step in range(self.steps):
            batch = [next(draws) for _ in range(self.batch_size)]
            if step >= self.skip:
                yield from (batch[part :: self.parts] for part in self.own)


class EvaluationOrder:
    """One process's share of all images: each image is exactly one process's."""

    def __init__(self, count: int, batch_size: int, rank: int, processes: int) -> None:
        check_batch_size(batch_size)
        self.batch_size = min(batch_size, max(1, count))
        self.own = range(rank, count, processes)
        self.steps = -(-len(self.own) // self.batch_size)
        self.epoch, self.skip = 0, 0

    def positions(self) -> Iterator[tuple[int, int, int]]:
        """Epoch, step and part of each batch."""
        return ((self.epoch, step, 0) for step in range(self.skip, self.steps))

    def __len__(self) -> int:
        return self.steps - self.skip

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.skip, self.steps):
            yield [Draw(index, self.epoch, 0) for index in self.own[step * self.batch_size :][: self.batch_size]]


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch of nothing."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}, needs 1 or more")
