"""Live progress on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from convnext.console import PLAIN_SECONDS, console_on, say, say_warnings
from convnext.quantities import duration
from convnext.training.fit import Progress

BAR_WIDTH = 16


def show_warnings(updates: Iterable[Progress]) -> None:
    """Follow a training to its end with its warnings alone: what all processes but the first show."""
    console = console_on(sys.stderr)
    for progress in updates:
        say_warnings(progress.warnings, console)


def show_training(updates: Iterable[Progress], title: str, opening: str = "") -> None:
    """Follow a training to its end, on stderr; an ``opening`` line comes first, when the training has begun."""
    console = console_on(sys.stderr)
    opening = "\n".join(filter(None, (opening, title if console.is_terminal else "")))
    columns = (BarColumn(bar_width=BAR_WIDTH), TextColumn("{task.fields[state]}", markup=False))
    last_line = time.perf_counter()
    with RichProgress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, state="")
        for progress in updates:
            for note in filter(None, (opening, *progress.notes)):
                say(note, console)
            opening = ""
            say_warnings(progress.warnings, console)
            bar.update(task, completed=progress.fraction, state=describe(progress, console.width - BAR_WIDTH - 1))
            finished = progress.epoch == progress.epochs
            if not console.is_terminal and (finished or time.perf_counter() - last_line > PLAIN_SECONDS):
                say(f"{title}: {describe(progress)}", console)
                last_line = time.perf_counter()


def describe(progress: Progress, width: int | None = None) -> str:
    """A training's state in a line; what matters least is left out where it would be wider than ``width``."""
    parts = {"epoch": f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"}
    if progress.step:
        parts["step"] = f"step {progress.step}/{progress.steps}"
    if progress.images_per_second:
        parts["speed"] = f"{progress.images_per_second:,.0f} images/s"
    if progress.loss is not None:
        parts["loss"] = f"loss {progress.loss:.3f}"
    if progress.top1 is not None:
        parts["top1"] = f"top-1 {progress.top1:.1f} %"
    if progress.lr:
        parts["lr"] = f"lr {progress.lr:.2g}"
        parts["wait"] = f"data wait {100 * progress.data_wait:.0f} %"
    if progress.seconds_left is not None:
        parts["left"] = f"{duration(progress.seconds_left)} left"
    for least in ("lr", "step", "wait", "speed"):
        if width is not None and len("  ".join(parts.values())) > width:
            parts.pop(least, None)
    return "  ".join(parts.values())
