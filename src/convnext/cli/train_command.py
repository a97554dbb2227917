"""`convnext train`."""

import dataclasses
import io
import json
import shlex
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from convnext.cli.options import Json, interruptible, note, reports_usage
from convnext.errors import UsageError
from convnext.files import is_vacant
from convnext.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class TrainArguments(Recipe):
    """Train a model on a data set, by a recipe of which every field can be changed here.

    The recipe is chosen by the data unless --recipe names one; `convnext train DATA --help` shows its defaults. Exit
    status: 0 done, 1 the work failed, 2 usage error, 75 stopped by SIGTERM or SIGUSR1, 130 by Ctrl-C. The same command
    resumes a stopped run.
    """

    data: Positional[str] = "digits"
    """digits, cifar10, cifar100, imagenet:PATH, or a folder of images: train/CLASS/ and val/CLASS/, or CLASS/."""
    recipe: str | None = None
    """one of `convnext recipes`; None for the one that suits the data. It gives the defaults that are shown here."""
    out: Path | None = None
    """the run's folder; None for runs/MODEL-DATA."""
    resume: bool = True
    """resume the run in that folder; with --no-resume, a folder that is not empty is refused."""
    json: Json = False


def train(arguments: TrainArguments, why: str) -> None:
    """Train by the recipe in ``arguments``; ``why`` it was chosen is printed first."""
    from convnext.training.distributed import is_main_rank
    from convnext.training.run import default_folder
    from convnext.training.run import train as train_recipe

    recipe = Recipe(**recipe_fields(arguments))
    folder = arguments.out or default_folder(recipe)
    if not arguments.resume and not is_vacant(folder):
        raise UsageError(f"{folder} is not empty: leave --no-resume out to resume there, or choose another with --out")
    opening = f"{why}. Trains {recipe.model} for {recipe.epochs} epochs; --help lists every field."
    with interruptible(folder):
        run = train_recipe(recipe, folder, opening)
    if not is_main_rank():
        return
    if arguments.json:
        images = [metrics["images_per_second"] for metrics in run.metrics]
        outcome = {
            "run": str(run.dir),
            "best_top1": run.best["top1"],
            "epochs": len(run.metrics),
            "seconds": run.seconds,
            "images_per_second": sum(images) / len(images),
        }
        print(json.dumps(outcome))
    averaged = ", EMA" if run.best["weights"] == "average" else ""
    note(f"Best top-1 {run.best['top1']:.2f} % (epoch {run.best['epoch']} of {recipe.epochs}{averaged})")
    note(f"Weights:  {run.weights}")
    note(f"Curves:   {run.dir / 'curves.png'}")
    note(f"Evaluate: {shlex.join(['convnext', 'evaluate', str(run.dir)])}")
    note(f"Predict:  {shlex.join(['convnext', 'predict', str(run.dir)])} IMAGE...")


def parse_train(words: Sequence[str]) -> tuple[TrainArguments, str]:
    """Parse the command line twice: for data, recipe and model, then with that recipe's values as the defaults.

    Returns:
        The arguments, and a line on which recipe was chosen and why.
    """
    from convnext.training.recipe_choice import choose_recipe

    without_help = [word for word in words if word not in ("-h", "--help")]
    with nullcontext() if reports_usage() else redirect_stderr(io.StringIO()):
        asked = tyro.cli(TrainArguments, prog="convnext train", args=without_help, default=TrainArguments(model=""))
        choice = choose_recipe(asked.data, asked.recipe, asked.model or None)
        default = TrainArguments(**recipe_fields(choice.recipe))
        return tyro.cli(TrainArguments, prog="convnext train", args=words, default=default), str(choice)


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, without those that the command line adds."""
    return {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
