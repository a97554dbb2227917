"""Threads and the processors that they are pinned to, so that a figure says what it was measured on."""

import os
from pathlib import Path

import torch

from convnext.errors import UsageError

TOPOLOGY = Path("/sys/devices/system/cpu")


def choose_threads(threads: int | None) -> int:
    """The number of threads: what is asked for, or torch's own choice, which is one for each core.

    Raises:
        UsageError: more than there are processors for this process, or none.
    """
    if threads is None:
        return torch.get_num_threads()
    most = len(allowed()) or os.cpu_count() or 1
    if not 1 <= threads <= most:
        raise UsageError(f"threads is {threads}, needs 1 to {most}, the processors that this process may run on")
    return threads


def allowed() -> set[int]:
    """The processors that this process may run on; none where the system cannot say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def processors_for(threads: int) -> set[int]:
    """As many processors as there are threads, each on a core of its own as far as possible; none for no pinning."""
    cores: dict[str, list[int]] = {}
    for number in sorted(allowed()):
        cores.setdefault(siblings(number), []).append(number)
    ordered = sorted((place, number) for core in cores.values() for place, number in enumerate(core))
    return {number for _, number in ordered[:threads]} if threads <= len(ordered) else set()


def siblings(number: int) -> str:
    """The processors that share a core with one, itself among them, as the system names them."""
    path = TOPOLOGY / f"cpu{number}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else str(number)
