"""``benchmarks/speed.py``: what its tables measure, and for how long."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("speed")
    for name in ("speed", "result_files"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "setting"), [("growth", "optimized"), ("training-growth", "channels_last+kernels")])
def test_batches_of_one_setting_are_interleaved_with_one_ceiling(speed: Any, name: str, setting: str) -> None:
    plan = speed.plan_of(speed.TABLES[name], 15, None)
    assert plan.groups
    for ceiling, *rows in plan.groups:
        assert (ceiling.library, ceiling.batch) == ("torch", 8)
        assert [(row.library, row.setting) for row in rows] == [("convnext", setting)] * 4
        assert [row.batch for row in rows] == [8, 16, 32, 64]
        assert {row.precision for row in rows} == {ceiling.precision}
    assert (plan.min_rounds, plan.seconds) == (3, speed.TABLES[name].seconds)
    assert speed.plan_of(speed.TABLES[name], 15, 7).seconds == 7


def test_the_training_table_has_every_library_in_every_setting(speed: Any) -> None:
    (group,) = speed.plan_of(speed.TABLES["training"], 15, None).groups
    rows = [(case.library, case.setting) for case in group if case.name == "convnext_tiny"]
    assert len(group) == 1 + len(rows) + 3
    assert {library for library, _ in rows} == {"convnext", "timm", "torchvision", "transformers"}
    assert len(set(rows)) == 4 + 3 * 3
