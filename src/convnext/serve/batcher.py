"""Dynamic batching: concurrent callers submit items, and one thread works on them in batches."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(NamedTuple, Generic[Item, Result]):
    """An item that waits, and when it was submitted."""

    item: Item
    future: asyncio.Future[Result]
    submitted: float


class BatchReport(NamedTuple):
    """A finished batch: its size, the seconds that each item waited, and the seconds of the work."""

    size: int
    waits: list[float]
    seconds: float


class Batcher(Generic[Item, Result]):
    """Forms batches of submitted items, in their order, and works on them in a thread.

    A batch starts when it is full or when its first item has waited ``max_wait`` seconds. During the work the next
    batch gathers, so that batches are large under load. ``report`` is called in the thread after each batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        max_batch: int,
        max_wait: float = 0,
        report: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        self.work, self.max_batch, self.max_wait, self.report = work, max_batch, max_wait, report
        self.waiting: deque[Entry[Item, Result]] = deque()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="convnext-batches")
        self.task: asyncio.Task[None] | None = None
        self.full: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self.waiting)

    async def submit(self, item: Item) -> Result:
        """Return an item's result; if this is cancelled before its batch starts, the item is dropped."""
        loop = asyncio.get_running_loop()
        entry = Entry(item, loop.create_future(), time.monotonic())
        self.waiting.append(entry)
        if self.task is None or self.task.done():
            self.task = loop.create_task(self.run())
        elif self.full is not None and not self.full.done() and len(self.waiting) >= self.max_batch:
            self.full.set_result(None)
        return await entry.future

    async def run(self) -> None:
        """Work on batches until no item waits."""
        loop = asyncio.get_running_loop()
        while self.waiting:
            seconds = self.waiting[0].submitted + self.max_wait - time.monotonic()
            if len(self.waiting) < self.max_batch and seconds > 0:
                self.full = loop.create_future()
                await asyncio.wait([self.full], timeout=seconds)
            batch: list[Entry[Item, Result]] = []
            while self.waiting and len(batch) < self.max_batch:
                entry = self.waiting.popleft()
                if not entry.future.cancelled():
                    batch.append(entry)
            if not batch:
                continue
            results = await loop.run_in_executor(self.pool, self.process, batch)
            for entry, result in zip(batch, results, strict=True):
                if entry.future.cancelled():
                    continue
                if isinstance(result, Exception):
                    entry.future.set_exception(result)
                else:
                    entry.future.set_result(result)

    def process(self, batch: list[Entry[Item, Result]]) -> list[Result | Exception]:
        """Work on a batch and report it."""
        start = time.monotonic()
        results = self.attempt([entry.item for entry in batch])
        waits = [start - entry.submitted for entry in batch]
        self.report(BatchReport(len(batch), waits, time.monotonic() - start))
        return results

    def attempt(self, items: list[Item]) -> list[Result | Exception]:
        """Return the result of each item; if the work fails, repeat it per item, so that an item fails alone."""
        try:
            return [*self.work(items)]
        except Exception as error:
            return [error] if len(items) == 1 else [result for item in items for result in self.attempt([item])]
