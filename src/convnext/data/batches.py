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
from convnext.data.order import Draw, EvaluationOrder, TrainingOrder
from convnext.data.transforms import (
    BATCH_AUGMENTS,
    Transform,
    augment_batch,
    check_augment,
    evaluation_transform,
    normalize,
    resize_batch,
    training_transform,
)
from convnext.randomness import seed_everything


class Batch(NamedTuple):
    """A batch: ``images`` (N, 3, H, W), ``labels`` (N,), and the files that could not be read.

    Images are normalised floats, or bytes that :meth:`Batches.prepare` normalises on the device. ``position`` is the
    batch's place in the training: epoch, step, part of the step.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[str]
    position: tuple[int, int, int] = (0, 0, 0)


class Batches:
    """Batches of a split, epoch by epoch.

    In training, a step's ``batch_size`` images are divided evenly: over the processes, and in each into ``accumulate``
    parts, which come one after the other. Every part has its own random numbers, those of one process with two parts
    being those of two processes with one.

    Args:
        images: the split.
        batch_size: images a step, all processes and parts together; all there are, where there are fewer.
        image_size: pixels a side.
        augment: ``none``, ``affine``, ``crop_flip`` or ``rand_augment`` (timm's, as in the paper).
        random_erasing: probability of erasing a rectangle of an image with noise.
        shuffle: draw the images in a new order each epoch and drop the last, smaller batch; else keep their order and
            give every image exactly once, to one of the processes.
        repeats: times that each drawn image comes, varied anew; fewer images are drawn, for as many steps.
        seed: of order and variation.
        rank: this process among ``processes``.
        processes: all of them.
        accumulate: parts of a process's share of a step.
        workers: processes that read and vary files; 0 for this process alone.
        pin_memory: hold batches where a GPU fetches them without a further copy.
        transform: from a picture to a normalised tensor (3, H, W), instead of this package's own for evaluation: for
            networks that were published with theirs.

    Raises:
        UsageError: the batch cannot be divided evenly.
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
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        transform: Transform | None = None,
    ) -> None:
        check_augment(augment)
        self.images = images
        self.image_size = image_size
        self.augment = augment
        self.random_erasing = random_erasing
        self.seed = seed
        if shuffle:
            self.order = TrainingOrder(len(images), batch_size, repeats, seed, rank, processes, accumulate)
        else:
            self.order = EvaluationOrder(len(images), batch_size, rank, processes)
        self.loader: DataLoader[Any] | None = None
        if transform is not None or not isinstance(images, MemoryImages) or augment not in BATCH_AUGMENTS:
            if transform is None:
                transform = training_transform(image_size, augment) if shuffle else evaluation_transform(image_size)
            self.loader = DataLoader(
                TransformedImages(images, transform, seed),
                batch_sampler=self.order,
                num_workers=workers,
                collate_fn=collate,
                persistent_workers=workers > 0,
                pin_memory=pin_memory,
            )

    @property
    def batch_size(self) -> int:
        """Images a step, all processes and parts together."""
        return self.order.batch_size

    def __len__(self) -> int:
        """Steps an epoch."""
        return self.order.steps

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, ``accumulate`` of them a step, without those of the first ``skip`` steps."""
        self.order.epoch, self.order.skip = epoch, skip
        if self.loader is None:
            source = self.from_memory()
        else:
            with signals_blocked():  # they are for this process; the reading processes end with it
                source = iter(self.loader)
        for position, batch in zip(self.order.positions(), source, strict=True):
            yield batch._replace(position=position)

    def prepare(self, batch: Batch, device: torch.device) -> Tensor:
        """A batch's images on the device: normalised (N, 3, H, W) in channels_last memory, partly erased."""
        images = batch.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalize(images.float() / 255)
        if self.random_erasing:
            from timm.data.random_erasing import RandomErasing

            epoch, step, part = batch.position
            seed_everything(self.seed, epoch, step, 1, part)
            images = RandomErasing(self.random_erasing, mode="pixel", device=str(device))(images)
        return images.contiguous(memory_format=torch.channels_last)

    def from_memory(self) -> Iterator[Batch]:
        """Batches cut from images in memory and varied as a whole."""
        assert isinstance(self.images, MemoryImages)
        for (epoch, step, part), draws in zip(self.order.positions(), self.order, strict=True):
            chosen = torch.tensor([draw.image for draw in draws])
            seed_everything(self.seed, epoch, step, 2, part)
            images = resize_batch(self.images.images[chosen].float() / 255, self.image_size)
            yield Batch(normalize(augment_batch(images, self.augment)), self.images.labels[chosen], [])


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold Ctrl-C and the like back; processes that are started meanwhile never get them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class TransformedImages(Dataset[Any]):
    """Images through a transform, each seeded by itself; an unreadable file becomes its error message."""

    def __init__(
        self, images: MemoryImages | FileImages, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int] | str:
        try:
            picture, label = self.images.read(draw.image)
        except UnreadableImageError as error:
            return str(error)
        seed_everything(self.seed, draw.epoch, draw.image, 3, draw.repeat)
        return self.transform(picture), label


def collate(samples: list[tuple[Tensor, int] | str]) -> Batch:
    """Samples to a batch; what could not be read is left out and named."""
    good = [sample for sample in samples if not isinstance(sample, str)]
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1)
    return Batch(images, torch.tensor([label for _, label in good], dtype=torch.long), unreadable)
