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
    """The state of a training after a step or an epoch.

    Attributes:
        epoch: finished epochs.
        epochs: all epochs.
        step: finished steps of the epoch under way.
        steps: steps per epoch.
        lr: learning rate of the last step.
        loss: mean training loss of the epoch under way, or of the last one; None before the first sync.
        top1: accuracy in % at the last evaluation; None before the first.
        images_per_second: in training, of the epoch under way or of the last one, over all ranks.
        data_wait: the fraction of that time (0 to 1) spent waiting for data.
        seconds_left: at this session's pace; None before its first step.
        metrics: of the epoch that has just ended; None within an epoch.
        notes: messages for the user, new since the last progress.
        warnings: the same for warnings.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    lr: float = 0.0
    loss: float | None = None
    top1: float | None = None
    images_per_second: float = 0.0
    data_wait: float = 0.0
    seconds_left: float | None = None
    metrics: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

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
        self.last = replace(
            self.last,
            epoch=epoch,
            step=step,
            lr=lr,
            loss=meter.mean_loss if meter.images else None,
            images_per_second=meter.images_per_second,
            data_wait=meter.data_wait,
            seconds_left=(time.perf_counter() - self.start) / self.session_steps * steps_left,
            metrics=None,
            notes=(),
            warnings=self.new(warnings),
        )
        return self.last

    def epoch(self, metrics: dict[str, Any], warnings: Iterable[str]) -> Progress:
        """The progress after an epoch with these metrics."""
        self.last = replace(
            self.last,
            epoch=metrics["epoch"],
            step=0,
            top1=metrics["top1"],
            metrics=metrics,
            notes=(),
            warnings=self.new(warnings),
        )
        return self.last

    def new(self, warnings: Iterable[str]) -> tuple[str, ...]:
        """The warnings that were not reported before."""
        new = tuple(dict.fromkeys(warning for warning in warnings if warning not in self.warned))
        self.warned.update(new)
        return new


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
