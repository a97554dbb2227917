"""The progress of a training: as data, and on the terminal."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from convnext.console import ProgressDisplay, console_on, say_warnings
from convnext.quantities import duration
from convnext.training.meter import Meter


@dataclass(frozen=True)
class Progress:
    """The state of a training after a step or an epoch."""

    epoch: int  # finished epochs
    epochs: int  # all epochs
    step: int  # finished steps of the epoch under way
    steps: int  # per epoch
    lr: float = 0.0  # of the last step
    loss: float | None = None  # mean training loss of the epoch under way, or of the last one; None before the first
    top1: float | None = None  # in %, at the last evaluation
    images_per_second: float = 0.0  # in training, over all ranks, of the epoch under way or of the last one
    data_wait: float = 0.0  # fraction of that time spent waiting for data
    seconds_left: float | None = None  # at this session's pace
    metrics: dict[str, Any] | None = None  # of the epoch that has just ended; None within an epoch
    notes: tuple[str, ...] = ()  # for the user, new since the last progress
    warnings: tuple[str, ...] = ()  # the same

    @property
    def fraction(self) -> float:
        """The fraction of the training that is done."""
        return (self.epoch + self.step / self.steps) / self.epochs


class ProgressReporter:
    """Makes the progress of every step and epoch: with the time left, and each warning once."""

    def __init__(self, start: Progress) -> None:
        self.last = start
        self.start, self.session_steps = time.perf_counter(), 0
        self.warned: set[str] = set()

    def step(self, epoch: int, step: int, lr: float, meter: Meter, warnings: Iterable[str]) -> Progress:
        """The progress after ``step`` steps of an epoch."""
        self.session_steps += 1
        steps_left = (self.last.epochs - epoch) * self.last.steps - step
        return self.update(
            warnings,
            epoch=epoch,
            step=step,
            lr=lr,
            loss=meter.mean_loss if meter.images else None,
            images_per_second=meter.images_per_second,
            data_wait=meter.data_wait,
            seconds_left=(time.perf_counter() - self.start) / self.session_steps * steps_left,
            metrics=None,
        )

    def epoch(self, metrics: dict[str, Any], warnings: Iterable[str]) -> Progress:
        """The progress after an epoch with these metrics."""
        return self.update(warnings, epoch=metrics["epoch"], step=0, top1=metrics["top1"], metrics=metrics)

    def update(self, warnings: Iterable[str], **changes: Any) -> Progress:
        """The last progress with changes, and the warnings that were not reported before."""
        new = tuple(dict.fromkeys(warning for warning in warnings if warning not in self.warned))
        self.warned.update(new)
        self.last = replace(self.last, notes=(), warnings=new, **changes)
        return self.last


def show_warnings(updates: Iterable[Progress]) -> None:
    """Follow a training to its end, printing its warnings alone: for all ranks but the main one."""
    console = console_on(sys.stderr)
    for progress in updates:
        say_warnings(progress.warnings, console)


def show_training(updates: Iterable[Progress], title: str, opening: str = "") -> None:
    """Follow a training to its end, on stderr; the ``opening`` line is printed when it has begun."""
    with ProgressDisplay(title, transient=False) as display:
        for progress in updates:
            for note in filter(None, (opening, *progress.notes)):
                display.note(note)
            opening = ""
            display.warn(progress.warnings)
            is_finished = progress.epoch == progress.epochs
            display.update(describe(progress, display.state_width), progress.fraction, is_last=is_finished)


def describe(progress: Progress, width: int | None = None) -> str:
    """A training's state in one line; the least important parts are left out where it is wider than ``width``."""
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
    for name in ("lr", "step", "wait", "speed"):
        if width is not None and len("  ".join(parts.values())) > width:
            parts.pop(name, None)
    return "  ".join(parts.values())
