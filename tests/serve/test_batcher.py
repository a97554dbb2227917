"""Batches: whatever is handed in is answered once, in order, and neither waits long nor spoils what is beside it."""

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from convnext.serve.batcher import Batcher, BatchReport

SECONDS = 10  # that a test waits at most


class Worker:
    """Doubles numbers, once the gate is open, and remembers the batches; it fails on those below 0."""

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


def behind_a_closed_gate(worker: Worker, **options: Any) -> tuple[Batcher[int, int], Future[int]]:
    """A batcher whose thread is busy with 0, and the future of that."""
    batcher = Batcher(worker, **options)
    first = batcher.submit(0)
    assert worker.entered.wait(SECONDS)
    return batcher, first


def test_what_has_gathered_goes_in_batches_in_order() -> None:
    worker = Worker()
    batcher, first = behind_a_closed_gate(worker, max_batch=3)
    futures = [first, *(batcher.submit(number) for number in range(1, 8))]
    assert len(batcher) == 7
    worker.gate.set()
    assert [future.result(SECONDS) for future in futures] == [2 * number for number in range(8)]
    assert worker.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]
    batcher.close()


def test_one_waits_for_others_as_long_as_it_may_and_no_longer() -> None:
    worker = Worker()
    worker.gate.set()
    batcher = Batcher(worker, max_batch=2, max_wait=0.2)
    start = time.monotonic()
    assert batcher.submit(1).result(SECONDS) == 2
    assert 0.2 <= time.monotonic() - start < 2
    futures = [batcher.submit(number) for number in (2, 3)]
    start = time.monotonic()
    assert [future.result(SECONDS) for future in futures] == [4, 6]
    assert time.monotonic() - start < 0.15  # a full batch waits for nobody
    assert worker.batches == [[1], [2, 3]]
    batcher.close()


def test_an_error_spoils_no_neighbour() -> None:
    worker = Worker()
    batcher, _ = behind_a_closed_gate(worker, max_batch=3)
    futures = [batcher.submit(number) for number in (1, -1, 2)]
    worker.gate.set()
    assert [futures[0].result(SECONDS), futures[2].result(SECONDS)] == [2, 4]
    with pytest.raises(ValueError, match="below 0"):
        futures[1].result(SECONDS)
    assert batcher.submit(5).result(SECONDS) == 10  # and the thread goes on
    batcher.close()


def test_what_is_cancelled_is_not_worked_on() -> None:
    worker = Worker()
    batcher, _ = behind_a_closed_gate(worker, max_batch=2)
    futures = [batcher.submit(number) for number in (1, 2, 3, 4)]
    assert futures[0].cancel()
    assert futures[2].cancel()
    worker.gate.set()
    assert [futures[1].result(SECONDS), futures[3].result(SECONDS)] == [4, 8]
    assert worker.batches == [[0], [2, 4]]
    batcher.close()


def test_where_all_is_cancelled_the_thread_goes_on() -> None:
    worker = Worker()
    batcher, _ = behind_a_closed_gate(worker, max_batch=2)
    assert [batcher.submit(number).cancel() for number in (1, 2)] == [True, True]
    worker.gate.set()
    assert batcher.submit(3).result(SECONDS) == 6
    batcher.close()


def test_closing_finishes_what_was_handed_in_and_takes_nothing_more() -> None:
    worker = Worker()
    batcher, first = behind_a_closed_gate(worker, max_batch=2)
    futures = [first, *(batcher.submit(number) for number in (1, 2, 3))]
    threading.Timer(0.1, worker.gate.set).start()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6]
    assert not batcher.thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(4)


def test_closing_waits_for_no_others() -> None:
    worker = Worker()
    worker.gate.set()
    batcher = Batcher(worker, max_batch=2, max_wait=60)
    future = batcher.submit(1)
    batcher.close()
    assert future.result(0) == 2


def test_many_threads_get_their_own_answers() -> None:
    worker = Worker()
    worker.gate.set()
    batcher, found = Batcher(worker, max_batch=7, max_wait=0.001), dict[int, int]()

    def ask(numbers: range) -> None:
        for number in numbers:
            found[number] = batcher.submit(number).result(SECONDS)

    threads = [threading.Thread(target=ask, args=(range(start, start + 50),)) for start in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == {number: 2 * number for number in range(400)}
    assert sum(map(len, worker.batches)) == 400
    assert max(map(len, worker.batches)) > 1
    batcher.close()


def test_batches_are_told_of() -> None:
    worker, told = Worker(), list[BatchReport]()
    batcher, first = behind_a_closed_gate(worker, max_batch=3, report=told.append)
    batcher.submit(1)
    last = batcher.submit(2)
    time.sleep(0.05)
    worker.gate.set()
    assert (first.result(SECONDS), last.result(SECONDS)) == (0, 4)
    batcher.close()
    assert [done.size for done in told] == [1, 2]
    assert told[0].seconds >= 0.05
    assert min(told[1].waits) >= 0.05 > told[0].waits[0]
