"""The study as a table on the terminal: live while it runs, whole at the end; plain lines elsewhere."""

import time
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from convnext.quantities import duration, per_second, quantity
from convnext.study.run import Update
from convnext.training.progress import describe

REFRESH_SECONDS = 0.25
LEGEND = "* side branch: the path goes on from another step.  paper: ImageNet-1K, 224 px"


def follow(updates: Iterable[Update], console: Console) -> dict[str, Any]:
    """Follow a study to its end on ``console``; returns its results."""
    start = time.monotonic()
    last: Update | None = None
    first_done, drawn = None, 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for update in updates:
            if update.warning:
                console.print(f"warning: {update.warning}", style="yellow", markup=False, highlight=False)
            if first_done is None:
                first_done = update.done
            ended = last is not None and update.done > last.done and last.entry is not None
            if console.is_terminal and (ended or time.monotonic() - drawn > REFRESH_SECONDS):
                live.update(table(update.results, state(update, start, first_done)), refresh=True)
                drawn = time.monotonic()
            elif ended and last is not None and last.entry is not None:
                console.print(
                    plain_line(update, last, start, first_done), markup=False, highlight=False, soft_wrap=True
                )
            last = update
    assert last is not None
    return last.results


def state(update: Update, start: float, first_done: int) -> str:
    """What is under way, in a line below the table."""
    if update.entry is None or update.progress is None:
        return f"{update.done} of {update.total} trainings done" if update.total else ""
    part = update.progress.fraction
    left = time_left(update.done + part - first_done, update.total - first_done, start)
    return (
        f"training {update.done + 1} of {update.total}: {update.entry.key}, seed {update.seed}: "
        f"{describe(update.progress)}   [all: {left}]"
    )


def time_left(done: float, total: int, start: float) -> str:
    """The time that the rest takes at the pace so far."""
    if done <= 0:
        return "..."
    return f"{duration((time.monotonic() - start) * (total / done - 1))} left"


def plain_line(update: Update, last: Update, start: float, first_done: int) -> str:
    """A finished training in a line."""
    assert last.entry is not None
    rows = [*update.results["steps"], *update.results["references"]]
    row = next(row for row in rows if row["key"] == last.entry.key)
    left = time_left(update.done - first_done, update.total - first_done, start)
    top1 = f"top-1 {row['top1'][-1]:.2f} %" if row["top1"] else "not finished"
    return f"{update.done:3} of {update.total}  {last.entry.key:24} seed {last.seed}  {top1}  [{left}]"


def table(results: dict[str, Any], caption: str = "") -> Table:
    """The results as a table: cost, speed, accuracy, and the paper's figures in columns of their own."""
    trained = any(row["top1"] for row in [*results["steps"], *results["references"]])
    size, data = results["image_size"], results["data"]
    view = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"ResNet to ConvNeXt, regime {results['regime']}, {size} px, {results['num_classes']} classes ({data})",
        caption="\n".join(filter(None, [LEGEND, caption])),
        caption_justify="left",
    )
    view.add_column("step", no_wrap=True)
    ours = ("params", "MACs", "img/s", "top-1 %", "seeds") if trained else ("params", "MACs", "acts", "img/s")
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
    accuracy = spread(row["top1_mean"], row["top1_std"]) if row["top1"] else ""
    return *cost, speed, accuracy, str(len(row["top1"]))


def paper_figures(paper: dict[str, Any]) -> tuple[str, str]:
    """The paper's accuracy and multiply-accumulates."""
    return spread(paper["top1"], paper["top1_std"]), f"{paper['gmacs']:.2f}"


def spread(mean: float, deviation: float | None) -> str:
    """A mean with its deviation, where there is one."""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
