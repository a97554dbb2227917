"""The race, and figures from several measurements, by measurements whose figures are known."""

from typing import Any

import pytest

from convnext.benchmark.configurations import CEILING, OURS
from convnext.benchmark.ratios import (
    beaten,
    best,
    ceiling_of,
    document_row,
    growth,
    share_of_ceiling,
    speedup_of,
    times_best_peer,
    to_best_peer,
)
from convnext.benchmark.worker_process import Measurement
from tests.benchmark.conftest import measurement


def settings_beaten(*measurements: Measurement) -> list[str]:
    return [slow.configuration.setting for slow, _ in beaten(measurements)]


@pytest.mark.parametrize(
    ("fast", "slow", "ends"),
    [
        ([1], [9], False),
        ([1, 1], [1.19, 9], False),
        ([1, 1], [1.21, 1.21], True),
        ([1] * 4, [1.19] * 4, True),  # the margin narrows as rounds go by
        ([1] * 100, [1.04] * 100, False),
        ([1] * 100, [1.06] * 100, True),
        ([1, 1, 1], [3, 1.1, 3], False),  # one fast round is enough
    ],
)
def test_a_clearly_slower_setting_ends(fast: list[float], slow: list[float], ends: bool) -> None:
    found = settings_beaten(measurement(OURS, "fast", *fast), measurement(OURS, "slow", *slow))
    assert found == (["slow"] if ends else [])


def test_only_settings_of_the_same_model_race() -> None:
    others: list[dict[str, Any]] = [{"name": "other"}, {"mode": "training"}, {"precision": "bf16"}, {"batch": 1}]
    slow = [measurement(OURS, "slow", 5, 5, **change) for change in others]
    assert settings_beaten(measurement(OURS, "fast", 1, 1), measurement("timm", "slow", 5, 5), *slow) == []


def test_what_runs_no_more_beats_no_other() -> None:
    failed, ended = measurement(OURS, "failed", 1, 1), measurement(OURS, "ended", 1, 1)
    failed.error, ended.ended = "out of memory", "another is faster"
    assert settings_beaten(failed, ended, measurement(OURS, "last", 5, 5), measurement(OURS, "never ran")) == []


def test_the_best_of_each_side_is_compared_round_by_round() -> None:
    rows = [
        measurement(OURS, "slow", 2, 2, 2),
        measurement(OURS, "fast", 1, 2, 1),
        measurement("timm", "slow", 9, 9, 9),
        measurement("timm", "fast", 2, 4, 3),  # twice, twice and three times ours
        measurement("torchvision", "eager", 3, 3, 4, precision="bf16"),
        measurement(OURS, "fast", 0.5, 0.5, 0.5, precision="bf16"),
        measurement("timm", "failed"),
    ]
    fp32, bf16, either = to_best_peer(rows)
    assert fp32["times_as_fast"] == 2
    assert (fp32["ours"]["setting"], fp32["peer"]["setting"], fp32["peer"]["library"]) == ("fast", "fast", "timm")
    assert (bf16["precision"], bf16["times_as_fast"]) == ("bf16", 6)
    assert (either["precision"], either["ours"]["precision"], either["peer"]["precision"]) == ("any", "bf16", "fp32")
    assert either["times_as_fast"] == 6


def test_every_configuration_beside_the_best_peer_of_its_precision() -> None:
    rows = [
        measurement(OURS, "eager", 1, 1),
        measurement("timm", "a", 2, 4),
        measurement("timm", "b", 3, 5),
        measurement(OURS, "eager", 1, batch=1),
    ]
    assert times_best_peer(rows) == [3, 1, pytest.approx((2 / 3 + 4 / 5) / 2), None]


def test_nothing_to_compare_gives_no_ratio() -> None:
    assert to_best_peer([measurement(OURS, "eager", 1)]) == []
    assert to_best_peer([measurement("timm", "eager", 1), measurement(OURS, "eager")]) == []
    assert to_best_peer([measurement(OURS, "eager", 1), measurement("timm", "eager", 1, batch=5)]) == []
    assert best([measurement(OURS, "eager")]) is None


def test_one_that_ended_early_is_compared_by_the_rounds_it_has() -> None:
    assert speedup_of(measurement(OURS, "eager", 1, 1), measurement("timm", "eager", 2, 3, 9)) == pytest.approx(2.5)


def test_one_that_was_ended_is_not_the_best_by_the_few_rounds_it_had() -> None:
    peer, lucky = (
        measurement("timm", "goes on", 2, 2, 4, 4, 4),
        measurement("timm", "ended", 3, 3),
    )  # a higher median than 4
    lucky.ended = "goes on is faster"
    assert best([lucky, peer]) is peer
    assert times_best_peer([measurement(OURS, "eager", 1, 1, 2, 2, 2), peer, lucky]) == [2, 1, pytest.approx(2 / 3)]


def test_one_that_failed_is_compared_by_the_rounds_it_has() -> None:
    whole, failed = measurement("timm", "whole", 2, 2, 4, 4, 4), measurement("timm", "failed", 3, 3)
    failed.error = "out of memory"
    assert best([failed, whole]) is best([whole, failed]) is whole
    failed.seconds = [1, 1]
    assert best([failed, whole]) is best([whole, failed]) is failed
    (ratio,) = to_best_peer([measurement(OURS, "eager", 1, 2, 1, 1, 1), whole, failed])
    assert (ratio["peer"]["setting"], ratio["times_as_fast"]) == ("failed", 0.75)


def test_a_share_of_the_ceiling_is_of_the_rounds_that_both_have() -> None:
    ceiling = measurement(CEILING, "eager", 1, 1, 2, 2, 2, work=1e9)
    assert share_of_ceiling(measurement(OURS, "eager", 1, 1), [ceiling], 25_000_000) == pytest.approx(0.5)


def test_share_of_the_ceiling() -> None:
    ceiling = measurement(CEILING, "eager", 1, 2, work=1e9)
    half = measurement(OURS, "eager", 1, 2)  # 10 images of 2 * 25e6 FLOP, where matrix products do 1e9
    assert share_of_ceiling(half, [ceiling], 25_000_000) == pytest.approx(0.5)
    training = measurement(OURS, "eager", 1, 2, mode="training")
    assert share_of_ceiling(training, [ceiling], 25_000_000) == pytest.approx(1.5)
    assert share_of_ceiling(measurement(OURS, "eager", 1, precision="bf16"), [ceiling], 1) is None
    found = ceiling_of([ceiling, half], {"net": 25_000_000})["fp32"]
    assert found["gflops"] == 0.8  # of 1 and 0.5, rounded
    assert found["images_per_second"]["net"] == {"inference": 15.0, "training": 5.0}


def test_growth() -> None:
    rows = [measurement(OURS, "eager", 1, work=batch, memory=50 + 3 * batch, batch=batch) for batch in (16, 8, 32)]
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
    found = document_row(measurement(OURS, "eager", 1, 2, 4, 5, 10), 0.51234, 1.4567)
    assert found["images_per_second"] == 2.5
    assert found["quantiles"] == [2, 2.5, 5]
    assert (found["share_of_ceiling"], found["rounds"], found["error"]) == (0.512, 5, None)
    assert (found["times_best_peer"], found["ended"]) == (1.457, None)
    assert document_row(measurement(OURS, "eager"), None, None)["images_per_second"] is None
