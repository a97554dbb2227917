"""The process's memory in training on the CPU: kept from step to step, and in huge pages.

Maps of a first stage are tens of megabytes. glibc gives such memory back to the system as soon as it is free, and takes
it anew at the next step, in pages of 4 KiB that the system clears one by one: tens of thousands in a step. Here the
process keeps what it has, as it does on a GPU, and asks for pages of 2 MiB.
"""

import ctypes
import gc
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

HUGE_PAGE = 2 * 1024 * 1024
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # options of mallopt, in malloc.h
LARGEST, LARGEST_BEFORE_2_35 = 2**31 - 1, 2**25  # value of an option; of the last one in glibc's older versions
GROWTH = 64 * 1024 * 1024  # bytes that the heap grows by, of which only what is written to is taken from the system
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")  # a user's own


class Heap:
    """glibc's heap: up to which address huge pages were asked for; None where it does not keep memory."""

    end: int | None = None


def keep_memory() -> None:
    """Let the process keep memory that is free, from now on, unless its environment says how glibc is to do that.

    :func:`give_back` gives it back. Other C libraries, and allocators in glibc's place, go on as they do.
    """
    if Heap.end is not None or sys.platform != "linux" or any(name in os.environ for name in SETTINGS):
        return
    system = libc()
    if not hasattr(system, "mallopt"):
        return
    _ = system.mallopt(MMAP_THRESHOLD, LARGEST) or system.mallopt(MMAP_THRESHOLD, LARGEST_BEFORE_2_35)
    system.mallopt(TRIM_THRESHOLD, LARGEST)
    system.mallopt(TOP_PAD, GROWTH)
    Heap.end = system.sbrk(0)


def give_back() -> None:
    """Give memory that is free in this process back to the system; nothing where that is not glibc's to do."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):
            libc().malloc_trim(0)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor for a kernel to write, its memory asked for in huge pages where it is large."""
    tensor = torch.empty(shape, dtype=dtype)
    if sys.platform == "linux":
        ask_for_huge_pages(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
        ask_for_heap()
    return tensor


def ask_for_heap() -> None:
    """Ask for what the heap has grown by in huge pages, so that torch's own operators write to such as well."""
    if Heap.end is not None:
        begin, end = Heap.end // HUGE_PAGE * HUGE_PAGE, libc().sbrk(0)
        ask_for_huge_pages(begin, end)
        Heap.end = end


def ask_for_huge_pages(begin: int, end: int) -> None:
    """Ask for the whole huge pages between two addresses; where the system refuses, they are small."""
    first, behind = -(-begin // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
    if first < behind:
        libc().madvise(first, behind - first, mmap.MADV_HUGEPAGE)


@cache
def libc() -> ctypes.CDLL:
    """The C library."""
    system = ctypes.CDLL(None)
    system.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    system.sbrk.argtypes, system.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    return system
