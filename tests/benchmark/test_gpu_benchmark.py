"""``benchmarks/gpu.py`` at toy size, in Triton's interpreter; and what it says of the targets."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convnext.acceleration.gpu.triton_runtime import has_triton

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="needs Triton")
def test_a_toy_run() -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy", "--seconds", "200"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout
    assert "copies" in said.splitlines()[0]
    kernels = ("depthwise + norm", "gradient of the weight", "mlp, nothing kept", "gradient through GELU")
    for words in (*kernels, "norm into patches", "convnext  fused", "timm  eager", "times the best peer", "missed"):
        assert words in said, said
    assert "Error" not in said
    assert "left out" not in said


def row(library: str, setting: str, speed: float, memory: float, mode: str = "training", batch: int = 256) -> Any:
    return {
        "network": "convnext_tiny",
        "mode": mode,
        "batch": batch,
        "library": library,
        "setting": setting,
        "images_per_second": "" if not speed else f"{speed}",
        "peak_mib": f"{memory}",
    }


def test_targets_are_held_against_the_best_peer() -> None:
    rows = [
        row("convnext", "fused", 180, 60),
        row("convnext", "plain", 500, 10),
        row("timm", "compiled", 100, 100),
        row("timm", "eager", 50, 10),
        row("torchvision", "compiled", 0, 1),
        row("convnext", "fused", 300, 1, "inference"),
        row("timm", "max-autotune", 200, 1, "inference"),
        row("convnext", "fused, CUDA graph", 15, 1, "inference", 1),
        row("timm", "max-autotune", 10, 1, "inference", 1),
        row("timm", "eager", 10, 1, "inference", 64),
    ]
    assert load("gpu_rows").verdicts(rows, 12e3, {"convnext_tiny": 10}) == [
        "convnext_tiny, training, batch 256: 1.80 times the best peer (fused against timm compiled); "
        "target 1.8: reached",
        "convnext_tiny, training, batch 256: 0.60 of its memory; target 0.65: reached",
        "convnext_tiny, inference, batch 256: 1.50 times the best peer (fused against timm max-autotune); "
        "target 2: missed",
        "convnext_tiny, inference, batch 256: 50.0% of the matrix products; target 0.35: reached",
        "convnext_tiny, inference, batch 1: 1.50 times the best peer (fused, CUDA graph against timm max-autotune); "
        "target 1.5: reached",
    ]


def test_the_most_important_rows_come_first() -> None:
    rows = load("gpu_rows").all_rows(toy=False)
    assert [(row.cell, row.library, row.setting) for row in rows[:2]] == [
        ("convnext_tiny/training/256", "convnext", "fused"),
        ("convnext_tiny/training/256", "timm", "channels_last"),
    ]
    place = {row: i for i, row in enumerate(rows)}
    assert len(place) == len(rows)
    for row in rows:
        assert row.seconds > 0
        if row.batch == 64 and row.library == "timm":
            assert place[replace(row, batch=256)] < place[row]
    assert not any(row.library == "torchvision" and "v2" in row.name for row in rows)
