"""A training's figures in TensorBoard or Weights & Biases, beside the run's own log; neither loads unless asked for."""

import os
import secrets
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from convnext.errors import RunError, UsageError, unknown_name
from convnext.files import cannot_write, write_atomically


class Tracker(Protocol):
    """Where figures go."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the figures of a step, later than the one before."""
        ...

    def close(self) -> None:
        """Write what is still under way."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder: ``tensorboard --logdir RUN``."""

    def __init__(self, folder: Path, recipe: dict[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.folder = folder / "tensorboard"
        goes_on = any(self.folder.glob("events.out.tfevents.*"))
        try:
            # Of an earlier session, what is from first_step on is made anew.
            self.writer = SummaryWriter(self.folder, purge_step=first_step if goes_on else None)
            if not goes_on:
                plain = {name: plain_value(value) for name, value in recipe.items()}
                for summary in hparams(plain, {"top1": 0.0}):
                    self.writer._get_file_writer().add_summary(summary)  # add_hparams would make a run of its own
        except OSError as error:
            raise cannot_write(self.folder, error, 0) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()  # a killed run has what its checkpoint has
        except OSError as error:
            raise cannot_write(self.folder, error, 0) from error

    def close(self) -> None:
        self.writer.close()


def plain_value(value: Any) -> bool | int | float | str:
    """A recipe's value in a form that TensorBoard's table of hyper-parameters takes."""
    return value if isinstance(value, bool | int | float) else str(value)


class WandB:
    """A run of Weights & Biases with its files in ``wandb/`` of the run's folder.

    A run that goes on is the same one there, and keeps the figures of the steps that it has.

    ``WANDB_MODE=offline`` needs neither account nor network; ``WANDB_PROJECT`` names another project than ``convnext``.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        import wandb

        name = folder / "wandb" / "id.txt"
        if not name.exists():
            write_atomically(name, secrets.token_hex(4))
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "convnext"),
                id=name.read_text(),
                name=folder.resolve().name,
                dir=folder,
                config=recipe,
                resume="allow",
                settings=wandb.Settings(console="off"),  # the terminal belongs to the progress bar
            )
        except wandb.Error as error:
            raise RunError(
                f"Weights & Biases cannot be used ({error}): call `wandb login`, or set WANDB_MODE=offline to record "
                f"into {name.parent} alone"
            ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS = ("tensorboard", "wandb")  # each has the name of its package and of this package's extra


class Trackers:
    """Several trackers, or none, as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def log(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that are unknown or not installed, before any work is done.

    Raises:
        UsageError: of the first such; the message has the command that installs it.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise UsageError(f"tracking by {name} needs its package: pip install 'convnext[{name}]'")


def open_trackers(names: Sequence[str], folder: Path, recipe: dict[str, Any], first_step: int) -> Trackers:
    """Trackers by name, for a run that begins or goes on.

    Args:
        names: of ``TRACKERS``.
        folder: the run's.
        recipe: what is done, as plain data; recorded as the hyper-parameters.
        first_step: the first step that will be logged. What an earlier session logged from there on is superseded.

    Raises:
        UsageError: a name is unknown, or its package is not installed.
        RunError: the tracker cannot write, or cannot be reached.
    """
    check_trackers(names)
    openers = {"tensorboard": lambda: TensorBoard(folder, recipe, first_step), "wandb": lambda: WandB(folder, recipe)}
    return Trackers([openers[name]() for name in names])
