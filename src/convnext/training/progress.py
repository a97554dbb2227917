"""Live progress on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable

from convnext.console import ProgressDisplay, console_on, say_warnings
from convnext.quantities import duration
from convnext.training.fit import Progress


def show_warnings(updates: Iterable[Progress]) -> None:
    """Follow a training to its end with its warnings alone: what all processes but the first show."""
    console = console_on(sys.stderr)
    for progress in updates:
        say_warnings(progress.warnings, console)


def show_training(updates: Iterable[Progress], title: str, opening: str = "") -> None:
    """Follow a training to its end, on stderr; an ``opening`` line comes first, when the training has begun."""
    with ProgressDisplay(title, transient=False) as display:
        for progress in updates:
            for note in filter(None, (opening, *progress.notes)):
                display.note(note)
            opening = ""
            display.warn(progress.warnings)
            is_finished = progress.epoch == progress.epochs
            display.update(describe(progress, display.state_width), progress.fraction, is_last=is_finished)


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
