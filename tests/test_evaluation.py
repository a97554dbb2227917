"""Metrics: exact over batches of different sizes."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from convnext.data.batches import Batch, Batches
from convnext.errors import RunError
from convnext.evaluation import evaluate


class Channels(nn.Module):
    """Logits are the first pixel's channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


class Given(Batches):
    """Batches as they are given."""

    def __init__(self, given: list[Batch]) -> None:
        self.given = given
        self.random_erasing = 0.0

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        assert epoch == skip == 0
        return iter(self.given)


def batches(sizes: list[int], logits: Tensor, labels: Tensor) -> Given:
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    return Given([Batch(images[:, :, None, None], labels, []) for images, labels in parts])


def test_metrics_are_exact() -> None:
    logits, labels = torch.randn(17, 8), torch.randint(8, (17,))
    result = evaluate(Channels(), batches([5, 5, 7], logits, labels), 8, torch.device("cpu"), nullcontext())
    order = logits.argsort(1, descending=True)
    assert result.top1 == pytest.approx(100 * (order[:, 0] == labels).double().mean().item(), abs=1e-4)
    assert result.top5 == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).double().mean().item(), abs=1e-4)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert result.images == 17


def test_fewer_than_five_classes() -> None:
    logits, labels = torch.randn(6, 2), torch.randint(2, (6,))
    assert evaluate(Channels(), batches([6], logits, labels), 2, torch.device("cpu"), nullcontext()).top5 == 100


def test_unreadable_images_are_counted() -> None:
    some = batches([2], torch.randn(2, 3), torch.tensor([0, 1]))
    some.given.append(Batch(torch.empty(0, 3, 1, 1), torch.empty(0), ["a.jpg: bad"]))
    assert evaluate(Channels(), some, 3, torch.device("cpu"), nullcontext()).unreadable == ("a.jpg: bad",)
    with pytest.raises(RunError, match=r"none of the held-out images can be read; the first: a.jpg"):
        evaluate(Channels(), Given(some.given[1:]), 3, torch.device("cpu"), nullcontext())
