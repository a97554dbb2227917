"""Memory that training keeps from step to step, counted in processes of their own, and its huge pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convnext.acceleration.cpu.heap import empty
from convnext.acceleration.cpu.native import available

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
needs_compiler = pytest.mark.skipif(not available(), reason="no C compiler here")

# Of a process of its own: how often the system handed out pages for a map of 256 MB that was written for the third
# time. Of 2 MiB, where it gives such to every process, they are 128.
TRAIN_AND_COUNT = """
import resource
import torch
import convnext
from convnext.models.convnext import Block

block = convnext.accelerate(Block(24, 7, drop_path=0.0, layer_scale_init_value=1.0, grn=False), training=True)
for _ in range(2):
    block(torch.randn(1, 24, 96, 96)).sum().backward()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(3)][-1])
"""


def faults(**variables: str) -> int:
    words = [sys.executable, "-W", "error", "-c", TRAIN_AND_COUNT]
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_compiler
def test_memory_is_kept_once_kernels_run() -> None:
    assert faults() < 20


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"CONVNEXT_KERNELS": "off"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_memory_is_given_back(variables: dict[str, str]) -> None:
    assert faults(**variables) > 100


def test_large_memory_is_asked_for_in_huge_pages() -> None:
    def flags(tensor: torch.Tensor) -> list[str]:
        middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first, *rest = line.split()
            if not first.endswith(":"):
                low, high = (int(end, 16) for end in first.split("-"))
                inside = low <= middle < high
            elif inside and first == "VmFlags:":
                return rest
        raise AssertionError("the tensor is in no mapping")

    assert "hg" in flags(empty((64, 2**20), torch.float32))
    small = empty((3, 5), torch.bfloat16)
    assert (small.shape, small.dtype) == ((3, 5), torch.bfloat16)
