"""Pinning and peak memory."""

import os
import sys

import pytest
import torch

from convnext.benchmark.machine import PeakMemory, choose_threads, cpus_for, siblings
from convnext.errors import UsageError


def test_threads_are_pinned_to_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}
    monkeypatch.setattr("convnext.benchmark.machine.allowed", lambda: {0, 1, 4, 5})
    monkeypatch.setattr("convnext.benchmark.machine.siblings", pairs.__getitem__)
    assert [cpus_for(threads) for threads in (2, 3, 5)] == [{0, 1}, {0, 1, 4}, set()]
    assert choose_threads(4) == 4
    with pytest.raises(UsageError, match="threads is 5"):
        choose_threads(5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /sys")
def test_a_cpu_is_its_own_sibling() -> None:
    assert siblings(min(os.sched_getaffinity(0)))


def test_peak_memory_is_that_of_what_ran() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    torch.ones(16 << 20).sum()  # 4 bytes each
    peak = memory.bytes()
    assert peak is not None
    assert 60 << 20 < peak < 200 << 20
