"""A training's metrics in TensorBoard or Weights & Biases, beside its own log; neither is imported unless used."""

import os
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convnext.errors import RunError, UsageError, unknown_name
from convnext.files import cannot_write, write_atomically
from convnext.training.progress import Progress

TRACKERS = ("tensorboard", "wandb")  # the names of their packages, and of this package's extras
LOG_EVERY = 10  # steps between two records of the loss within an epoch


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's folder: ``tensorboard --logdir RUN``."""

    def __init__(self, folder: Path, recipe: dict[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.folder = folder / "tensorboard"
        is_resumed = any(self.folder.glob("events.out.tfevents.*"))
        try:
            # What an earlier session logged from first_step on is logged again.
            self.writer = SummaryWriter(self.folder, purge_step=first_step if is_resumed else None)
            if not is_resumed:
                kinds = bool | int | float
                plain = {name: value if isinstance(value, kinds) else str(value) for name, value in recipe.items()}
                for summary in hparams(plain, {"top1": 0.0}):
                    self.writer._get_file_writer().add_summary(summary)  # add_hparams would make a run of its own
        except OSError as error:
            raise cannot_write(self.folder, error, 0) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step, later than the last one."""
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()  # a killed run has what its checkpoint has
        except OSError as error:
            raise cannot_write(self.folder, error, 0) from error

    def close(self) -> None:
        """Write what is pending."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases with its files in ``wandb/`` of the run's folder; a resumed run is the same one there.

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
                settings=wandb.Settings(console="off"),  # the terminal shows the progress bar
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


Tracker = TensorBoard | WandB


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that are unknown or not installed, before any work is done.

    Raises:
        UsageError: for the first such; the message has the command that installs it.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise UsageError(f"tracking by {name} needs its package: pip install 'convnext[{name}]'")


def open_trackers(names: Sequence[str], folder: Path, recipe: dict[str, Any], first_step: int) -> list[Tracker]:
    """Trackers by name, for a run that begins or resumes.

    What an earlier session logged from ``first_step`` on is superseded. The recipe is recorded as the hyper-parameters.

    Raises:
        UsageError: a name is unknown, or its package is not installed.
        RunError: the tracker cannot write, or cannot be reached.
    """
    check_trackers(names)
    openers = {"tensorboard": lambda: TensorBoard(folder, recipe, first_step), "wandb": lambda: WandB(folder, recipe)}
    return [openers[name]() for name in names]


def tracked(
    updates: Generator[Progress, None, None], names: Sequence[str], folder: Path, recipe: dict[str, Any]
) -> Generator[Progress, None, None]:
    """Pass a training's progress on, and log it to the trackers that are named."""
    trackers: list[Tracker] | None = None
    with closing(updates):
        try:
            for progress in updates:
                step = progress.epoch * progress.steps + progress.step
                if trackers is None:  # the first progress says where the training begins or resumes
                    trackers = open_trackers(names, folder, recipe, first_step=step + 1)
                for tracker in trackers if (values := metrics_to_log(progress)) else ():
                    tracker.log(step, values)
                yield progress
        finally:
            for tracker in trackers or ():
                tracker.close()


def metrics_to_log(progress: Progress) -> dict[str, float]:
    """An epoch's metrics, or every few steps the loss; empty between."""
    if progress.metrics is not None:
        return {name: value for name, value in progress.metrics.items() if isinstance(value, int | float)}
    if progress.loss is not None and 0 < progress.step < progress.steps and progress.step % LOG_EVERY == 0:
        return {"train_loss": progress.loss, "lr": progress.lr}
    return {}
