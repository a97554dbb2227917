"""Batches: from labelled images to normalised tensors, in an order and with an augmentation that the seed decides."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convnext.data.augmentation import (
    BATCH_AUGMENTS,
    PIPELINES,
    Augment,
    Transform,
    augment_batch,
    normalize,
    normalize_bytes,
    resize_batch,
    training_transform,
)
from convnext.data.images import Images, MemoryImages, UnreadableImageError
from convnext.data.preprocessing import Preprocessing
from convnext.data.sampling import Draw, EvaluationOrder, TrainingOrder
from convnext.errors import unknown_name
from convnext.randomness import seed_everything


class Batch(NamedTuple):
    """A batch: ``images`` (N, 3, H, W), ``labels`` (N,), and the files that could not be read.

    Images are normalised floats, or bytes that :meth:`Batches.prepare` normalises on the device. ``position`` is the
    batch's place in the training: epoch, step, micro-batch.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[str]
    position: tuple[int, int, int] = (0, 0, 0)


class Batches:
    """Batches of a split, epoch by epoch.

    In training, a step's ``batch_size`` images are divided evenly: over the ranks, and in each into ``accumulate``
    micro-batches. Every micro-batch has its own random numbers: those of one rank with two are those of two ranks.

    Args:
        images: the split.
        batch_size: images per step, over all ranks; all images, where there are fewer.
        image_size: pixels a side.
        augment: ``none``, ``affine``, ``crop_flip``, ``rand_augment`` (timm's, as in the paper) or ``trivial_augment``
            (torchvision's).
        pipeline: ``exact`` (timm's and torchvision's operations on PIL images) or ``fast`` (the same draws on bytes,
            normalised on the device). Images in memory that are augmented as a batch are the same in both.
        random_erasing: probability of erasing a rectangle of an image with noise.
        shuffle: for training: a new order each epoch, without the last, smaller batch; else every image exactly once.
        repeats: times that each drawn image comes, augmented anew; fewer images are drawn, for as many steps.
        seed: of order and augmentation.
        rank: this rank of ``world_size``.
        world_size: number of ranks.
        accumulate: micro-batches per step and rank.
        workers: dataloader workers; 0 for this process alone.
        pin_memory: hold batches in page-locked memory, from which a GPU copies them.
        transform: from a PIL image to a normalised tensor (3, H, W), in place of this package's own and its pipeline:
            for models that were published with theirs.

    Raises:
        UsageError: the batch cannot be divided evenly, there is no such augmentation or pipeline, or the augmentation
            has no fast implementation.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        image_size: int,
        augment: str = "none",
        pipeline: str = "exact",
        random_erasing: float = 0.0,
        shuffle: bool = False,
        repeats: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        transform: Transform | None = None,
    ) -> None:
        for kind, name, known in (("augmentation", augment, get_args(Augment)), ("pipeline", pipeline, PIPELINES)):
            if name not in known:
                raise unknown_name(kind, name, known)
        self.images, self.image_size, self.seed = images, image_size, seed
        self.augment, self.random_erasing = augment, random_erasing
        if shuffle:
            self.order = TrainingOrder(len(images), batch_size, repeats, seed, rank, world_size, accumulate)
        else:
            self.order = EvaluationOrder(len(images), batch_size, rank, world_size)
        self.loader: DataLoader[Any] | None = None
        self.source: Iterator[Batch] | None = None
        if transform is not None or not isinstance(images, MemoryImages) or augment not in BATCH_AUGMENTS:
            self.loader = DataLoader(
                self.transformed(transform, training=shuffle, fast=pipeline == "fast"),
                batch_sampler=self.order,
                num_workers=workers,
                collate_fn=collate,
                persistent_workers=workers > 0,
                pin_memory=pin_memory,
                worker_init_fn=one_thread if pipeline == "fast" else None,
            )

    def transformed(self, transform: Transform | None, *, training: bool, fast: bool) -> "TransformedImages":
        """The split's images through a transform, or else through a pipeline."""
        if fast and transform is None:
            from convnext.data.fast_pipeline import fast_transform, open_image

            varied = fast_transform(self.image_size, self.augment, training=training)
            return TransformedImages(partial(open_image, self.images), varied, self.seed)
        if transform is None:
            size = self.image_size
            transform = training_transform(size, self.augment) if training else Preprocessing.published(size)
        return TransformedImages(self.images.read, transform, self.seed)

    @property
    def batch_size(self) -> int:
        """Images per step, over all ranks."""
        return self.order.batch_size

    def __len__(self) -> int:
        """Steps per epoch."""
        return self.order.steps

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, ``accumulate`` of them a step, without those of the first ``skip`` steps."""
        self.order.epoch, self.order.skip = epoch, skip
        if self.loader is None:
            self.source = self.from_memory()
        else:
            with signals_blocked():  # they are for this process, which ends the workers
                self.source = iter(self.loader)
        for position in self.order.positions():
            if self.source is None:  # closed
                return
            yield next(self.source)._replace(position=position)

    def close(self) -> None:
        """End the dataloader workers, which signals do not reach."""
        self.source = self.loader = None  # they live as long as these

    def prepare(self, batch: Batch, device: torch.device) -> Tensor:
        """A batch's images on the device: normalised (N, 3, H, W) in channels_last memory, with random erasing."""
        images = batch.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalize_bytes(images)
        if self.random_erasing:
            from timm.data.random_erasing import RandomErasing

            epoch, step, part = batch.position
            seed_everything(self.seed, epoch, step, 1, part)
            images = RandomErasing(self.random_erasing, mode="pixel", device=str(device))(images)
        return images.contiguous(memory_format=torch.channels_last)

    def from_memory(self) -> Iterator[Batch]:
        """Batches of images in memory, augmented as a whole."""
        assert isinstance(self.images, MemoryImages)
        for (epoch, step, part), draws in zip(self.order.positions(), self.order, strict=True):
            chosen = torch.tensor([draw.image for draw in draws])
            seed_everything(self.seed, epoch, step, 2, part)
            images = resize_batch(self.images.images[chosen].float() / 255, self.image_size)
            yield Batch(normalize(augment_batch(images, self.augment)), self.images.labels[chosen], [])


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and the like inside the block; processes that are started there never receive them."""
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
    """Images through a transform, each seeded by itself; an unreadable file becomes its error message.

    Args:
        read: gives an image by its number, as the transform takes it, and its label.
        transform: gives a tensor (3, H, W).
        seed: of augmentation.
    """

    def __init__(self, read: Callable[[int], tuple[Any, int]], transform: Callable[[Any], Tensor], seed: int) -> None:
        self.read, self.transform, self.seed = read, transform, seed

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int] | str:
        seed_everything(self.seed, draw.epoch, draw.image, 3, draw.repeat)
        try:
            image, label = self.read(draw.image)
            return image if isinstance(image, Tensor) else self.transform(image), label
        except UnreadableImageError as error:
            return str(error)


def collate(samples: list[tuple[Tensor, int] | str]) -> Batch:
    """Samples to a batch; what could not be read is left out and named."""
    good = [sample for sample in samples if not isinstance(sample, str)]
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    images = stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1)
    return Batch(images, torch.tensor([label for _, label in good], dtype=torch.long), unreadable)


def stack(images: list[Tensor]) -> Tensor:
    """Images (3, H, W) as one tensor (N, 3, H, W), with the channels last in memory where theirs are."""
    if images[0].stride(0) == 1:
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return torch.stack(images)


def one_thread(worker: int) -> None:  # noqa: ARG001
    """Limit OpenCV in a dataloader worker to one thread, as PyTorch does itself: there is one worker per core."""
    import cv2

    cv2.setNumThreads(0)  # not 1, which would end the threads that a fork did not bring along, and crash
