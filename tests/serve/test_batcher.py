"""Batches: every item is worked on once, in order, and neither waits long nor spoils its neighbours."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from convnext.serve.batcher import Batcher, BatchReport

SECONDS = 10  # that a test waits at most


class Worker:
    """Doubles numbers once the gate is open, and remembers the batches; it fails on those below 0."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.entered.set()
        assert self.gate.wait(SECONDS)
        self.batches.append(items)
        if min(items) < 0:
            raise ValueError("below 0")
        return [2 * item for item in items]


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Worker, Batcher[int, int], Future[int]]]]:
    """Start a batcher whose thread is busy with 0."""
    batchers: list[Batcher[int, int]] = []

    def begin(**options: Any) -> tuple[Worker, Batcher[int, int], Future[int]]:
        worker = Worker()
        batchers.append(Batcher(worker, **options))
        first = batchers[-1].submit(0)
        assert worker.entered.wait(SECONDS)
        return worker, batchers[-1], first

    yield begin
    for batcher in batchers:
        batcher.close()


def test_batches_have_the_items_in_order(start: Any) -> None:
    reports: list[BatchReport] = []
    worker, batcher, first = start(max_batch=3, report=reports.append)
    futures = [first, *(batcher.submit(number) for number in range(1, 8))]
    assert len(batcher) == 7
    time.sleep(0.05)
    worker.gate.set()
    assert [future.result(SECONDS) for future in futures] == [2 * number for number in range(8)]
    batcher.close()
    assert worker.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]
    assert [report.size for report in reports] == [1, 3, 3, 1]
    assert reports[0].seconds >= 0.05
    assert min(reports[1].waits) >= 0.05 > reports[0].waits[0]


def test_an_item_waits_for_others_as_long_as_it_may(start: Any) -> None:
    worker, batcher, first = start(max_batch=2, max_wait=0.2)
    worker.gate.set()
    first.result(SECONDS)
    begin = time.monotonic()
    assert batcher.submit(1).result(SECONDS) == 2
    assert 0.2 <= time.monotonic() - begin < 2
    begin = time.monotonic()
    futures = [batcher.submit(number) for number in (2, 3)]
    assert [future.result(SECONDS) for future in futures] == [4, 6]
    assert time.monotonic() - begin < 0.15  # a full batch does not wait
    assert worker.batches == [[0], [1], [2, 3]]


def test_an_item_fails_alone(start: Any) -> None:
    worker, batcher, _ = start(max_batch=3)
    futures = [batcher.submit(number) for number in (1, -1, 2)]
    worker.gate.set()
    assert [futures[0].result(SECONDS), futures[2].result(SECONDS)] == [2, 4]
    with pytest.raises(ValueError, match="below 0"):
        futures[1].result(SECONDS)
    assert batcher.submit(5).result(SECONDS) == 10  # the thread still runs


@pytest.mark.parametrize(("cancelled", "batches"), [((1, 3), [[0], [2, 4]]), ((1, 2, 3, 4), [[0]])])
def test_cancelled_items_are_not_worked_on(cancelled: tuple[int, ...], batches: list[list[int]], start: Any) -> None:
    worker, batcher, _ = start(max_batch=2)
    futures = {number: batcher.submit(number) for number in (1, 2, 3, 4)}
    assert all(futures[number].cancel() for number in cancelled)
    worker.gate.set()
    batcher.close()
    assert worker.batches == batches


def test_closing_finishes_what_was_submitted(start: Any) -> None:
    worker, batcher, first = start(max_batch=2)
    futures = [first, *(batcher.submit(number) for number in (1, 2, 3))]
    threading.Timer(0.1, worker.gate.set).start()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6]
    assert not batcher.thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(4)
    patient = Batcher(worker, max_batch=2, max_wait=60)
    future = patient.submit(1)
    patient.close()  # does not wait for others
    assert future.result(0) == 2


def test_many_threads_get_their_own_results(start: Any) -> None:
    worker, batcher, _ = start(max_batch=7, max_wait=0.001)
    worker.gate.set()
    found: dict[int, int] = {}

    def ask(numbers: range) -> None:
        for number in numbers:
            found[number] = batcher.submit(number).result(SECONDS)

    threads = [threading.Thread(target=ask, args=(range(first, first + 50),)) for first in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == {number: 2 * number for number in range(400)}
    assert 1 < max(map(len, worker.batches)) <= 7
