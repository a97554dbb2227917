"""Metrics: exact over batches of different sizes and over processes, and equal to the field's own libraries'."""

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from convnext.data import MemoryImages
from convnext.data.loader import Batch, Batches
from convnext.errors import RunError
from convnext.training.metrics import BINS, Metrics, Rows, evaluate, rows_of

CPU = torch.device("cpu")


class Channels(nn.Module):
    """Logits are the first pixel's channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


class GivenBatches(Batches):
    """Batches that were made elsewhere."""

    def __init__(self, given: list[Batch]) -> None:
        images = MemoryImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
        super().__init__(images, batch_size=1, image_size=8)
        self.given = given

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        return iter(self.given)


def batches(sizes: list[int], logits: Tensor, labels: Tensor, unreadable: tuple[str, ...] = ()) -> GivenBatches:
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    given = [Batch(images[:, :, None, None], labels, []) for images, labels in parts]
    return GivenBatches([*given, *(Batch(torch.empty(0), torch.empty(0), [name]) for name in unreadable)])


def metrics_of(logits: Tensor, labels: Tensor) -> Metrics:
    return Metrics(rows_of(logits, labels), logits.shape[1], (), 1.0)


def test_metrics_are_exact() -> None:
    logits, labels = torch.randn(17, 8), torch.randint(8, (17,))
    result = evaluate(Channels(), batches([5, 5, 7], logits, labels), 8, CPU, nullcontext())
    order = logits.argsort(1, descending=True)
    assert result.top1 == 100 * int((order[:, 0] == labels).sum()) / 17
    assert result.top5 == 100 * int((order[:, :5] == labels[:, None]).any(1).sum()) / 17
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits.double(), labels).item(), abs=1e-6)
    assert result.images_per_second == result.images / result.seconds > 0
    order = torch.randperm(17)  # neither order nor batches matter
    other = evaluate(Channels(), batches([1, 10, 6], logits[order], labels[order]), 8, CPU, nullcontext())
    for name in ("images", "top1", "top5", "loss", "ece", "per_class"):
        assert getattr(result, name) == getattr(other, name)
    assert result.confusion.equal(other.confusion)


def test_few_classes_and_equal_logits() -> None:
    assert metrics_of(torch.randn(6, 2), torch.randint(2, (6,))).top5 == 100
    result = metrics_of(torch.zeros(10, 10), torch.arange(10))  # they count for one class only
    assert result.top1 == 10
    assert result.top5 == 50 or result.top5 == 60  # which of the equals topk gives is the library's choice
    assert result.confusion[:, 0].tolist() == [1] * 10


def test_unreadable_images_are_counted() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
    some = batches([2], logits, labels, ("a.jpg: bad",))
    assert evaluate(Channels(), some, 3, CPU, nullcontext()).unreadable == ("a.jpg: bad",)
    for given, reason in ((some.given[1:], r"the first: a\.jpg"), ([], "there are none")):
        with pytest.raises(RunError, match=reason):
            evaluate(Channels(), GivenBatches(given), 3, CPU, nullcontext())


@pytest.mark.parametrize(("classes", "images"), [(2, 50), (7, 300), (40, 90)])
def test_confusion_and_scores_equal_scikit_learns(classes: int, images: int) -> None:
    labels = torch.randint(classes - 1, (images,))  # one class has no images, others may never be predicted
    logits = torch.randn(images, classes) + 2 * nn.functional.one_hot(labels, classes)
    result = metrics_of(logits, labels)
    truth, predictions, all_classes = labels.numpy(), result.rows.predictions.numpy(), np.arange(classes)
    expected = sklearn.metrics.confusion_matrix(truth, predictions, labels=all_classes)
    np.testing.assert_array_equal(result.confusion.numpy(), expected)
    options: Any = {"labels": all_classes, "zero_division": 0}
    expected = sklearn.metrics.precision_recall_fscore_support(truth, predictions, **options)
    np.testing.assert_allclose(np.array(result.per_class).T, np.array(expected), rtol=1e-12)
    assert result.per_class[-1].support == 0
    expected = sklearn.metrics.log_loss(truth, logits.double().softmax(1).numpy(), labels=all_classes)
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_calibration_error_by_hand() -> None:
    confidences = torch.tensor([0.95, 0.97, 0.99, 0.35, 0.36, 1.0])
    labels, predictions = torch.zeros(6, dtype=torch.long), torch.tensor([0, 0, 1, 0, 1, 1])
    result = Metrics(Rows(labels, predictions, labels == 0, confidences, confidences), 2, (), 1.0)
    # The bins are (14/15, 1] with 0.95, 0.97, 0.99, 1.0, of which two are right, and (5/15, 6/15] with one of two.
    expected = 4 / 6 * abs(2 / 4 - (0.95 + 0.97 + 0.99 + 1.0) / 4) + 2 / 6 * abs(1 / 2 - (0.35 + 0.36) / 2)
    assert result.ece == pytest.approx(expected, abs=1e-7)
    filled = {i: part for i, part in enumerate(result.calibration) if part.images}
    assert list(filled) == [5, 14]
    assert filled[14].images == 4
    assert filled[14].accuracy == 0.5
    assert filled[5].confidence == pytest.approx(0.355)
    assert (filled[5].low, filled[5].high) == (5 / 15, 6 / 15)


@pytest.mark.parametrize("scale", [0.5, 2, 20])
def test_calibration_error_equals_torchmetrics(scale: float) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes two seconds to import

    logits, labels = scale * torch.randn(500, 8), torch.randint(8, (500,))
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=8, n_bins=BINS, norm="l1")
    assert metrics_of(logits, labels).ece == pytest.approx(expected.item(), abs=1e-6)


def test_outputs_that_are_not_finite_show_in_the_loss() -> None:
    logits = torch.randn(4, 3)
    logits[2] = math.nan
    result = metrics_of(logits, torch.zeros(4, dtype=torch.long))
    assert math.isnan(result.loss)
    assert sum(part.images for part in result.calibration) == 4


RANKS = """
import contextlib, os, sys, torch
from torch import distributed
from convnext.errors import RunError
from convnext.training.metrics import evaluate
from tests.training.test_metrics import CPU, Channels, batches, GivenBatches

