"""Exact metrics over a split: every image once."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from convnext.data.batches import Batches
from convnext.errors import RunError


@dataclass(frozen=True)
class Metrics:
    """A split's metrics: accuracies in %, mean cross-entropy, how many images, and the files that were unreadable."""

    top1: float
    top5: float
    loss: float
    images: int
    unreadable: tuple[str, ...]


def evaluate(
    model: nn.Module,
    batches: Batches,
    num_classes: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Metrics:
    """Evaluate a classifier; the model is left in evaluation mode.

    Raises:
        RunError: not one image could be read.
    """
    from torchmetrics.classification import MulticlassAccuracy  # takes two seconds to import

    model.eval()
    top1 = MulticlassAccuracy(num_classes, average="micro").to(device)
    top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro").to(device)
    loss, count, unreadable = torch.zeros((), dtype=torch.float64), 0, []
    with torch.inference_mode():
        for batch in batches.epoch():
            unreadable += batch.unreadable
            if not len(batch.images):
                continue
            images, labels = batches.prepare(batch, device), batch.labels.to(device)
            with autocast:
                logits = model(images)
            logits = logits.float()
            top1.update(logits, labels)
            top5.update(logits, labels)
            loss += F.cross_entropy(logits, labels, reduction="sum").cpu().double()
            count += len(labels)
    if not count:
        raise RunError(f"none of the held-out images can be read; the first: {unreadable[0]}")
    # torchmetrics divides in 32 bits; the counts behind it are whole numbers.
    accuracies = [100 * round(metric.compute().item() * count) / count for metric in (top1, top5)]
    return Metrics(accuracies[0], accuracies[1], loss.item() / count, count, tuple(unreadable))
