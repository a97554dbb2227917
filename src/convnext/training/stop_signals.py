"""Signals that end a training: it finishes its step, saves, and says how to resume."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from convnext.errors import RunError

PREEMPTION = ("SIGTERM", "SIGUSR1")  # sent by SLURM and the clouds before they take a machine away


class PreemptedError(RunError):
    """A signal ended the training and everything is saved; the exit status means "try again" (EX_TEMPFAIL)."""

    exit_status = 75


class StopRequest:
    """The signal that asked the training to stop; False while there is none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.time = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Record a signal; a second Ctrl-C ends at once (not its echo: torchrun forwards what its ranks got too)."""
        if number == signal.SIGINT == self.signal and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        self.signal, self.time = signal.Signals(number), time.monotonic()

    def outcome(self, place: str, advice: str) -> BaseException:
        """The exception that ends the training at ``place``, with ``advice`` on how to resume."""
        if self.signal == signal.SIGINT:
            return KeyboardInterrupt(f"Interrupted in {place}.")
        name = self.signal.name if self.signal else "a signal to another rank"
        return PreemptedError(f"stopped by {name} in {place}, all is saved: {advice}")


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record Ctrl-C, SIGTERM and SIGUSR1 inside the block; signals reach the main thread only."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", *PREEMPTION) if hasattr(signal, name)]
    before = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
