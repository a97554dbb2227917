"""Dynamic batching: one thread that works on what many callers submit, in batches."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CLOSE_SECONDS = 10  # for a batch in progress


class Entry(NamedTuple, Generic[Item, Result]):
    """An item that waits, and when it was submitted."""

    item: Item
    future: Future[Result]
    submitted: float


class BatchReport(NamedTuple):
    """A finished batch: its size, the seconds that each item waited, and the seconds of the work."""

    size: int
    waits: list[float]
    seconds: float


class Batcher(Generic[Item, Result]):
    """A thread that forms batches of submitted items, in their order, and works on them.

    A batch starts when it is full or when its first item has waited ``max_wait``. During the work the next batch
    gathers, so that batches are large under load.

    Args:
        work: from the items of a batch to their results, in the same order.
        max_batch: items per batch.
        max_wait: seconds that an item waits for others.
        report: called in the thread after each batch.
        name: of the thread.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        max_batch: int,
        max_wait: float = 0,
        report: Callable[[BatchReport], None] = lambda _: None,
        name: str = "convnext-batches",
    ) -> None:
        self.work, self.max_batch, self.max_wait, self.report = work, max_batch, max_wait, report
        self.queue: queue.Queue[Entry[Item, Result] | None] = queue.Queue()  # None once it is closed
        self.lock, self.is_closed = threading.Lock(), False
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.thread.start()

    def __len__(self) -> int:
        return self.queue.qsize()

    def submit(self, item: Item) -> Future[Result]:
        """Submit an item. Its future can be cancelled until its batch is formed.

        Raises:
            RuntimeError: the batcher is closed.
        """
        entry = Entry(item, Future[Result](), time.monotonic())
        with self.lock:
            if self.is_closed:
                raise RuntimeError("the batcher is closed")
            self.queue.put(entry)
        return entry.future

    def close(self) -> None:
        """Refuse new items, finish those submitted, and end the thread."""
        with self.lock:
            self.is_closed = True
            self.queue.put(None)
        self.thread.join(CLOSE_SECONDS)

    def run(self) -> None:
        """Work on batches until the batcher is closed."""
        while (first := self.queue.get()) is not None:
            batch = self.gather(first)
            if batch:
                start = time.monotonic()
                self.resolve(batch)
                waits = [start - entry.submitted for entry in batch]
                self.report(BatchReport(len(batch), waits, time.monotonic() - start))

    def gather(self, first: Entry[Item, Result]) -> list[Entry[Item, Result]]:
        """Return a batch of what arrives in time, without cancelled items."""
        batch: list[Entry[Item, Result]] = []
        entry: Entry[Item, Result] | None = first
        end = first.submitted + self.max_wait
        while entry is not None:
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
            if len(batch) == self.max_batch:
                return batch
            try:
                entry = self.queue.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                return batch
        self.queue.put(None)  # closed: run reads it after this batch
        return batch

    def resolve(self, batch: list[Entry[Item, Result]]) -> None:
        """Set a batch's results. If the work fails, repeat it per item, so that an item fails alone."""
        try:
            results = self.work([entry.item for entry in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for entry in batch:
                    self.resolve([entry])
            return
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)
