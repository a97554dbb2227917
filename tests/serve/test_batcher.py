"""Batches: every item is worked on once, in order, and neither waits long nor spoils its neighbours."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
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


Submit = Callable[[int], asyncio.Task[int]]


def run(test: Callable[[Worker, Batcher[int, int], Submit], Awaitable[None]], **options: Any) -> list[list[int]]:
    """Run a test with a batcher; the batches that there were."""
    worker = Worker()
    batcher = Batcher(worker, **options)

    async def begin() -> None:
        async with asyncio.timeout(SECONDS):
            await test(worker, batcher, lambda item: asyncio.create_task(batcher.submit(item)))

    asyncio.run(begin())
    batcher.pool.shutdown()
    return worker.batches


async def occupy(worker: Worker, submit: Submit) -> asyncio.Task[int]:
    """Keep the thread busy with 0 until the gate is opened."""
    first = submit(0)
    await asyncio.to_thread(worker.entered.wait, SECONDS)
    return first


def test_batches_have_the_items_in_order() -> None:
    reports: list[BatchReport] = []

    async def test(worker: Worker, batcher: Batcher[int, int], submit: Submit) -> None:
        tasks = [await occupy(worker, submit), *(submit(number) for number in range(1, 8))]
        await asyncio.sleep(0.05)
        assert len(batcher) == 7
        worker.gate.set()
        assert await asyncio.gather(*tasks) == [2 * number for number in range(8)]

    assert run(test, max_batch=3, report=reports.append) == [[0], [1, 2, 3], [4, 5, 6], [7]]
    assert [report.size for report in reports] == [1, 3, 3, 1]
    assert reports[0].seconds >= 0.04
    assert min(reports[1].waits) >= 0.04 > reports[0].waits[0]


def test_an_item_waits_for_others_as_long_as_it_may() -> None:
    async def test(worker: Worker, _: Any, submit: Submit) -> None:
        worker.gate.set()
        begin = time.monotonic()
        assert await submit(1) == 2
        assert 0.3 <= time.monotonic() - begin < 3
        begin = time.monotonic()
        assert await asyncio.gather(submit(2), submit(3)) == [4, 6]
        assert time.monotonic() - begin < 0.25  # a full batch does not wait

    assert run(test, max_batch=2, max_wait=0.3) == [[1], [2, 3]]


@pytest.mark.parametrize(("cancelled", "batches"), [((1, 3), [[0], [2, 4]]), ((1, 2, 3, 4), [[0]])])
def test_cancelled_items_are_not_worked_on(cancelled: tuple[int, ...], batches: list[list[int]]) -> None:
    async def test(worker: Worker, _: Any, submit: Submit) -> None:
        first = await occupy(worker, submit)
        tasks = {number: submit(number) for number in (1, 2, 3, 4)}
        await asyncio.sleep(0)
        assert all(tasks[number].cancel() for number in cancelled)
        worker.gate.set()
        await asyncio.gather(first, *tasks.values(), return_exceptions=True)
        await asyncio.sleep(0.05)

    assert run(test, max_batch=2) == batches
