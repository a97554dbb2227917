"""`train`: a recipe in, a run out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext.training.checkpoint import RunFolder
from convnext.training.distributed import joined
from convnext.training.loop import training
from convnext.training.progress import show_training
from convnext.training.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        dir: its folder.
        recipe: what it did.
        metrics: one dictionary an epoch, as in ``metrics.jsonl``.
    """

    dir: Path
    recipe: Recipe
    metrics: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """Metrics of the epoch whose weights are in ``best.safetensors``."""
        return max(self.metrics, key=lambda metrics: metrics["top1"])

    @property
    def seconds(self) -> float:
        """Time in training and evaluation."""
        return sum(metrics["seconds"] for metrics in self.metrics)


def train(recipe: Recipe, out: str | Path | None = None) -> Run:
    """Train by a recipe, with live progress on stderr; a run that stopped goes on, a finished one is read.

    Under torchrun, the processes that it started train together.

    Args:
        recipe: what to do; see :mod:`convnext.training.recipe` for named ones.
        out: the run's folder; by default ``runs/MODEL-DATA``.

    Raises:
        UsageError: the recipe does not fit the data, or the folder belongs to another recipe.
        RunError: the work failed; the message says what is kept and how to go on.
    """
    folder = Path(out) if out is not None else default_folder(recipe)
    with joined(recipe.device) as processes:
        updates = training(recipe, folder, processes)
        show_training(updates, f"{recipe.model} on {recipe.data}", warnings_only=not processes.first)
    return read_run(recipe, folder)


def read_run(recipe: Recipe, folder: Path) -> Run:
    """The run in a folder."""
    return Run(folder, recipe, RunFolder(folder).metrics())


def default_folder(recipe: Recipe) -> Path:
    """``runs/MODEL-DATA``."""
    return Path("runs") / f"{recipe.model.replace('/', '-')}-{data_name(recipe.data)}"


def data_name(data: str) -> str:
    """A data set's name as a part of a path: the last folder of a path, the name of an embedded set."""
    return Path(data.removeprefix("imagenet:")).resolve().name or "data"
