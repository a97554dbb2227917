"""The kernels of a block's linear layers, compiled for a H100 or H200 where none need be."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from convnext.kernels.gpu.runtime import has_triton

SHARED_MEMORY = 227 * 1024  # bytes that a block of threads may take


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="needs Triton")
def test_tiles_fit_the_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.gpu.hopper"]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fitting: defaultdict[str, int] = defaultdict(int)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        assert row["wgmma"], row  # the tensor cores' own instruction, operands in shared memory
        assert row["stack"] <= 256, row  # a few values of an epilogue, rather than the sums of a loop
        fitting[f"{row['kernel']} {row['flags']} {row['width']}"] += not row["stack"] and row["shared"] <= SHARED_MEMORY
    assert rows
    assert min(fitting.values()) >= 1, fitting
