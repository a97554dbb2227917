"""The command line: one function a command; parse, call, print."""

import dataclasses
import io
import json as json_format
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from convnext.errors import ConvNeXtError, UsageError, unknown_name
from convnext.files import is_vacant
from convnext.training.recipe import Recipe

INTERRUPTED = 130
DESCRIPTION = "From a ResNet to a ConvNeXt, one measured step at a time; and from there to a trained network."


def roadmap(
    data: str | None = None,
    regime: str = "micro",
    steps: str = "",
    epochs: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    references: str = "",
    image_size: int | None = None,
    train: bool = True,
    out: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Turn a ResNet into a ConvNeXt step by step: cost, speed and accuracy of every step as table, figure and page.

    Writes results.json, roadmap.png, roadmap.svg and report.html. Called again with the same words, it goes on where it
    stopped.

    Args:
        data: digits (the default), cifar10, cifar100, imagenet:PATH, or the path of a folder of images. With
            --no-train, tiny and base are counted for ImageNet (1000 classes, 224 px) unless data is given.
        regime: micro (for two processor cores), tiny (ResNet-50 to ConvNeXt-T) or base (ResNet-200 to ConvNeXt-B).
        steps: keys of the steps to run, separated by commas; all by default.
        epochs: epochs of each training; the data's recipe decides by default.
        seeds: trainings of each step.
        minutes: begin no further round of seeds that would end later than this; at least two rounds are made.
        references: networks to compare with, separated by commas: torchvision/resnet18,timm/mobilenetv3_small_100.
        image_size: pixels a side; the data's recipe decides by default.
        train: with --no-train, count and measure only.
        out: folder for the results; runs/roadmap-REGIME-DATA by default, with --no-train none.
        device: auto (a GPU where there is one), cpu, cuda, mps.
        json: print the results document on stdout.
    """
    from convnext.study.plan import make_plan
    from convnext.study.report import write_report
    from convnext.study.run import run_study
    from convnext.study.table import follow, table
    from convnext.training.progress import console_on

    plan = make_plan(
        regime=regime,
        data=data,
        steps=names(steps),
        references=names(references),
        epochs=epochs,
        image_size=image_size,
        seeds=seeds,
        minutes=minutes,
        device=device,
        train=train,
        out=out,
    )
    with interruptible(plan.folder):
        results = follow(run_study(plan), console_on(sys.stderr))
        page = write_report(results, plan.folder) if plan.folder else None
    if json:
        print_json(results)
    else:
        console_on(sys.stdout).print(table(results))
    if page:
        for kind, name in (("Data", "results.json"), ("Figure", "roadmap.png"), ("Report", page.name)):
            note(f"{kind + ':':8}{page.with_name(name)}")


@dataclasses.dataclass(frozen=True)
class TrainArguments(Recipe):
    """Train a network on a data set, by a recipe of which every field can be changed here.

    The recipe is chosen by the data unless --recipe names one; `convnext train DATA --help` shows its defaults. Called
    again with the same words, it goes on where it stopped. Exit status: 0 done, 1 the work failed, 2 the words were
    wrong, 75 stopped by SIGTERM or SIGUSR1, 130 by Ctrl-C; after either, the same words go on.
    """

    data: Positional[str] = "digits"
    """digits, cifar10, cifar100, imagenet:PATH, or a folder of images: train/CLASS/ and val/CLASS/, or CLASS/."""
    recipe: str | None = None
    """one of `convnext recipes`; None for the one that suits the data. It gives the defaults that are shown here."""
    out: Path | None = None
    """the run's folder; None for runs/MODEL-DATA."""
    resume: bool = True
    """go on with the run in that folder; with --no-resume, a folder that is not empty is refused."""
    json: bool = False
    """print the outcome as JSON on the last line of stdout."""


def train(arguments: TrainArguments, why: str) -> None:
    """Train by the recipe in ``arguments``, after a word on ``why`` it is this one."""
    from convnext.training.distributed import is_first
    from convnext.training.run import default_folder
    from convnext.training.run import train as train_recipe

    recipe = Recipe(**recipe_fields(arguments))
    folder = arguments.out or default_folder(recipe)
    if not arguments.resume and not is_vacant(folder):
        raise UsageError(f"{folder} is not empty: leave --no-resume out to go on there, or choose another with --out")
    opening = f"{why}. Trains {recipe.model} for {recipe.epochs} epochs; --help lists every field."
    with interruptible(folder):
        run = train_recipe(recipe, folder, opening)
    if not is_first():
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
        print(json_format.dumps(outcome))
    averaged = ", running average" if run.best["weights"] == "average" else ""
    note(f"Best top-1 {run.best['top1']:.2f} % (epoch {run.best['epoch']} of {recipe.epochs}{averaged})")
    note(f"Weights:  {run.weights}")
    note(f"Curves:   {run.dir / 'curves.png'}")
    note(f"Evaluate: {shlex.join(['convnext', 'evaluate', str(run.dir)])}")


def recipes(name: Positional[str] = "", json: bool = False) -> None:
    """List the named recipes, or show one in full.

    Args:
        name: a recipe's name, to see every field of it; all in a table unless given.
        json: print name, contract and every field of each as JSON on stdout.
    """
    from convnext.training.progress import console_on
    from convnext.training.recipes import RECIPES
    from convnext.training.recipes_table import described, recipe_table, recipes_table

    if name and name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    chosen = {known: recipe for known, recipe in RECIPES.items() if name in ("", known)}
    if json:
        print_json([described(recipe) for recipe in chosen.values()])
    elif name:
        console_on(sys.stdout).print(described(chosen[name])["contract"], highlight=False, markup=False)
        console_on(sys.stdout).print(recipe_table(chosen[name]("DATA")))
    else:
        console_on(sys.stdout).print(recipes_table([described(recipe) for recipe in chosen.values()]))


def evaluate(
    run: Positional[str],
    data: Positional[str | None] = None,
    out: Path | None = None,
    json: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int = -1,
) -> None:
    """Evaluate a trained network: accuracy, loss, scores by class, confusion matrix, calibration, images a second.

    Writes evaluation.json, per_class.csv, and confusion and reliability as .png and .svg.

    Args:
        run: a run's folder; or torchvision/NAME, timm/NAME for a network with its library's published weights.
        data: None for the images that the run held out; or digits, cifar10, cifar100, imagenet:PATH, or the path of a
            folder of images: of one with val/ or test/ that part, else all its images.
        out: folder for the files; None for RUN/evaluation, or runs/evaluation-NAME-DATA for published weights.
        json: print the evaluation as JSON on stdout.
        batch_size: images at a time, in each process; it decides speed and memory only.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.
        precision: fp32, bf16 or fp16 (autocast), or auto: bf16 on a GPU that has it.
        workers: reading processes; 0 for none, -1 for one a core, at most 8.
    """
    from convnext.deploy.evaluate import evaluate
    from convnext.deploy.evaluation_report import default_folder, document, table, write_evaluation
    from convnext.training.distributed import is_first
    from convnext.training.progress import console_on, say_warnings

    evaluation = evaluate(run, data, batch_size=batch_size, device=device, precision=precision, workers=workers)
    if not is_first():
        return
    unreadable = (f"skipped, cannot be read: {error}" for error in evaluation.metrics.unreadable)
    say_warnings([*evaluation.data.notes, *unreadable], console_on(sys.stderr))
    folder = out or default_folder(evaluation)
    write_evaluation(evaluation, folder)
    if json:
        print(document(evaluation))
    else:
        console_on(sys.stdout).print(table(evaluation))
    note(f"Figures, evaluation.json and per_class.csv: {folder}")


def models(pattern: Positional[str] = "*", image_size: int = 224, json: bool = False) -> None:
    """List networks with their parameters, multiply-accumulates and activations for one image.

    Args:
        pattern: a name or a shell-style pattern: 'convnextv2_*', 'roadmap_tiny/*', 'torchvision/resnet*'.
        image_size: pixels a side.
        json: print the list as JSON on stdout.
    """
    from convnext.models.family import family
    from convnext.study.table import family_table
    from convnext.training.progress import console_on

    rows = family(pattern, image_size)
    if json:
        print_json(rows)
    else:
        console_on(sys.stdout).print(family_table(rows))


def run(words: Sequence[str]) -> None:
    """Parse the words and call the command that they name."""
    if words[:1] == ["train"]:
        train(*parse_train(words[1:]))
    else:
        commands: dict[str, Callable[..., Any]] = {
            "roadmap": roadmap,
            "train": TrainArguments,
            "recipes": recipes,
            "evaluate": evaluate,
            "models": models,
        }
        tyro.extras.subcommand_cli_from_dict(commands, prog="convnext", description=DESCRIPTION, args=words)


def parse_train(words: Sequence[str]) -> tuple[TrainArguments, str]:
    """Read the words twice: first for data, recipe and model, then with that recipe's values as the defaults.

    Returns:
        The arguments, and in words which recipe it is and why.
    """
    from convnext.training.choice import choose_recipe

    without_help = [word for word in words if word not in ("-h", "--help")]
    with nullcontext() if speaks() else redirect_stderr(io.StringIO()):
        asked = tyro.cli(TrainArguments, prog="convnext train", args=without_help, default=TrainArguments(model=""))
        choice = choose_recipe(asked.data, asked.recipe, asked.model or None)
        default = TrainArguments(**recipe_fields(choice.recipe))
        return tyro.cli(TrainArguments, prog="convnext train", args=words, default=default), str(choice)


def speaks() -> bool:
    """Whether this process says what is wrong with the words: of those that torchrun started, one a machine does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that make a recipe, without those that the command line adds."""
    return {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}


@contextmanager
def interruptible(folder: Path | None) -> Iterator[None]:
    """Say what Ctrl-C leaves behind."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = f" What is finished is kept in {folder}: the same command goes on from there." if folder else ""
        raise KeyboardInterrupt((str(interrupt) or "Interrupted.") + kept) from None


def names(words: str) -> list[str]:
    """Names separated by commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def print_json(document: Any) -> None:
    """The one document on stdout."""
    print(json_format.dumps(document, indent=2, allow_nan=False))


def note(text: str) -> None:
    """A word to the user, on stderr."""
    print(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0 done, 1 the work failed, 2 the words were wrong, 75 stopped by a signal with all saved, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        run(words)
        sys.stdout.flush()
    except ConvNeXtError as error:
        rank = os.environ.get("RANK", "0")  # torchrun's; what is wrong with the words, one process a machine says
        if speaks() or not isinstance(error, UsageError):
            note(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}")
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        note(str(interrupt) or "Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
