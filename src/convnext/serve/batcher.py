"""One thread that works on what many hand in, in batches: the network's own, and the maps'."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CLOSING_SECONDS = 10  # that a batch in the middle of its work is waited for


class Entry(NamedTuple, Generic[Item, Result]):
    """Something handed in, and when."""

    item: Item
    future: Future[Result]
    arrived: float


class Done(NamedTuple):
    """What became of a batch: how many there were, how long each had waited, and the seconds that the work took."""

    size: int
    waited: list[float]
    seconds: float


class Batcher(Generic[Item, Result]):
    """Forms batches of what is waiting, in the order in which it came, and works on them in a thread.

    A batch begins once it is full, or once its first item has waited long enough. While one is worked on, the next one
    gathers, so that under load batches are as large as they may be.

    Args:
        work: from the items of a batch to their results, in the same order.
        max_batch: items of a batch.
        max_wait: seconds that an item waits for others.
        done: told what became of each batch, in the thread.
        name: of the thread.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        max_batch: int,
        max_wait: float = 0,
        done: Callable[[Done], None] = lambda _: None,
        name: str = "convnext-batches",
    ) -> None:
        self.work, self.max_batch, self.max_wait, self.done = work, max_batch, max_wait, done
        self.waiting: deque[Entry[Item, Result]] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.thread.start()

    def __len__(self) -> int:
        return len(self.waiting)

    def submit(self, item: Item) -> Future[Result]:
        """Hand in an item. Its future can be cancelled as long as no batch with it has begun.

        Raises:
            RuntimeError: the batcher is closed.
        """
        entry = Entry(item, Future[Result](), time.monotonic())
        with self.changed:
            if self.closed:
                raise RuntimeError("the batcher is closed")
            self.waiting.append(entry)
            self.changed.notify()
        return entry.future

    def close(self) -> None:
        """Take nothing more, finish what has been handed in, and end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join(CLOSING_SECONDS)

    def run(self) -> None:
        """What the thread does."""
        while (batch := self.next_batch()) is not None:
            if batch:
                start = time.monotonic()
                self.answer(batch)
                waited = [start - entry.arrived for entry in batch]
                self.done(Done(len(batch), waited, time.monotonic() - start))

    def next_batch(self) -> list[Entry[Item, Result]] | None:
        """The next batch, without what was cancelled; None where all is done."""
        with self.changed:
            while not self.waiting:
                if self.closed:
                    return None
                self.changed.wait()
            begin = self.waiting[0].arrived + self.max_wait
            while len(self.waiting) < self.max_batch and not self.closed:
                left = begin - time.monotonic()
                if left <= 0:
                    break
                self.changed.wait(left)
            batch: list[Entry[Item, Result]] = []
            while self.waiting and len(batch) < self.max_batch:
                entry = self.waiting.popleft()
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
        return batch

    def answer(self, batch: list[Entry[Item, Result]]) -> None:
        """Give a batch its results; where it fails, each item by itself, so that it spoils no other's."""
        try:
            results = self.work([entry.item for entry in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for entry in batch:
                    self.answer([entry])
            return
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)
