"""The kernels, compiled for a H100 or H200 where none need be: what a thread needs is there."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from convnext.acceleration.gpu.triton_runtime import has_triton

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_triton(), reason="needs Triton")]
SHARED_MEMORY = 227 * 1024  # bytes that a program may take


def compiled(*words: str) -> list[dict[str, Any]]:
    """What each kernel needs for each of its tiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.acceleration.gpu.compiled", *words]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("maps", "dtype", "size"), [("all", "bfloat16", 7), ("3", "float32", 7), ("3", "bfloat16", 11)]
)
def test_depthwise(maps: str, dtype: str, size: int) -> None:
    kernels = compiled("depthwise", maps, dtype, str(size))
    assert {need["kernel"] for need in kernels} == {
        "convolution_kernel",
        "convolution_norm_kernel",
        "norm_gradient_kernel",
        "weight_gradient_kernel",
    }
    for need in kernels:
        assert need["spilled"] <= 8, need  # ptxas may set one value aside where it aims at fewer registers
        assert need["shared"] <= 48 * 1024, need
        assert dtype == "float32" or need["registers"] <= 232, need  # two programs of four warps at once


def test_linear_layers() -> None:
    kernels = compiled("linear")
    fitting: defaultdict[str, int] = defaultdict(int)
    for need in kernels:
        assert need["matrix"], need
        assert need["spilled"] <= 256, need  # a few values of an epilogue, rather than the sums of a loop
        fits = not need["spilled"] and need["shared"] <= SHARED_MEMORY
        fitting[f"{need['kernel']} {need['sizes']}"] += fits
    assert len(fitting) == 4 * 5 + 3 * 2
    assert min(fitting.values()) >= 1, fitting


def test_patches() -> None:
    kernels = compiled("patches")
    assert len(kernels) == 12
    assert all(need["wide"] and not need["spilled"] for need in kernels), kernels
