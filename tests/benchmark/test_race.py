"""Rows that are clearly beaten end and give back what they hold; the others go on. No process here takes any time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from convnext.benchmark.benchmark_plan import Network, make_plan
from convnext.benchmark.case import CEILING, OURS, Case
from convnext.benchmark.comparison import Benchmark
from convnext.benchmark.race import beaten
from convnext.benchmark.row_process import Row

ROUNDS = 6
# Seconds of each row's turns, the last of which is repeated.
SECONDS: dict[tuple[str, str], list[float]] = {
    (CEILING, "eager"): [9],
    (OURS, "channels_last+kernels"): [2, 1, 1],
    (OURS, "eager+kernels"): [1.04, 2, 1.04],  # as fast as the noise
    (OURS, "channels_last"): [1.5],
    ("timm", "channels_last"): [2],
    ("timm", "eager"): [2.3],  # within the margin of two rounds, not of three
    ("torchvision", "eager"): [7, 7, 7, 2.6],  # its library's best until it fails
    ("torchvision", "channels_last"): [20],
}


class Scripted:
    """A row's process that takes the seconds it is to take."""

    open: dict[str, bool]  # by row

    def __init__(self, row: Row, threads: int, cpus: set[int]) -> None:
        del threads, cpus
        self.row = row
        Scripted.open[str(row.case)] = True

    def prepare(self) -> list[str]:
        self.row.work = self.row.case.batch
        return []

    def turn(self) -> None:
        assert Scripted.open[str(self.row.case)]
        turns = SECONDS[self.row.case.library, self.row.case.setting]
        number = len(self.row.seconds)
        if number == 4 and len(turns) == 4:
            self.row.error = "failed"
        if not self.row.error:
            self.row.seconds.append(turns[min(number, len(turns) - 1)])

    def close(self) -> None:
        Scripted.open[str(self.row.case)] = False


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Scripted, "open", {}, raising=False)
    monkeypatch.setattr("convnext.benchmark.comparison.RowProcess", Scripted)
    yield
    assert not any(Scripted.open.values())


def plan(**options: Any) -> Any:
    words = {"against": ["timm", "torchvision"], "modes": ["training"], "batches": [8], "precisions": ["fp32"]}
    return make_plan([Network("convnext_tiny")], device="cpu", compiled=False, rounds=ROUNDS, **words | options)


def measured(benchmark: Benchmark) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["library"], row["setting"]): row for row in benchmark.document()["rows"]}


@pytest.mark.usefixtures("scripted")
def test_rows_that_others_beat_end_and_the_best_of_each_library_goes_on() -> None:
    benchmark, said = Benchmark(plan()), {}
    for line in benchmark.run():
        said[line] = sum(Scripted.open.values())
    document = benchmark.document()
    rows = {(row["library"], row["setting"]): row for row in document["rows"]}
    assert {key: row["rounds"] for key, row in rows.items()} == {
        (OURS, "channels_last+kernels"): ROUNDS,
        (OURS, "eager+kernels"): ROUNDS,
        (OURS, "channels_last"): 2,
        ("timm", "channels_last"): ROUNDS,
        ("timm", "eager"): 3,
        ("torchvision", "eager"): 4,
        ("torchvision", "channels_last"): 2,
    }
    assert [len(row.seconds) for row in benchmark.groups[0] if row.case.library == CEILING] == [ROUNDS]
    slow = "channels_last+kernels is 1.50 times as fast by the best of 2 turns"
    assert rows[OURS, "channels_last"]["ended"] == slow
    assert [key for key, row in rows.items() if row["ended"]] == [
        (OURS, "channels_last"),
        ("timm", "eager"),
        ("torchvision", "channels_last"),
    ]
    # The processes that are open when a line is said: each end gives one back, and closes with its reason.
    assert said[f"ended: convnext convnext_tiny, training, fp32, batch 8, channels_last: {slow}"] == len(SECONDS) - 1
    assert [held for line, held in said.items() if line.startswith("ended: ")] == [7, 6, 5]
    assert document["ratios"]["to_best_peer"][0]["times_as_fast"] == 2


@pytest.mark.usefixtures("scripted")
def test_every_row_goes_on_where_none_is_to_end() -> None:
    benchmark = Benchmark(plan(race=False))
    assert not any(line.startswith("ended") for line in benchmark.run())
    assert [row["rounds"] for row in benchmark.document()["rows"]] == [ROUNDS] * 5 + [4, ROUNDS]


@pytest.mark.usefixtures("scripted")
def test_every_row_has_the_least_rounds_whatever_they_take() -> None:
    short = plan(seconds=1e-9)
    for least, had in ((1, 1), (3, 3), (9, ROUNDS)):
        benchmark = Benchmark(replace(short, least=least))
        list(benchmark.run())
        assert max(row["rounds"] for row in benchmark.document()["rows"]) == had


def row(setting: str, *seconds: float, **case: Any) -> Row:
    fields: dict[str, Any] = {"name": "net", "library": OURS, "mode": "inference", "precision": "fp32", "batch": 8}
    return Row(Case(setting=setting, **fields | case), 1, list(seconds))


def settings_beaten(*rows: Row) -> list[str]:
    return [slow.case.setting for slow, _ in beaten(rows)]


def test_the_margin_narrows_as_rounds_go_by() -> None:
    assert settings_beaten(row("fast", 1), row("slow", 9)) == []
    assert settings_beaten(row("fast", 1, 1), row("slow", 1.19, 9)) == []
    assert settings_beaten(row("fast", 1, 1), row("slow", 1.21, 1.21)) == ["slow"]
    assert settings_beaten(row("fast", *[1] * 4), row("slow", *[1.19] * 4)) == ["slow"]
    assert settings_beaten(row("fast", *[1] * 100), row("near", *[1.04] * 100), row("slow", *[1.06] * 100)) == ["slow"]


def test_one_fast_turn_keeps_a_row() -> None:
    assert settings_beaten(row("fast", 1, 1, 1), row("disturbed", 3, 1.1, 3)) == []


def test_a_row_races_its_own_kind_alone() -> None:
    others: list[dict[str, Any]] = [
        {"name": "other"}, {"library": "timm"}, {"mode": "training"}, {"precision": "bf16"}, {"batch": 1}
    ]  # fmt: skip
    rows = [row("fast", 1, 1), *(row(f"slow {number}", 5, 5, **case) for number, case in enumerate(others))]
    assert settings_beaten(*rows) == []


def test_what_runs_no_more_beats_no_other() -> None:
    failed, ended = row("failed", 1, 1), row("ended", 1, 1)
    failed.error, ended.ended = "out of memory", "another is faster"
    assert settings_beaten(failed, ended, row("last", 5, 5), row("never ran")) == []
