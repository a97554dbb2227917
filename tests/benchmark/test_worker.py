"""What a process runs in a turn, by calls whose seconds are given rather than waited for."""

from collections.abc import Callable
from typing import Any

import pytest

from convnext.benchmark import worker
from convnext.benchmark.case import Case

ROW = Case("convnext_atto", "convnext", "training", "fp32", 8, "channels_last+kernels")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], float]]:
    """A row's turn, prepared, whose calls take these seconds one after the other."""

    def prepare(seconds: list[float]) -> Callable[[], float]:
        monkeypatch.setattr(worker, "call_of", lambda *_: (lambda: seconds.pop(0), 8))
        monkeypatch.setattr(worker, "seconds_of", lambda call: call())
        monkeypatch.setattr(worker, "give_back", lambda: None)  # takes a second where many libraries are loaded
        turn, facts, _ = worker.prepared(ROW)
        assert facts == {"work": 8, "notes": []}
        return turn

    return prepare


@pytest.mark.parametrize(
    ("seconds", "warm_up", "counted"),
    [
        ([0.9, 0.5, 0.5, 0.3, *[0.06] * 4], 3, 0.06),  # a turn is filled by four
        ([0.01] * 3 + [0.09, 0.05, 0.07, 0.09], 3, 0.07),
        ([0.4, 0.3, 0.3, 0.5, 0.25], 3, 0.25),
        ([23, 22, 20], 1, 20),  # long: one before the first turn, one that does not count, one that does
        ([60, 0.5, 0.1, 0.1], 1, 0.1),  # compiled by the first
    ],
)
def test_a_turn_is_as_many_calls_as_fill_it(script: Any, seconds: list[float], warm_up: int, counted: float) -> None:
    left = [*seconds]
    turn = script(left)
    assert len(seconds) - len(left) == warm_up
    assert turn() == pytest.approx(counted)
    assert left == []
