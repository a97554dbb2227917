"""`train`: a recipe in, a run out."""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext.acceleration.cpu.heap import give_back
from convnext.errors import RunError
from convnext.training.checkpoint import RunFolder
from convnext.training.curves import write_curves
from convnext.training.distributed import joined
from convnext.training.fit import Progress, training
from convnext.training.logging import check_trackers, open_trackers
from convnext.training.progress import show_training, show_warnings
from convnext.training.recipe import Recipe

TRACK_EVERY = 10  # steps between two records of the loss within an epoch


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
    def weights(self) -> Path:
        """The file of the best epoch's weights."""
        return RunFolder(self.dir).best

    @property
    def best(self) -> dict[str, Any]:
        """Metrics of the epoch whose weights are in ``weights``."""
        return max(self.metrics, key=lambda metrics: metrics["top1"])

    @property
    def seconds(self) -> float:
        """Time in training and evaluation, all sessions."""
        return sum(metrics["seconds"] for metrics in self.metrics)


def train(recipe: Recipe, out: str | Path | None = None, opening: str = "") -> Run:
    """Train by a recipe, with live progress on stderr; a run that stopped goes on, a finished one is read.

    Under torchrun, the processes that it started train together.

    Args:
        recipe: what to do; see :mod:`convnext.training.recipe` for named ones.
        out: the run's folder; by default ``runs/MODEL-DATA``.
        opening: a line to print before the progress.

    Raises:
        UsageError: the recipe does not fit the data, or the folder belongs to another recipe.
        RunError: the work failed; the message says what is kept and how to go on.
    """
    folder = Path(out) if out is not None else default_folder(recipe)
    title = f"{recipe.model} on {recipe.data}"
    trackers = tuple(name.strip() for name in recipe.track.split(",") if name.strip())
    check_trackers(trackers)
    with joined(recipe.device) as processes:
        updates = training(recipe, folder, processes)
        if processes.first:
            show_training(tracked(updates, trackers, folder, recipe), title, opening)
        else:
            show_warnings(updates)
    give_back()  # what training kept from step to step
    run = read_run(recipe, folder)
    if not run.weights.exists():
        raise RunError(f"the training is finished and {run.weights} is gone: train anew with another --out")
    if processes.first:
        write_curves(folder, run.metrics, title)
    return run


def tracked(
    updates: Iterable[Progress], names: tuple[str, ...], folder: Path, recipe: Recipe
) -> Generator[Progress, None, None]:
    """Pass a training's progress on, and record it with the trackers that are named."""
    trackers = None
    with closing(iter(updates)) as updates:  # pyright: ignore[reportArgumentType]
        try:
            for progress in updates:
                step = progress.epoch * progress.steps + progress.step
                if trackers is None:  # the first says where the training stands
                    trackers = open_trackers(names, folder, recipe.to_dict(), first_step=step + 1)
                elif progress.metrics is not None:
                    trackers.log(step, figures(progress.metrics))
                elif progress.step % TRACK_EVERY == 0 and progress.step < progress.steps and progress.loss is not None:
                    trackers.log(step, {"train_loss": progress.loss, "lr": progress.lr})
                yield progress
        finally:
            if trackers is not None:
                trackers.close()


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers among an epoch's metrics."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def read_run(recipe: Recipe, folder: Path) -> Run:
    """The run in a folder."""
    return Run(folder, recipe, RunFolder(folder).metrics())


def default_folder(recipe: Recipe) -> Path:
    """``runs/MODEL-DATA``."""
    return Path("runs") / f"{recipe.model.replace('/', '-')}-{data_name(recipe.data)}"


def data_name(data: str) -> str:
    """A data set's name as a part of a path: the last folder of a path, the name of an embedded set."""
    return Path(data.removeprefix("imagenet:")).resolve().name or "data"
