"""The memory that a process or a GPU held at most while something ran."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from convnext.acceleration.cpu.heap import give_back

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes above what was held when this was made.

    On a CUDA GPU they are what torch had allocated. On a processor they are the process's resident memory: weights,
    activations, what the allocator keeps for the next call, and of a compiled network the compiler's own. Elsewhere
    they are not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        give_back()  # what importing left free would hide as much of what comes
        self.before = resident("VmRSS") if device.type == "cpu" else 0

    def begin(self) -> None:
        """Forget what was held for a moment before, as when compiling; where the system cannot, it counts."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self.device.type == "cpu":
            with suppress(OSError):
                CLEAR.write_text("5")  # resets the peak, VmHWM

    def bytes(self) -> int | None:
        """The most since :meth:`begin`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return max(0, resident("VmHWM") - self.before) if self.device.type == "cpu" else None


def resident(field: str) -> int:
    """The process's resident bytes: VmRSS now, VmHWM at most; outside Linux always at most."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return 1024 * int(value.split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
