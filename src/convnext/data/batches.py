"""Batches: from labelled images to normalised tensors, in an order and a variation that the seed decides."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convnext.data.images import FileImages, MemoryImages, UnreadableImageError
from convnext.data.transforms import (
    BATCH_AUGMENTS,
    augment_batch,
    check_augment,
    evaluation_transform,
    normalize,
    resize_batch,
    training_transform,
)
from convnext.errors import UsageError
from convnext.randomness import position_seed, seed_everything


class Batch(NamedTuple):
    """A batch: normalised ``images`` (N, 3, H, W), ``labels`` (N,), and the files that could not be read."""

    images: Tensor
    labels: Tensor
    unreadable: list[str]


class Batches:
    """Batches of a split, epoch by epoch.

    Args:
        images: the split.
        batch_size: images a batch.
        image_size: pixels a side.
        augment: ``none``, ``affine``, ``crop_flip`` or ``rand_augment`` (timm's, as in the paper).
        random_erasing: probability of erasing a rectangle of an image with noise.
        shuffle: draw the images in a new order each epoch and drop the last, smaller batch; else keep their order and
            give every image exactly once.
        seed: of order and variation.
        workers: processes that read and vary files; 0 for this process alone.
    """

    def __init__(
        self,
        images: MemoryImages | FileImages,
        *,
        batch_size: int,
        image_size: int,
        augment: str = "none",
        random_erasing: float = 0.0,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        check_augment(augment)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, needs 1 or more")
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.image_size = image_size
        self.augment = augment
        self.shuffle = shuffle
        self.seed = seed
        self.erase = random_erasing_of(random_erasing)
        self.indices = EpochIndices(len(images), self.batch_size, shuffle, seed)
        self.loader: DataLoader[Any] | None = None
        if not isinstance(images, MemoryImages) or augment not in BATCH_AUGMENTS:
            transform = training_transform(image_size, augment) if shuffle else evaluation_transform(image_size)
            self.loader = DataLoader(
                TransformedImages(images, transform, seed),
                batch_sampler=self.indices,
                num_workers=workers,
                collate_fn=collate,
                persistent_workers=workers > 0,
            )

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch."""
        self.indices.epoch = epoch
        if self.loader is None:
            source = self.from_memory()
        else:
            with interrupts_blocked():  # Ctrl-C is for this process; the reading processes end with it
                source = iter(self.loader)
        for step, batch in enumerate(source):
            seed_everything(self.seed, epoch, step, 1)
            yield batch._replace(images=self.erase(batch.images)) if len(batch.images) else batch

    def from_memory(self) -> Iterator[Batch]:
        """Batches cut from images in memory and varied as a whole."""
        assert isinstance(self.images, MemoryImages)
        for step, pairs in enumerate(self.indices):
            chosen = torch.tensor([index for index, _ in pairs])
            seed_everything(self.seed, self.indices.epoch, step, 2)
            images = resize_batch(self.images.images[chosen].float() / 255, self.image_size)
            yield Batch(normalize(augment_batch(images, self.augment)), self.images.labels[chosen], [])


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back; processes that are started meanwhile never get it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class EpochIndices:
    """The indices of each batch of an epoch, each index paired with the epoch so that workers can seed by both."""

    def __init__(self, count: int, batch_size: int, shuffle: bool, seed: int) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size if self.shuffle else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.arange(self.count)
        if self.shuffle:
            generator = torch.Generator().manual_seed(position_seed(self.seed, self.epoch))
            order = torch.randperm(self.count, generator=generator)
        for batch in order.split(self.batch_size)[: len(self)]:
            yield [(index, self.epoch) for index in batch.tolist()]


class TransformedImages(Dataset[Any]):
    """Images through a transform, each seeded by itself; an unreadable file becomes its error message."""

    def __init__(
        self, images: MemoryImages | FileImages, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, int] | str:
        index, epoch = position
        try:
            picture, label = self.images.read(index)
        except UnreadableImageError as error:
            return str(error)
        seed_everything(self.seed, epoch, index, 3)
        return self.transform(picture), label


def collate(samples: list[tuple[Tensor, int] | str]) -> Batch:
    """Samples to a batch; what could not be read is left out and named."""
    good = [sample for sample in samples if not isinstance(sample, str)]
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return Batch(images, torch.tensor([label for _, label in good], dtype=torch.long), unreadable)


def random_erasing_of(probability: float) -> Callable[[Tensor], Tensor]:
    """timm's random erasing with noise in each pixel, on a batch; the identity for probability 0."""
    if probability == 0:
        return lambda images: images
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(probability, mode="pixel", device="cpu")
