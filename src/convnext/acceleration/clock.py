"""Times of calls that take turns, round by round, so that a slow moment of the machine falls on all of them."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def alternate(
    calls: Mapping[Key, Callable[[], Any]], rounds: int, warm_up: int = 2, seconds: float = float("inf")
) -> dict[Key, list[float]]:
    """Seconds that each call took in each round.

    Args:
        calls: what to time, by name; work that they leave on a GPU is waited for.
        rounds: at most; every call runs once in each.
        warm_up: rounds before the first that counts.
        seconds: begin no further round later than this; one is measured always.
    """
    times: dict[Key, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(rounds + warm_up):
        if number > warm_up and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            took = seconds_of(call)
            if number >= warm_up:
                times[name].append(took)
    return times


def seconds_of(call: Callable[[], Any]) -> float:
    """One call, to its end."""
    start = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles of some values, the second of which is the median; of one value it is all three."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast our call is: the median of the rounds' own ratios."""
    return statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
