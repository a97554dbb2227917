"""Signals that ask a training to end: it finishes its step, saves, and says how to go on."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from convnext.errors import RunError

PREEMPTION = ("SIGTERM", "SIGUSR1")  # what SLURM and the clouds send before they take a machine away


class PreemptedError(RunError):
    """A signal ended the training, all is saved; the exit status is the usual one for "try again" (EX_TEMPFAIL)."""

    exit_status = 75


class StopRequest:
    """The signal that asked the training to end, if one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.time = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal; another Ctrl-C ends at once (not its echo: torchrun passes on what its processes got too)."""
        if number == signal.SIGINT == self.signal and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        self.signal, self.time = signal.Signals(number), time.monotonic()

    def outcome(self, place: str, kept: str) -> BaseException:
        """What ends the training after its step: at which ``place``, and how to go on with what is ``kept``."""
        if self.signal == signal.SIGINT:
            return KeyboardInterrupt(f"Interrupted in {place}.")
        name = self.signal.name if self.signal else "a signal to another process"
        return PreemptedError(f"stopped by {name} in {place}, all is saved: {kept}")


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note Ctrl-C, SIGTERM and SIGUSR1 instead of ending at once; in other threads than the first, nothing is noted."""
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
