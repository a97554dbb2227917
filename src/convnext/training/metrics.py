"""Exact metrics over a split: every image once, on one rank or many."""

import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convnext.data.loader import Batches
from convnext.errors import RunError
from convnext.training.distributed import gather

BINS = 15  # of the calibration error


class Rows(NamedTuple):
    """The outcome for every image, on the CPU."""

    labels: Tensor  # (N,), class indices
    predictions: Tensor  # (N,), class indices
    in_top5: Tensor  # (N,), True where the label is among the five highest logits
    losses: Tensor  # (N,), cross-entropies in nats
    confidences: Tensor  # (N,), probabilities of the predictions


class ClassScores(NamedTuple):
    """One class: precision, recall and F1 from 0 to 1 (0 where undefined), and its number of images."""

    precision: float
    recall: float
    f1: float
    support: int


class CalibrationBin(NamedTuple):
    """The images with a confidence in (low, high]: their number, mean confidence and accuracy (0 to 1)."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Metrics:
    """A split's metrics, which depend neither on the order of the images nor on batches or ranks."""

    rows: Rows
    num_classes: int
    unreadable: tuple[str, ...]  # error messages of the files that could not be read
    seconds: float  # of the whole pass: reading, preprocessing, and the model

    @property
    def images(self) -> int:
        """The number of images evaluated."""
        return len(self.rows.labels)

    @cached_property
    def top1(self) -> float:
        """Accuracy in %."""
        return 100 * int((self.rows.predictions == self.rows.labels).sum()) / self.images

    @cached_property
    def top5(self) -> float:
        """Accuracy in % where the five highest logits count."""
        return 100 * int(self.rows.in_top5.sum()) / self.images

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy (negative log-likelihood) in nats, without label smoothing."""
        return math.fsum(self.rows.losses.tolist()) / self.images

    @property
    def images_per_second(self) -> float:
        """Images per second over the whole pass."""
        return self.images / self.seconds

    @cached_property
    def confusion(self) -> Tensor:
        """Counts (num_classes, num_classes): images of the row's class predicted as the column's."""
        cells = self.rows.labels * self.num_classes + self.rows.predictions
        return cells.bincount(minlength=self.num_classes**2).view(self.num_classes, self.num_classes)

    @cached_property
    def per_class(self) -> list[ClassScores]:
        """Scores of every class, in the order of the logits."""
        right = self.confusion.diagonal().double()
        predicted, support = self.confusion.sum(0), self.confusion.sum(1)
        precision, recall = (right / count.clamp(min=1) for count in (predicted, support))
        f1 = 2 * right / (predicted + support).clamp(min=1)
        columns = (column.tolist() for column in (precision, recall, f1, support))
        return [ClassScores(*scores) for scores in zip(*columns, strict=True)]

    @cached_property
    def calibration(self) -> list[CalibrationBin]:
        """The images in 15 bins of equal width by confidence; an empty bin has confidence and accuracy 0."""
        confidences = self.rows.confidences.double()
        right = (self.rows.predictions == self.rows.labels).double()
        place = (confidences * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
        images = place.bincount(minlength=BINS)
        means = [place.bincount(values, minlength=BINS) / images.clamp(min=1) for values in (confidences, right)]
        figures = zip(images.tolist(), *(mean.tolist() for mean in means), strict=True)
        return [CalibrationBin(i / BINS, (i + 1) / BINS, *row) for i, row in enumerate(figures)]

    @property
    def ece(self) -> float:
        """Expected calibration error, from 0 to 1: the mean over the images of |accuracy - confidence| of their bin.

        Over 15 bins of equal width of the confidence in the prediction (Guo et al., 2017, arXiv 1706.04599).
        """
        return sum(part.images * abs(part.accuracy - part.confidence) for part in self.calibration) / self.images


def evaluate(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Metrics:
    """Evaluate a classifier; the model is left in evaluation mode.

    In a process group, each rank passes the batches of its own images, of any number, and every rank gets the metrics
    of all.

    Raises:
        RunError: no rank could read an image.
    """
    # Ranks have different numbers of batches, and DistributedDataParallel's forward pass may wait for the others.
    network = model.module if isinstance(model, DistributedDataParallel) else model
    network.eval()
    parts, unreadable, start = [], [], time.perf_counter()
    with torch.inference_mode():
        for batch in batches.epoch():
            unreadable += batch.unreadable
            if not len(batch.images):
                continue
            images, labels = batches.prepare(batch, device), batch.labels.to(device)
            with autocast:
                logits = network(images)
            parts.append(rows_of(logits.float(), labels))
    rows = Rows(*(column.cpu() for column in joined(zip(*parts, strict=True)))) if parts else None
    shares = gather((rows, unreadable, time.perf_counter() - start))
    unreadable = [error for _, errors, _ in shares for error in errors]
    found = [rows for rows, _, _ in shares if rows is not None]
    if not found:
        first = f"; the first: {unreadable[0]}" if unreadable else ": there are none"
        raise RunError(f"none of the held-out images can be read{first}")
    everything = joined(zip(*found, strict=True))
    return Metrics(everything, num_classes, tuple(unreadable), max(seconds for _, _, seconds in shares))


def rows_of(logits: Tensor, labels: Tensor) -> Rows:
    """A batch's rows, on its device, from logits (N, classes) and labels (N,)."""
    predictions = logits.argmax(1)
    best = logits.topk(min(5, logits.shape[1])).indices  # among equals, topk may leave argmax out
    in_top5 = (best == labels[:, None]).any(1) | (predictions == labels)
    losses = F.cross_entropy(logits, labels, reduction="none")
    confidences = logits.softmax(1).amax(1)
    return Rows(labels, predictions, in_top5, losses, confidences)


def joined(columns: Iterable[Iterable[Tensor]]) -> Rows:
    """Concatenate the rows of several batches, given by column."""
    return Rows(*(torch.cat(list(column)) for column in columns))
