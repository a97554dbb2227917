"""The training loop, read from top to bottom: build, go on from the last checkpoint, then epoch by epoch train,
evaluate, log and save.
"""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.data import ImageData, load_data
from convnext.data.loader import Batches
from convnext.device import choose_device, choose_workers
from convnext.errors import DivergedError, RunError, UsageError
from convnext.files import locked
from convnext.randomness import seed_everything
from convnext.training.checkpoint import Checkpoints, RunFolder
from convnext.training.diagnosis import first_bad_module
from convnext.training.distributed import Processes
from convnext.training.learner import Learner
from convnext.training.meter import Meter
from convnext.training.metrics import evaluate
from convnext.training.optimizer import learning_rate
from convnext.training.recipe import Recipe
from convnext.training.stop_signals import stop_requests

LOOK_EVERY = 10  # steps between two looks at the loss on a GPU, where a look waits for the work in flight
LONG_EVALUATION = 20  # seconds
WAITING = (
    "the training waits for images for more than a fifth of its time: pass --pipeline fast, or more --workers where "
    "there are cores"
)


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        epoch: finished epochs.
        epochs: all of them.
        step: finished steps of the epoch under way.
        steps: steps of an epoch.
        lr: learning rate of the last step.
        loss: mean training loss of the epoch under way, or of the last one; None before the first look.
        top1: accuracy in % at the last evaluation; None before the first.
        images_per_second: of the epoch under way, or of the last one, in training, over all processes.
        data_wait: the part of that time in which the next images were not ready, from 0 to 1.
        seconds_left: at this session's pace; None before there is one.
        metrics: of the epoch that has just ended; None within an epoch.
        notes: what should be said, new since the progress before.
        warnings: what should be said aloud, new since the progress before.
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
        """The part of the training that is done."""
        return (self.epoch + self.step / self.steps) / self.epochs


