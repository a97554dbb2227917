"""A study as a table on the terminal, live while it runs; plain lines where there is no terminal."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convnext.console import ProgressDisplay, table_of
from convnext.quantities import duration, per_second, quantity, spread
from convnext.study.runner import Update
from convnext.training.progress import describe

LEGEND = "* side branch: the path continues from another step\npaper: ImageNet-1K, 224 px"


def follow(updates: Iterable[Update], console: Console) -> dict[str, Any]:
    """Follow a study to its end on ``console``; returns its results."""
    results: dict[str, Any] = {}
    with ProgressDisplay("study", console) as display:
        for update in updates:
            results = update.results
            display.warn(update.warnings)
            if update.entry is not None and update.progress is None and not display.is_live:
                display.note(ended_line(update))
                continue
            completed = (update.done + (update.progress.fraction if update.progress else 0)) / max(1, update.total)
            display.update(
                state(update), completed, partial(table, results), is_last=display.is_live and update.progress is None
            )
    return results


def state(update: Update) -> str:
    """The finished trainings, and the one under way."""
    counter = f"{counter_of(update)} trainings done{time_left(update)}".lstrip() if update.total else ""
    if update.entry is None or update.progress is None:
        return counter
    return f"{counter}; {update.entry.key}, seed {update.seed}: {describe(update.progress)}"


def ended_line(update: Update) -> str:
    """A line for the training that has just ended."""
    assert update.entry is not None
    outcome = f"top-1 {update.top1:.2f} %" if update.top1 is not None else "failed"
    return f"{counter_of(update)}  {update.entry.key:22} seed {update.seed}  {outcome}{time_left(update)}"


def counter_of(update: Update) -> str:
    """The number of finished trainings, of how many."""
    return f"{update.done:3} of {'at most ' if update.limited else ''}{update.total}"


def time_left(update: Update) -> str:
    """The time left, where it is known."""
    return "" if update.seconds_left is None else f", {duration(update.seconds_left)} left"


def table(results: dict[str, Any]) -> Table:
    """The results as a table: cost, speed, accuracy, and the paper's figures in columns of their own."""
    trained = any(row["top1"] for row in [*results["steps"], *results["references"]])
    size, data = results["image_size"], results["data"]
    view = table_of(
        Text(f"ResNet to ConvNeXt, regime {results['regime']}: {data}, {results['num_classes']} classes, {size} px"),
        caption=Text(LEGEND),
        caption_justify="left",
    )
    view.add_column("step", no_wrap=True)
    ours = ("params", "MACs", "img/s", "top-1 %") if trained else ("params", "MACs", "acts", "img/s")
    theirs = ("paper %",) if trained else ("paper %", "paper GMACs")
    for name in ours:
        view.add_column(name, justify="right", no_wrap=True)
    for name in theirs:
        view.add_column(name, justify="right", style="dim", no_wrap=True)
    for row in results["steps"]:
        key = row["key"] + ("" if row["kept"] else " *")
        view.add_row(key, *figures(row, trained), *paper_figures(row["paper"])[: len(theirs)])
    if results["references"]:
        view.add_section()
    for row in results["references"]:
        view.add_row(row["key"], *figures(row, trained))
    return view


def figures(row: dict[str, Any], trained: bool) -> tuple[str, ...]:
    """A row's own figures: cost, speed, and accuracy or activations."""
    cost, speed = (quantity(row["params"]), quantity(row["macs"])), per_second(row["images_per_second"])
    if not trained:
        return *cost, quantity(row["activations"]), speed
    return *cost, speed, spread(row["top1_mean"], row["top1_std"]) if row["top1"] else ""


def paper_figures(paper: dict[str, Any]) -> tuple[str, str]:
    """The paper's accuracy and multiply-accumulates."""
    return spread(paper["top1"], paper["top1_std"]), f"{paper['gmacs']:.2f}"
