"""Figures that rows give together, from rows whose figures are known."""

from typing import Any

import pytest

from convnext.benchmark.case import CEILING, OURS, Case
from convnext.benchmark.ratios import (
    best,
    ceiling_of,
    document_row,
    growth,
    row_ratio,
    share_of_ceiling,
    times_best_peer,
    to_best_peer,
)
from convnext.benchmark.row_process import Row


def row(library: str, setting: str, *seconds: float, work: float = 10, memory: int | None = 100, **case: Any) -> Row:
    fields: dict[str, Any] = {"name": "net", "mode": "inference", "precision": "fp32", "batch": 10} | case
    return Row(Case(library=library, setting=setting, **fields), work, list(seconds), memory)


def test_the_best_of_each_side_is_compared_round_by_round() -> None:
    rows = [
        row(OURS, "slow", 2, 2, 2),
        row(OURS, "fast", 1, 2, 1),
        row("timm", "slow", 9, 9, 9),
        row("timm", "fast", 2, 4, 3),  # twice, twice and three times ours
        row("torchvision", "eager", 3, 3, 4, precision="bf16"),
        row(OURS, "fast", 0.5, 0.5, 0.5, precision="bf16"),
        row("timm", "failed"),
    ]
    fp32, bf16, either = to_best_peer(rows)
    assert fp32["times_as_fast"] == 2
    assert (fp32["ours"]["setting"], fp32["peer"]["setting"], fp32["peer"]["library"]) == ("fast", "fast", "timm")
    assert (bf16["precision"], bf16["times_as_fast"]) == ("bf16", 6)
    assert (either["precision"], either["ours"]["precision"], either["peer"]["precision"]) == ("any", "bf16", "fp32")
    assert either["times_as_fast"] == 6


def test_every_row_beside_the_best_peer_of_its_precision() -> None:
    rows = [row(OURS, "eager", 1, 1), row("timm", "a", 2, 4), row("timm", "b", 3, 5), row(OURS, "eager", 1, batch=1)]
    assert times_best_peer(rows) == [3, 1, pytest.approx((2 / 3 + 4 / 5) / 2), None]


def test_nothing_to_compare_gives_no_ratio() -> None:
    assert to_best_peer([row(OURS, "eager", 1)]) == []
    assert to_best_peer([row("timm", "eager", 1), row(OURS, "eager")]) == []
    assert to_best_peer([row(OURS, "eager", 1), row("timm", "eager", 1, batch=5)]) == []
    assert best([row(OURS, "eager")]) is None


def test_a_row_that_ended_early_is_compared_by_the_rounds_it_has() -> None:
    assert row_ratio(row(OURS, "eager", 1, 1), row("timm", "eager", 2, 3, 9)) == pytest.approx(2.5)


def test_a_row_that_was_ended_is_not_the_best_by_the_few_rounds_it_had() -> None:
    peer, lucky = row("timm", "goes on", 2, 2, 4, 4, 4), row("timm", "ended", 3, 3)  # a higher median than 4
    lucky.ended = "goes on is faster"
    assert best([lucky, peer]) is peer
    assert times_best_peer([row(OURS, "eager", 1, 1, 2, 2, 2), peer, lucky]) == [2, 1, pytest.approx(2 / 3)]


def test_a_row_that_failed_is_compared_by_the_rounds_it_has() -> None:
    whole, failed = row("timm", "whole", 2, 2, 4, 4, 4), row("timm", "failed", 3, 3)
    failed.error = "out of memory"
    assert best([failed, whole]) is best([whole, failed]) is whole
    failed.seconds = [1, 1]
    assert best([failed, whole]) is best([whole, failed]) is failed
    (ratio,) = to_best_peer([row(OURS, "eager", 1, 2, 1, 1, 1), whole, failed])
    assert (ratio["peer"]["setting"], ratio["times_as_fast"]) == ("failed", 0.75)


def test_a_share_of_the_ceiling_is_of_the_rounds_that_both_have() -> None:
    ceiling = row(CEILING, "eager", 1, 1, 2, 2, 2, work=1e9)
    assert share_of_ceiling(row(OURS, "eager", 1, 1), [ceiling], 25_000_000) == pytest.approx(0.5)


def test_share_of_the_ceiling() -> None:
    ceiling = row(CEILING, "eager", 1, 2, work=1e9)
    half = row(OURS, "eager", 1, 2)  # 10 images of 2 * 25e6 FLOP, where matrix products do 1e9
    assert share_of_ceiling(half, [ceiling], 25_000_000) == pytest.approx(0.5)
    training = row(OURS, "eager", 1, 2, mode="training")
    assert share_of_ceiling(training, [ceiling], 25_000_000) == pytest.approx(1.5)
    assert share_of_ceiling(row(OURS, "eager", 1, precision="bf16"), [ceiling], 1) is None
    found = ceiling_of([ceiling, half], {"net": 25_000_000})["fp32"]
    assert found["gflops"] == 0.8  # of 1 and 0.5, rounded
    assert found["images_per_second"]["net"] == {"inference": 15.0, "training": 5.0}


def test_growth() -> None:
    rows = [row(OURS, "eager", 1, work=batch, memory=50 + 3 * batch, batch=batch) for batch in (16, 8, 32)]
    (grown,) = growth(rows, [0.5, 0.475, 0.45])
    assert grown["batches"] == [8, 16, 32]
    assert (grown["lowest_of_highest"], grown["flat"]) == (0.9, True)
    assert (grown["bytes_per_image"], grown["memory_off_line"]) == (3, 0)
    (grown,) = growth(rows, [0.5, 0.3, None])
    assert (grown["batches"], grown["flat"]) == ([8, 16], False)
    rows[0].peak_memory = None
    assert growth(rows, [0.5, 0.5, 0.5])[0]["bytes_per_image"] is None
    assert growth(rows[:1], [0.5]) == []


def test_a_document_row() -> None:
    found = document_row(row(OURS, "eager", 1, 2, 4, 5, 10), 0.51234, 1.4567)
    assert found["images_per_second"] == 2.5
    assert found["quantiles"] == [2, 2.5, 5]
    assert (found["share_of_ceiling"], found["rounds"], found["error"]) == (0.512, 5, None)
    assert (found["times_best_peer"], found["ended"]) == (1.457, None)
    assert document_row(row(OURS, "eager"), None, None)["images_per_second"] is None