def training(recipe: Recipe, folder: Path, processes: Processes = Processes()) -> Generator[Progress, None, None]:  # noqa: B008
    """Train by a recipe in a run folder, or go on with the run that is there; yields after every step and epoch.

    Args:
        recipe: what to do.
        folder: the run's; the same for all processes.
        processes: those that train together; the first one writes.

    Raises:
        UsageError: the recipe does not fit the data or the machine, or the folder belongs to another recipe.
        DivergedError: the loss or the weights are not finite.
        PreemptedError: SIGTERM or SIGUSR1 came; everything is saved.
        KeyboardInterrupt: Ctrl-C came; everything is saved.
        RunError: no image can be read, the disk is full, or another process has the folder.
    """
    device = choose_device(recipe.device, processes.local_rank)
    data = load_data(recipe.data, val_fraction=recipe.val_fraction)
    run = RunFolder(folder)
    run.check(recipe, data)
    seed_everything(recipe.seed)
    learner = Learner(recipe, len(data.classes), device, processes)
    train_batches, val_batches = make_batches(recipe, data, processes, device)
    steps, epochs = len(train_batches), recipe.epochs
    share = train_batches.batch_size // processes.count  # images a step of this process
    if share // recipe.accumulate < learner.smallest_batch:
        raise UsageError(f"{recipe.model} has BatchNorm, which takes batches of 2 images or more: raise --batch-size")
    notes = data.notes + (() if run.is_begun else learner.load_start())
    peak_lr = recipe.peak_lr(train_batches.batch_size)
    warmup_steps = min(round(recipe.warmup_epochs * steps), epochs * steps // 2)
    rate_at = partial(
        learning_rate, steps=epochs * steps, warmup_steps=warmup_steps, peak=peak_lr, minimum=recipe.min_lr
    )
    look_every = 1 if device.type == "cpu" or recipe.accumulate > 1 else LOOK_EVERY

    alone = locked(folder) if processes.first else nullcontext()
    with alone, stop_requests() as request, closing(train_batches), closing(val_batches):
        checkpoints = Checkpoints(run, learner, processes, seconds=60 * recipe.checkpoint_minutes)
        first_epoch, first_step, log, meter_state = checkpoints.restore(device)
        checkpoints.begin(recipe, data, log)
        best = max((metrics["top1"] for metrics in log), default=-math.inf)
        said: set[str] = set()  # warnings
        if first_epoch == epochs:
            notes += (f"the training in {folder} is finished",)
        progress = Progress(first_epoch, epochs, first_step, steps, notes=notes)
        yield progress

        session_start, session_steps, evaluation_seconds = time.perf_counter(), 0, 0.0
        for epoch in range(first_epoch, epochs):
            learner.model.train()
            meter = Meter(device, processes)
            if meter_state:
                meter.load_state_dict(meter_state)
            batches = train_batches.epoch(epoch, skip=first_step)
            lr = rate_at(epoch * steps + first_step - 1)
            for step in range(first_step, steps):
                lr = rate_at(epoch * steps + step)
                learner.set_rate(lr)
                unreadable: list[str] = []
                for part in range(recipe.accumulate):
                    with meter.waiting():
                        batch = next(batches)
                    unreadable += batch.unreadable
                    if batch.unreadable and data.is_gone:
                        checkpoints.save(epoch, step, meter, log)
                        raise RunError(
                            f"the images of {recipe.data} are gone: bring them back, then {checkpoints.kept}"
                        )
                    images, labels = train_batches.prepare(batch, device), batch.labels.to(device)
                    seed_everything(recipe.seed, epoch, step, 0, batch.position[-1])
                    weight, last = len(labels) / share, part + 1 == recipe.accumulate
                    loss = learner.add_gradients(images, labels, weight, last)
                    meter.add(loss, len(labels), step, batch.unreadable)
                if processes.count > 1 or len(unreadable) < share:  # there is something to learn from
                    learner.update(skip=meter.is_bad)
                session_steps += 1
                if (step + 1) % look_every == 0 or step + 1 == steps or (processes.count == 1 and request):
                    stop = meter.look(bool(request))
                    if not math.isfinite(meter.loss):
                        raise diverged(learner, images, meter, epoch, lr, checkpoints)  # pyright: ignore
                    if stop or checkpoints.due:
                        checkpoints.save(epoch, step + 1, meter, log)
                    if stop:
                        processes.wait()  # a launcher ends its job when the first of them leaves
                        raise request.outcome(f"epoch {epoch + 1}, step {step + 1}", checkpoints.kept)
                progress = replace(
                    progress,
                    metrics=None,
                    notes=(),
                    epoch=epoch,
                    step=step + 1,
                    lr=lr,
                    loss=meter.mean_loss if meter.images else None,
                    images_per_second=meter.images_per_second,
                    data_wait=meter.data_wait,
                    seconds_left=seconds_left(session_start, session_steps, (epochs - epoch) * steps - step - 1),
                    warnings=unsaid([f"skipped, cannot be read: {error}" for error in unreadable], said),
                )
                yield progress
            if not meter.images:
                first = meter.unreadable[0] if meter.unreadable else "see the other processes"
                raise RunError(f"none of the training images can be read; the first: {first}")

            images_per_second, data_wait, trained = meter.images_per_second, meter.data_wait, meter.elapsed
            waits_for_data = meter.waits_for_data and train_batches.loader is not None
            if evaluation_seconds > LONG_EVALUATION:
                checkpoints.save(epoch, steps, meter, log)  # so that a kill in evaluation costs no more than that
            result = evaluate(learner.evaluated, val_batches, len(data.classes), device, learner.autocast)
            if not math.isfinite(result.loss):
                raise DivergedError(f"{where(epoch, steps - 1, lr)}, in evaluation: lower --lr")
            if result.top1 > best:
                best = result.top1
                checkpoints.save_best()
            log.append(
                {
                    "epoch": epoch + 1,
                    "lr": lr,
                    "train_loss": meter.mean_loss,
                    "loss": result.loss,
                    "top1": result.top1,
                    "top5": result.top5,
                    "weights": "model" if learner.average is None else "average",
                    "images": result.images,
                    "images_per_second": images_per_second,
                    "data_wait": data_wait,
                    "seconds": meter.elapsed,
                    "unreadable": len(meter.unreadable) + len(result.unreadable),
                }
            )
            if learner.average is not None:  # as the paper's code does, for comparison
                own = evaluate(learner.model, val_batches, len(data.classes), device, learner.autocast)
                log[-1] |= {"model_top1": own.top1, "seconds": meter.elapsed}
            evaluation_seconds = meter.elapsed - trained
            checkpoints.save(epoch + 1, 0, None, log, finished=epoch + 1 == epochs)
            checkpoints.add_metrics(log[-1])
            warnings = [f"skipped, cannot be read: {error}" for error in result.unreadable]
            if waits_for_data:
                warnings.append(WAITING)
            if epoch + 1 < epochs and meter.look(bool(request)):  # a signal that came in evaluation
                processes.wait()
                raise request.outcome(f"epoch {epoch + 2}, step 0", checkpoints.kept)
            first_step, meter_state = 0, None
            progress = replace(
                progress,
                epoch=epoch + 1,
                step=0,
                top1=result.top1,
                metrics=log[-1],
                notes=(),
                warnings=unsaid(warnings, said),
            )
            yield progress


def make_batches(
    recipe: Recipe, data: ImageData, processes: Processes, device: torch.device
) -> tuple[Batches, Batches]:
    """Batches for training, and for evaluation."""
    common: dict[str, Any] = {
        "rank": processes.rank,
        "processes": processes.count,
        "pipeline": recipe.pipeline,
        "workers": choose_workers(recipe.workers, processes.local_count),
        "pin_memory": device.type == "cuda",
    }
    train = Batches(
        data.train,
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        augment=recipe.augment,
        random_erasing=recipe.random_erasing,
        shuffle=True,
        repeats=recipe.repeated_augmentation,
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        **common,
    )
    part = max(1, recipe.batch_size // processes.count // recipe.accumulate)
    return train, Batches(data.val, batch_size=part, image_size=recipe.evaluation_size, **common)


def seconds_left(session_start: float, done: int, left: int) -> float:
    """For ``left`` steps at the pace of the session's ``done`` ones."""
    return (time.perf_counter() - session_start) / done * left


def unsaid(warnings: Sequence[str], said: set[str]) -> tuple[str, ...]:
    """Those of some warnings that were not said before."""
    new = tuple(dict.fromkeys(warning for warning in warnings if warning not in said))
    said.update(new)
    return new


def where(epoch: int, step: int, lr: float) -> str:
    """What a loss that is not finite is reported with."""
    return f"the loss is not finite (epoch {epoch + 1}, step {step + 1}, learning rate {lr:.2g})"


def diverged(
    learner: Learner, images: Tensor, meter: Meter, epoch: int, lr: float, checkpoints: Checkpoints
) -> DivergedError:
    """The error for a loss that is not finite, with its cause as far as this process can tell."""
    step = meter.bad_step.item()
    if not math.isfinite(step):
        return DivergedError(f"the loss of another process is not finite (epoch {epoch + 1}): see what it said")
    cause = first_bad_module(learner.model, images, learner.autocast)
    is_fp16 = learner.recipe.precision == "fp16"
    remedy = "--precision bf16 or a lower --lr" if is_fp16 else "a lower --lr, or --precision bf16 or fp32"
    return DivergedError(
        f"{where(epoch, int(step), lr)}; {cause}. Train with {remedy}, and another --out, since that is another "
        f"recipe. The last checkpoint in {checkpoints.run.dir} is whole"
    )
