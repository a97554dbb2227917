"""The training loop, read from top to bottom: build, go on from the last checkpoint, then epoch by epoch train,
evaluate, log and save.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.data import ImageData, load_data
from convnext.data.batches import Batches
from convnext.errors import DivergedError, RunError, UsageError
from convnext.evaluation import evaluate
from convnext.files import locked
from convnext.models import create_model, is_reference
from convnext.randomness import seed_everything
from convnext.training.checkpoint import RunFolder
from convnext.training.machine import autocast_for, choose_device, choose_workers
from convnext.training.optimizer import adamw, learning_rate
from convnext.training.recipe import Recipe

LOOK_EVERY = 10  # steps between two looks at the loss: on a GPU, a look waits for the work in flight


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
        images_per_second: of the epoch under way, or of the last one, in training.
        seconds_left: at this session's pace; None before there is one.
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
    seconds_left: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def fraction(self) -> float:
        """The part of the training that is done."""
        return (self.epoch + self.step / self.steps) / self.epochs


@dataclass
class Meter:
    """What an epoch adds up to."""

    loss: Tensor
    images: int = 0
    unreadable: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def mean_loss(self) -> float:
        return self.loss.item() / max(1, self.images)


def training(recipe: Recipe, folder: Path) -> Generator[Progress, None, None]:
    """Train by a recipe in a run folder, or go on with the run that is there; yields after every step and epoch.

    Raises:
        UsageError: the recipe does not fit the data, or the folder belongs to another recipe.
        DivergedError: the loss is not finite.
        RunError: no image can be read, the disk is full, or another process has the folder.
    """
    device = choose_device(recipe.device)
    autocast = autocast_for(recipe.precision, device)
    data = load_data(recipe.data, val_fraction=recipe.val_fraction)
    run = RunFolder(folder)
    run.check(recipe, data)
    seed_everything(recipe.seed)
    model = build(recipe, len(data.classes)).to(device=device, memory_format=torch.channels_last)  # pyright: ignore
    train_batches, val_batches = make_batches(recipe, data)
    peak_lr = recipe.peak_lr(train_batches.batch_size)
    optimizer = adamw(model, recipe, peak_lr)
    mix = mixing(recipe, len(data.classes))
    smallest_batch = 2 if has_batch_norm(model) else 1
    if train_batches.batch_size < smallest_batch:
        raise UsageError(f"{recipe.model} has BatchNorm, which takes batches of 2 images or more: raise --batch-size")
    steps, epochs = len(train_batches), recipe.epochs
    warmup_steps = min(round(recipe.warmup_epochs * steps), epochs * steps // 2)

    with locked(folder):
        run.begin(recipe, data)
        first_epoch, log = 0, []
        if state := run.load_last(device):
            model.load_state_dict(state["model"])
            if state["optimizer"] is not None:
                optimizer.load_state_dict(state["optimizer"])
            first_epoch, log = state["epoch"], state["metrics"]
        run.write_metrics(log)
        best = max((metrics["top1"] for metrics in log), default=-math.inf)
        named: set[str] = set()  # unreadable files that were spoken of
        progress = Progress(first_epoch, epochs, 0, steps, warnings=data.notes)
        yield progress

        session_start = time.perf_counter()
        for epoch in range(first_epoch, epochs):
            meter = Meter(torch.zeros((), device=device))
            model.train()
            for step, batch in enumerate(train_batches.epoch(epoch)):
                lr = learning_rate(epoch * steps + step, epochs * steps, warmup_steps, peak_lr, recipe.min_lr)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                if len(batch.images) >= smallest_batch:
                    seed_everything(recipe.seed, epoch, step)
                    images, targets = mix(batch.images, batch.labels)  # (N, 3, H, W), (N,) or (N, classes)
                    images = images.to(device, memory_format=torch.channels_last)
                    with autocast:
                        logits = model(images)
                    smoothing = recipe.label_smoothing if targets.ndim == 1 else 0  # mixing has smoothed its own
                    loss = F.cross_entropy(logits.float(), targets.to(device), label_smoothing=smoothing)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    meter.loss += loss.detach() * len(images)
                    meter.images += len(images)
                meter.unreadable += batch.unreadable
                if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
                    progress = replace(progress, loss=finite(meter.mean_loss, epoch, step, lr))
                done = (epoch - first_epoch) * steps + step + 1
                progress = replace(
                    progress,
                    epoch=epoch,
                    step=step + 1,
                    lr=lr,
                    images_per_second=meter.images / meter.seconds,
                    seconds_left=(time.perf_counter() - session_start) * ((epochs - first_epoch) * steps / done - 1),
                    warnings=skipped(batch.unreadable, named),
                )
                yield progress
            if not meter.images:
                raise RunError(f"none of the training images can be read; the first: {meter.unreadable[0]}")

            images_per_second = meter.images / meter.seconds
            result = evaluate(model, val_batches.epoch(), len(data.classes), device, autocast)
            finite(result.loss, epoch, steps - 1, progress.lr)
            if result.top1 > best:
                best = result.top1
                run.save_best(model.state_dict())
            log.append(
                {
                    "epoch": epoch + 1,
                    "lr": progress.lr,
                    "train_loss": meter.mean_loss,
                    "loss": result.loss,
                    "top1": result.top1,
                    "top5": result.top5,
                    "images": result.images,
                    "images_per_second": images_per_second,
                    "seconds": meter.seconds,
                    "unreadable": len(meter.unreadable) + len(result.unreadable),
                }
            )
            to_go_on = optimizer.state_dict() if epoch + 1 < epochs else None  # two thirds of the file
            state = {"epoch": epoch + 1, "model": model.state_dict(), "optimizer": to_go_on, "metrics": log}
            run.save_last(state)
            run.add_metrics(log[-1])
            warnings = skipped(result.unreadable, named)
            progress = replace(progress, epoch=epoch + 1, step=0, top1=result.top1, warnings=warnings)
            yield progress


def build(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network, freshly initialised.

    Raises:
        UsageError: the network is unknown, or the recipe's images are too small for it.
    """
    if is_reference(recipe.model):
        return create_model(recipe.model, num_classes=num_classes, image_size=recipe.image_size)
    options = {"stem_stride": recipe.stem_stride, "layer_scale": recipe.layer_scale}
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("layer_scale") == 0:
        options["layer_scale"] = None
    model = create_model(recipe.model, num_classes=num_classes, drop_path=recipe.drop_path, **options)
    smallest = model.smallest_image
    if isinstance(smallest, int) and recipe.image_size < smallest:
        raise UsageError(
            f"image size {recipe.image_size} is too small for {recipe.model} (needs at least {smallest}): pass "
            f"--image-size {smallest} or more"
        )
    return model


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network normalises over the batch, and so cannot be trained on one image."""
    return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def skipped(unreadable: Sequence[str], named: set[str]) -> tuple[str, ...]:
    """What to say of files that could not be read: each once."""
    new = tuple(f"skipped, cannot be read: {error}" for error in unreadable if error not in named)
    named.update(unreadable)
    return new


def make_batches(recipe: Recipe, data: ImageData) -> tuple[Batches, Batches]:
    """Batches for training, and for evaluation."""
    workers = choose_workers(recipe.workers)
    train = Batches(
        data.train,
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        augment=recipe.augment,
        random_erasing=recipe.random_erasing,
        shuffle=True,
        seed=recipe.seed,
        workers=workers,
    )
    return train, Batches(data.val, batch_size=recipe.batch_size, image_size=recipe.image_size, workers=workers)


def mixing(recipe: Recipe, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup and cutmix, (N, 3, H, W) and (N,) to (N, 3, H, W) and soft targets (N, classes); or the identity.

    timm's, as the paper uses it: one of the two for each batch, with equal chances. It pairs the images of a batch, so
    an odd batch loses its last one.
    """
    if recipe.mixup == recipe.cutmix == 0:
        return lambda images, labels: (images, labels)
    from timm.data.mixup import Mixup

    mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(images) - len(images) % 2
        return mixup(images[:even], labels[:even]) if even else (images, labels)

    return mix


def finite(loss: float, epoch: int, step: int, lr: float) -> float:
    """The loss, if it is a number."""
    if math.isfinite(loss):
        return loss
    raise DivergedError(
        f"the loss is not finite (epoch {epoch + 1}, within the {LOOK_EVERY} steps up to {step + 1}, learning rate "
        f"{lr:.2g}): lower --lr, or train with --precision fp32. The checkpoint of the epoch before is whole"
    )
