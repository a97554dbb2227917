"""What the tests of training read from run folders."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.training.build import NO_OBJECTS, Objects
from convnext.training.fit import fit
from convnext.training.recipe import Recipe

TIMES = ("seconds", "images_per_second", "data_wait")


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint."""
    return torch.load(folder / "last.pt", weights_only=True)


def position(folder: Path) -> tuple[int, int]:
    """Epoch and step of the last checkpoint."""
    return state(folder)["epoch"], state(folder)["step"]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of a nested state, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def log(folder: Path) -> list[dict[str, Any]]:
    """The metrics of every epoch, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_end(first: Path, second: Path) -> None:
    """Two runs are equal to the bit: weights, what else the checkpoint holds, and metrics."""
    ours, theirs = (tensors(state(folder)["learner"]) for folder in (first, second))
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert log(first) == log(second)
    assert (first / "best.safetensors").read_bytes() == (second / "best.safetensors").read_bytes()


def cut_off(recipe: Recipe, folder: Path, stop: tuple[int, int], objects: Objects = NO_OBJECTS) -> None:
    """Train until an epoch and a step, and leave as a kill does."""
    updates = fit(recipe, folder, objects=objects)
    next(progress for progress in updates if (progress.epoch, progress.step) == stop)
    updates.close()


def wait_for_checkpoint(folder: Path, after: int = 0, is_running: Callable[[], bool] = lambda: True) -> None:
    """Wait for a checkpoint written after a time (in ns), or for the end of the process that writes it."""
    deadline = time.monotonic() + 120
    while not (folder / "last.pt").exists() or (folder / "last.pt").stat().st_mtime_ns <= after:
        assert time.monotonic() < deadline
        if not is_running():
            return
        time.sleep(0.005)
