"""The machine under test: the CPUs that threads are pinned to, its rate of matrix products, and peak memory."""

import os
import resource
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from convnext.acceleration.clock import alternate
from convnext.acceleration.cpu.heap import give_back
from convnext.benchmark.configurations import Call, Precision
from convnext.errors import UsageError

TOPOLOGY = Path("/sys/devices/system/cpu")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# (M, K, N): linear layers of ConvNeXt-T's last three stages for 16 images of 224 px, and squares.
SIZES = ((12544, 192, 768), (3136, 384, 1536), (784, 3072, 768), (1024, 1024, 1024), (2048, 2048, 2048))
GPU_SIZES = ((4096, 4096, 4096), (8192, 8192, 8192))
TRAINING_PASSES = 3  # forward, and backward for the gradients of input and weights


def choose_threads(threads: int | None) -> int:
    """The number of threads that was requested, or torch's default, which is one per core.

    Raises:
        UsageError: it exceeds the CPUs that this process may run on, or is not positive.
    """
    if threads is None:
        return torch.get_num_threads()
    maximum = len(allowed()) or os.cpu_count() or 1
    if not 1 <= threads <= maximum:
        raise UsageError(f"threads is {threads}, needs 1 to {maximum}, the CPUs that this process may run on")
    return threads


def allowed() -> set[int]:
    """The CPUs that this process may run on; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def cpus_for(threads: int) -> set[int]:
    """As many CPUs as threads, each on a core of its own as far as possible; none for no pinning."""
    cores: dict[str, list[int]] = {}
    for number in sorted(allowed()):
        cores.setdefault(siblings(number), []).append(number)
    ordered = sorted((place, number) for core in cores.values() for place, number in enumerate(core))
    return {number for _, number in ordered[:threads]} if threads <= len(ordered) else set()


def siblings(number: int) -> str:
    """The CPUs that share a core with one, itself among them, as the system lists them."""
    path = TOPOLOGY / f"cpu{number}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else str(number)


def matrix_products(precision: Precision, device: torch.device) -> tuple[Call, float]:
    """A call of the fastest matrix product among sizes like a model's, and its FLOP: the ceiling of any model."""
    calls, flop = {}, {}
    for size in SIZES if device.type == "cpu" else GPU_SIZES:
        m, k, n = size
        left = torch.randn(m, k, device=device, dtype=DTYPES[precision])
        right = torch.randn(k, n, device=device, dtype=DTYPES[precision])
        calls[size] = partial(torch.mm, left, right)
        flop[size] = 2.0 * m * k * n
    times = alternate(calls, rounds=5)
    best = max(calls, key=lambda size: flop[size] / min(times[size]))
    return calls[best], flop[best]


def flop_of_image(macs: int, mode: str) -> float:
    """FLOP per image: twice its multiply-accumulates, in training for each of the three passes."""
    return 2.0 * macs * (TRAINING_PASSES if mode == "training" else 1)


class PeakMemory:
    """Peak memory in bytes above what was held when this was made.

    On a CUDA GPU it is what torch had allocated. On a CPU it is the process's resident memory: weights, activations,
    what the allocator caches and, of a compiled model, the compiler's own. On other devices it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        give_back()  # free memory left by imports would hide as much of what follows
        self.before = resident("VmRSS") if device.type == "cpu" else 0

    def reset(self) -> None:
        """Forget earlier peaks, such as a compiler's; where the system cannot, they count."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self.device.type == "cpu":
            with suppress(OSError):
                CLEAR.write_text("5")  # resets the peak, VmHWM

    def bytes(self) -> int | None:
        """The peak since :meth:`reset`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return max(0, resident("VmHWM") - self.before) if self.device.type == "cpu" else None


def resident(field: str) -> int:
    """The process's resident bytes: VmRSS now, VmHWM at the peak; outside Linux always the peak."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return 1024 * int(value.split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
