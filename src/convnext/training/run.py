"""`train`: from a recipe to a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convnext.acceleration.cpu.heap import give_back
from convnext.acceleration.swapping import restore
from convnext.data.sources import OBJECT
from convnext.errors import RunError
from convnext.training.build import Objects
from convnext.training.checkpoint import RunFolder
from convnext.training.curves import write_curves
from convnext.training.distributed import process_group
from convnext.training.fit import fit
from convnext.training.logging import check_trackers, tracked
from convnext.training.progress import show_training, show_warnings
from convnext.training.recipe import Recipe
from convnext.training.recipe_choice import choose_recipe
from convnext.training.stop_signals import stop_requests
from convnext.training.train_state import Loss


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        dir: its folder.
        recipe: of the training.
        metrics: one dictionary per epoch, as in ``metrics.jsonl``.
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


def train(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    opening: str = "",
    *,
    model: nn.Module | None = None,
    train_data: Any = None,
    val_data: Any = None,
    loss: Loss | None = None,
) -> Run:
    """Train by a recipe, with live progress on stderr; a stopped run resumes, a finished one is read.

    Under torchrun, its ranks train together. A run of objects resumes with the same objects.

    Args:
        recipe: of the training, see :mod:`convnext.training.recipes`; or the name of some data (``digits``, the path of
            a folder of images), for which the recipe is chosen as ``convnext train DATA`` does.
        out: the run's folder; by default ``runs/MODEL-DATA``.
        opening: a line to print before the progress.
        model: a model in place of the recipe's; see :class:`convnext.training.build.Objects` for all four.
        train_data: a dataset in place of the recipe's data.
        val_data: its held-out images.
        loss: a loss in place of the recipe's.

    Raises:
        UsageError: the recipe does not fit the data or the objects, or the folder belongs to another recipe.
        RunError: the work failed; the message says what is kept and how to resume.
    """
    if not isinstance(recipe, Recipe):
        choice = choose_recipe(str(recipe))
        recipe = choice.recipe
        opening = opening or f"{choice}. Trains {recipe.model} for {recipe.epochs} epochs."
    objects = Objects(model, train_data, val_data, loss)
    recipe = objects.named_in(recipe)
    folder = Path(out) if out is not None else default_folder(recipe)
    title = f"{plain_name(recipe.model)} on {plain_name(recipe.data)}"
    trackers = tuple(name.strip() for name in recipe.track.split(",") if name.strip())
    check_trackers(trackers)
    with process_group(recipe.device) as ranks:
        updates = fit(recipe, folder, ranks, objects)
        try:
            if ranks.is_main:
                show_training(tracked(updates, trackers, folder, recipe.to_dict()), title, opening)
            else:
                show_warnings(updates)
        finally:
            with stop_requests():  # torchrun sends SIGTERM when another rank has died: the error is still to be printed
                if model is not None:
                    restore(model)
                give_back()  # the memory that training kept from step to step
    run = read_run(recipe, folder)
    if not run.weights.exists():
        raise RunError(f"the training is finished and {run.weights} is gone: train anew with another --out")
    if ranks.is_main:
        with stop_requests():  # all is saved: a signal that comes now has nothing to stop
            write_curves(folder, run.metrics, title)
    return run


def read_run(recipe: Recipe, folder: Path) -> Run:
    """The run in a folder."""
    return Run(folder, recipe, RunFolder(folder).metrics())


def default_folder(recipe: Recipe) -> Path:
    """``runs/MODEL-DATA``."""
    return Path("runs") / f"{plain_name(recipe.model).replace('/', '-')}-{data_name(plain_name(recipe.data))}"


def plain_name(name: str) -> str:
    """A recipe's name of a model or of data; of an object, the name of its class."""
    return name.rpartition(".")[2] if name.startswith(OBJECT) else name


def data_name(data: str) -> str:
    """A data set's name as a part of a path: the last folder of a path, the name of an embedded set."""
    return Path(data.removeprefix("imagenet:")).resolve().name or "data"
