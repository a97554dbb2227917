"""The training loop, to be read from top to bottom: fit, train_epoch, validate."""

import math
from collections.abc import Generator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext.errors import DivergedError, RunError
from convnext.files import locked
from convnext.randomness import seed_everything
from convnext.training.build import NO_OBJECTS, Objects, Training, build, build_data, load_start
from convnext.training.checkpoint import Checkpoints, RunFolder, Start
from convnext.training.distributed import SINGLE_RANK, Ranks
from convnext.training.meter import Meter
from convnext.training.metrics import Metrics, evaluate
from convnext.training.progress import Progress, ProgressReporter
from convnext.training.recipe import Recipe
from convnext.training.stop_signals import StopRequest, stop_requests
from convnext.training.train_state import first_bad_module

LONG_EVALUATION = 20  # seconds; before one that takes longer, the finished epoch is saved
DATA_BOUND = (
    "more than a fifth of the training time is spent waiting for images: pass --pipeline fast, or more --workers where "
    "there are cores"
)


def fit(
    recipe: Recipe, folder: Path, ranks: Ranks = SINGLE_RANK, objects: Objects = NO_OBJECTS
) -> Generator[Progress, None, None]:
    """Train by a recipe in a run folder, or resume the run there; yields after every step and every epoch.

    Raises:
        UsageError: the recipe does not fit the data or the machine, or the folder belongs to another recipe.
        DivergedError: the loss or the weights are not finite.
        PreemptedError: SIGTERM or SIGUSR1 arrived; everything is saved.
        KeyboardInterrupt: Ctrl-C was pressed; everything is saved.
        RunError: no image can be read, the disk is full, or another process uses the folder.
    """
    data, run = build_data(recipe, objects), RunFolder(folder)
    run.check(recipe, data, objects.model)
    training = build(recipe, data, ranks, objects)
    notes = data.notes if run.is_begun else (*data.notes, *load_start(training))
    alone = locked(folder) if ranks.is_main else nullcontext()
    with alone, stop_requests() as stop, closing(training.train_loader), closing(training.val_loader):
        checkpoints = Checkpoints(run, training, objects.model)
        start = checkpoints.restore()
        if start.epoch == training.epochs:
            notes += (f"the training in {folder} is finished",)
        progress = Progress(start.epoch, training.epochs, start.step, training.steps, notes=notes)
        report = ProgressReporter(progress)
        yield progress

        validation_seconds = 0.0
        for epoch in range(start.epoch, training.epochs):
            meter = Meter(training.device, ranks, start.meter)
            yield from train_epoch(training, epoch, start.step, meter, checkpoints, report, stop)
            if validation_seconds > LONG_EVALUATION:
                checkpoints.save(epoch, training.steps, meter)
            train_seconds = meter.elapsed
            is_data_bound = meter.is_data_bound and training.train_loader.loader is not None
            metrics, unreadable = validate(training, epoch, meter)
            validation_seconds = meter.elapsed - train_seconds
            checkpoints.end_epoch(metrics)
            if epoch + 1 < training.epochs and meter.sync(bool(stop)):  # a signal that arrived in validation
                ranks.barrier()
                raise stop.outcome(f"epoch {epoch + 2}, step 0", checkpoints.advice)
            yield report.epoch(metrics, [*skipped(unreadable), *([DATA_BOUND] if is_data_bound else [])])
            start = Start(epoch + 1, 0, None)


