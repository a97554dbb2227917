"""Calls take turns, and their times are those of the rounds that count."""

import time

import pytest

from convnext.acceleration.clock import alternate, quartiles, times_as_fast


def test_calls_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_a_limit_of_time_leaves_one_round_at_least() -> None:
    order: list[int] = []
    times = alternate({"slow": lambda: (time.sleep(0.02), order.append(1))}, rounds=50, warm_up=1, seconds=0.01)
    assert len(times["slow"]) == 1
    assert len(order) == 2


def test_a_time_is_that_of_its_call() -> None:
    times = alternate({"short": lambda: None, "long": lambda: time.sleep(0.02)}, rounds=3)
    assert min(times["long"]) >= 0.02
    assert times_as_fast(times["short"], times["long"]) > 2


def test_quartiles_are_those_of_the_values_themselves() -> None:
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_the_ratio_is_that_of_the_rounds() -> None:
    assert times_as_fast([1.0, 10.0, 1.0], [2.0, 20.0, 3.0]) == pytest.approx(2.0)