rank, address = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=3)
generator = torch.Generator().manual_seed(0)
logits, labels = torch.randn(31, 7, generator=generator), torch.randint(7, (31,), generator=generator)
whole = [20, 11, 0]  # images of each rank
logits, labels = logits.split(whole)[rank], labels.split(whole)[rank]
sizes = [[8, 8, 4], [11], []][rank]
unreadable = [(), ("b.jpg: bad",), ("c.jpg: bad",)][rank]
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.BatchNorm2d(7), Channels()))
given = batches(sizes, logits, labels, unreadable)
result = evaluate(model, given, 7, CPU, contextlib.nullcontext())
print(result.images, result.top1, result.top5, result.loss, result.ece, result.confusion.tolist(), result.unreadable)
try:
    evaluate(model, GivenBatches(given.given[len(sizes):]), 7, CPU, contextlib.nullcontext())
except RunError as error:
    print(error)
distributed.barrier()  # none leaves while another is still connected to it
del model  # which holds the group
distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # a thread of the group that still wants the interpreter as it ends aborts the process, now and then
"""


@pytest.mark.slow
def test_ranks_with_unequal_shares_all_get_the_metrics_of_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", RANKS]
    ranks = [
        subprocess.Popen([*command, str(rank), f"{tmp_path}/store"], stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(31, 7, generator=generator), torch.randint(7, (31,), generator=generator)
    model = nn.Sequential(nn.BatchNorm2d(7), Channels())
    one = evaluate(model, batches([31], logits, labels, ("b.jpg: bad", "c.jpg: bad")), 7, CPU, nullcontext())
    expected = (one.images, one.top1, one.top5, one.loss, one.ece, one.confusion.tolist(), one.unreadable)
    for answer in said:
        first, second = answer.splitlines()
        assert first == " ".join(map(str, expected))
        assert second.endswith("b.jpg: bad")