def train_epoch(
    training: Training,
    epoch: int,
    first_step: int,
    meter: Meter,
    checkpoints: Checkpoints,
    report: ProgressReporter,
    stop: StopRequest,
) -> Generator[Progress, None, None]:
    """Train one epoch from ``first_step`` on; yields after every step.

    Raises:
        RunError: no image can be read.
    """
    training.state.model.train()
    batches = training.train_loader.epoch(epoch, skip=first_step)
    for step in range(first_step, training.steps):
        lr = training.schedule(epoch * training.steps + step)
        training.state.set_learning_rate(lr)
        images, unreadable = Tensor(), []
        for micro_step in range(training.accumulate):
            with meter.waiting():
                batch = next(batches)
            unreadable += batch.unreadable
            if batch.unreadable and training.data.is_gone:
                checkpoints.save(epoch, step, meter)
                raise RunError(
                    f"the images of {training.data.name} are gone: bring them back, then {checkpoints.advice}"
                )
            images, labels = training.train_loader.prepare(batch, training.device), batch.labels.to(training.device)
            seed_everything(training.seed, epoch, step, 0, batch.position[-1])
            is_last = micro_step + 1 == training.accumulate
            loss = training.state.backward(images, labels, weight=len(labels) / training.rank_batch, is_last=is_last)
            meter.add(loss, len(labels), step, batch.unreadable)
        if training.ranks.world_size > 1 or len(unreadable) < training.rank_batch:  # there is something to learn from
            training.state.step(skip=meter.is_bad)
        is_sync = (step + 1) % training.sync_every == 0 or step + 1 == training.steps
        if is_sync or (training.ranks.world_size == 1 and stop):
            synchronize(training, epoch, step, images, meter, checkpoints, stop)
        yield report.step(epoch, step + 1, lr, meter, skipped(unreadable))
    if not meter.images:
        first = meter.unreadable[0] if meter.unreadable else "see the other ranks"
        raise RunError(f"none of the training images can be read; the first: {first}")


def synchronize(
    training: Training, epoch: int, step: int, images: Tensor, meter: Meter, checkpoints: Checkpoints, stop: StopRequest
) -> None:
    """Sum the loss over all ranks, and act on it: stop on a loss that is not finite, save, stop on a signal."""
    is_stopped = meter.sync(bool(stop))
    if not math.isfinite(meter.loss):
        raise diverged(training, epoch, images, meter, checkpoints)
    if is_stopped or checkpoints.is_due:
        checkpoints.save(epoch, step + 1, meter)
    if is_stopped:
        training.ranks.barrier()  # a launcher ends its job when the first rank exits
        raise stop.outcome(f"epoch {epoch + 1}, step {step + 1}", checkpoints.advice)


def diverged(training: Training, epoch: int, images: Tensor, meter: Meter, checkpoints: Checkpoints) -> DivergedError:
    """The error for a loss that is not finite, with its cause as far as this rank can tell."""
    step, state = meter.bad_step.item(), training.state
    if not math.isfinite(step):
        return DivergedError(f"the loss of another rank is not finite (epoch {epoch + 1}): see its message")
    lr = training.schedule(epoch * training.steps + int(step))
    precision = "bf16" if state.scaler.is_enabled() else "bf16 or fp32"
    return DivergedError(
        f"the loss is not finite (epoch {epoch + 1}, step {int(step) + 1}, learning rate {lr:.2g}); "
        f"{first_bad_module(state.model, images, state.autocast)}. Train with a lower --lr or --precision {precision}, "
        f"and another --out, since that is another recipe. The last checkpoint in {checkpoints.run.dir} is whole"
    )


def validate(training: Training, epoch: int, meter: Meter) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Evaluate the EMA, where there is one, or the model; returns the epoch's metrics and the unreadable images.

    Raises:
        DivergedError: the loss is not finite.
    """
    lr = training.schedule((epoch + 1) * training.steps - 1)
    images_per_second, data_wait = meter.images_per_second, meter.data_wait
    result = evaluate_model(training, training.state.evaluated)
    if not math.isfinite(result.loss):
        raise DivergedError(
            f"the loss is not finite in evaluation (epoch {epoch + 1}, learning rate {lr:.2g}): lower --lr"
        )
    metrics = {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": meter.mean_loss,
        "loss": result.loss,
        "top1": result.top1,
        "top5": result.top5,
        "weights": "model" if training.state.ema is None else "average",
        "images": result.images,
        "images_per_second": images_per_second,
        "data_wait": data_wait,
        "seconds": meter.elapsed,
        "unreadable": len(meter.unreadable) + len(result.unreadable),
    }
    if training.state.ema is not None:  # for comparison, as in the paper's code
        own = evaluate_model(training, training.state.model)
        metrics |= {"model_top1": own.top1, "seconds": meter.elapsed}
    return metrics, result.unreadable


def evaluate_model(training: Training, model: Any) -> Metrics:
    """Evaluate a model on the held-out images."""
    return evaluate(model, training.val_loader, len(training.data.classes), training.device, training.state.autocast)


def skipped(errors: tuple[str, ...] | list[str]) -> list[str]:
    """The warnings for images that cannot be read."""
    return [f"skipped, cannot be read: {error}" for error in errors]
