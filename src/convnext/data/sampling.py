"""Which image comes when: the order of an epoch, its steps, and the micro-batches of every rank."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from convnext.errors import UsageError
from convnext.randomness import position_seed


class Draw(NamedTuple):
    """An image to read: its index, the epoch, and which of its repetitions; all that its augmentation is seeded by."""

    image: int
    epoch: int
    repeat: int


class TrainingOrder:
    """One rank's micro-batches of every step of an epoch, in an order that the seed decides.

    Args:
        count: number of images.
        batch_size: images per step, over all ranks; all images, where there are fewer.
        repeats: times that each drawn image comes.
        seed: of the order.
        rank: this rank of ``world_size``.
        world_size: number of ranks.
        accumulate: micro-batches per step and rank.

    Raises:
        UsageError: a step cannot be divided evenly.
    """

    def __init__(
        self, count: int, batch_size: int, repeats: int, seed: int, rank: int, world_size: int, accumulate: int
    ) -> None:
        check_batch_size(batch_size)
        self.micro_batches = world_size * accumulate
        if batch_size % self.micro_batches:
            next_multiple = -(-batch_size // self.micro_batches) * self.micro_batches
            raise UsageError(
                f"batch_size is {batch_size}, needs a multiple of {self.micro_batches} ({world_size} ranks, each "
                f"accumulating {accumulate}): pass --batch-size {next_multiple}"
            )
        if count < self.micro_batches:
            raise UsageError(f"{count} training images cannot fill {self.micro_batches} micro-batches: use fewer ranks")
        self.batch_size = min(batch_size, count // self.micro_batches * self.micro_batches)
        self.steps = count // self.batch_size
        self.count, self.repeats, self.seed = count, repeats, seed
        self.own = range(rank, self.micro_batches, world_size)  # the micro-batches of a step that are this rank's
        self.epoch, self.skip = 0, 0

    def positions(self) -> Iterator[tuple[int, int, int]]:
        """Epoch, step and micro-batch of each batch."""
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
                yield from (batch[part :: self.micro_batches] for part in self.own)


class EvaluationOrder:
    """One rank's batches of all images, each of which belongs to exactly one rank."""

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int) -> None:
        check_batch_size(batch_size)
        self.batch_size = min(batch_size, max(1, count))
        self.own = range(rank, count, world_size)
        self.steps = -(-len(self.own) // self.batch_size)
        self.epoch, self.skip = 0, 0

    def positions(self) -> Iterator[tuple[int, int, int]]:
        """Epoch, step and micro-batch (0) of each batch."""
        return ((self.epoch, step, 0) for step in range(self.skip, self.steps))

    def __len__(self) -> int:
        return self.steps - self.skip

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.skip, self.steps):
            yield [Draw(index, self.epoch, 0) for index in self.own[step * self.batch_size :][: self.batch_size]]


def check_batch_size(batch_size: int) -> None:
    """Refuse an empty batch."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}, needs 1 or more")
