"""`evaluate`: a model in, its metrics on held-out images out."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.acceleration.accelerate import accelerate_job
from convnext.console import console_on, image_progress, say
from convnext.data.held_out import HeldOut
from convnext.data.images import DatasetImages, MemoryImages
from convnext.data.loader import Batch, Batches
from convnext.data.preprocessing import Preprocessing
from convnext.device import autocast_for, choose_device, choose_workers
from convnext.errors import RunError, UsageError
from convnext.inference.evaluation_data import images_for
from convnext.inference.model import DEFAULT_IMAGE_SIZE, Model, check_classes, resolve
from convnext.training.distributed import Ranks, process_group
from convnext.training.metrics import Metrics
from convnext.training.metrics import evaluate as evaluate_batches
from convnext.weights.names import parse_name


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        model: the model.
        data: the images, labelled by the model's classes; ``data.part`` and ``data.notes`` say which they are.
        metrics: top-1 and top-5 accuracy, loss, confusion matrix, scores by class, calibration, images/s.
    """

    model: Model
    data: HeldOut
    metrics: Metrics

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain data: the document of ``convnext evaluate --json``."""
        metrics = self.metrics
        return {
            "run": self.model.name,
            "weights": self.model.weights,
            "data": self.data.name,
            "part": self.data.part,
            "top1": metrics.top1,
            "top5": metrics.top5,
            "loss": metrics.loss,
            "ece": metrics.ece,
            "images": metrics.images,
            "images_per_second": metrics.images_per_second,
            "unreadable": list(metrics.unreadable),
            "notes": list(self.data.notes),
            "classes": list(self.model.classes),
            "per_class": [
                {"label": label, **scores._asdict()}
                for label, scores in zip(self.model.classes, metrics.per_class, strict=True)
            ],
            "calibration": [part._asdict() for part in metrics.calibration],
            "confusion": metrics.confusion.tolist(),
        }


def evaluate(
    model: str | Path | nn.Module | Model,
    data: str | Path | Any = None,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    trust: bool = False,
) -> Evaluation:
    """Evaluate a trained model: every image once, prepared as the model expects it; progress on stderr.

    Args:
        model: a model's name, as for :func:`convnext.load`; or an ``nn.Module`` from images (N, C, H, W) to logits.
        data: what ``convnext.train`` takes, or a folder with one folder per class, which is taken whole; or a map-style
            dataset of (image, label). By default, and where it is the run's own data, the images that the run held out.
        classes: of a module, in the order of its logits; the dataset's ``classes`` by default, or else their numbers.
        preprocessing: of a module; by default that of the published models at 224 px. Images of a dataset that are
            float tensors are taken as they are.
        batch_size: images per batch.
        device: auto (a GPU where there is one), cpu, cuda, mps; an exported file runs on the CPU.
        precision: fp32, bf16 or fp16 (autocast), or auto: bf16 on a GPU that has it; an exported file has its own.
        workers: dataloader workers; -1 for one per core, at most 8.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Raises:
        UsageError: there is no such model or data, the model has no classifier, the data has classes that the model
            does not know, or an exported file may run code and is not trusted.
        RunError: a file is damaged or missing, or no image can be read.
    """
    if isinstance(model, str | Path) and data is None and parse_name(model).kind != "run":
        raise UsageError(f"{model} comes without data: name some, such as imagenet:PATH or a folder of images")
    if not (data is None or isinstance(data, str | Path)):
        data = DatasetImages(data)
    with process_group(device) as ranks:
        if isinstance(model, nn.Module):
            model = model_of(model, data, classes, preprocessing)
        elif not isinstance(model, Model):
            model = resolve(model, trust=trust)
        torch_device = choose_device(model.device_name(device), ranks.local_rank)
        if model.exported and precision not in ("auto", "fp32"):
            raise UsageError(f"{model.name} is exported with its own precision: leave out --precision {precision}")
        check_classes(model.name, model.classes)
        if isinstance(data, DatasetImages):
            images = HeldOut(type(data.dataset).__name__, "images", model.classes, data)
        else:
            images = images_for(model, None if data is None else str(data))
        return measure(model, images, batch_size, torch_device, precision, workers, ranks)


def measure(
    model: Model, images: HeldOut, batch_size: int, device: torch.device, precision: str, workers: int, ranks: Ranks
) -> Evaluation:
    """The metrics of a model on images; each rank evaluates its part of them."""
    title = f"{model.name} on {images.name}" if ranks.is_main else ""
    batches = EvaluationBatches(images, model.preprocessing, title, batch_size, workers, device, ranks)
    module = model.module.to(device=device, memory_format=torch.channels_last)  # pyright: ignore
    if precision in ("auto", "fp32"):
        channels, height, width = example_of(images.images, model.preprocessing).shape
        shape, count = (batch_size, channels, height, width), len(images.images) // ranks.world_size
        module = accelerate_job(module, shape, device, count, print_line if ranks.is_main else lambda _: None)
    try:
        with closing(batches):
            metrics = evaluate_batches(module, batches, len(model.classes), device, autocast_for(precision, device))
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"batches of {batch_size} are too large for the memory of {device}: lower --batch-size"
        ) from error
    if not metrics.rows.losses.isfinite().all():
        raise RunError(
            f"the outputs of {model.name} are not finite for some images: its weights are damaged, or need "
            "--precision fp32"
        )
    return Evaluation(model, images, metrics)


def model_of(module: nn.Module, data: Any, classes: Sequence[str] | None, preprocessing: Preprocessing | None) -> Model:
    """The record of a module that the caller passed, in evaluation mode."""
    name, preprocessing = type(module).__name__, preprocessing or Preprocessing.published(DEFAULT_IMAGE_SIZE)
    names = classes if classes is not None else getattr(getattr(data, "dataset", None), "classes", None)
    if names is None:
        image = example_of(data, preprocessing)
        with torch.inference_mode():
            outputs = module.eval()(image[None].to(next(module.parameters(), image).device))
        names = [f"class {label}" for label in range(outputs.shape[1])]
    return Model(name, None, module.eval(), tuple(names), preprocessing, weights="the module's own")


def example_of(images: Any, preprocessing: Preprocessing) -> Tensor:
    """A tensor of the shape (C, H, W) of the images that the model will get."""
    if isinstance(images, DatasetImages):
        image, _ = images.read(0)
        return image if isinstance(image, Tensor) else preprocessing(image)
    return torch.zeros(preprocessing.channels, preprocessing.image_size, preprocessing.image_size)


def print_line(line: str) -> None:
    """Print a line on stderr, beside the progress."""
    say(line, console_on(sys.stderr))


class EvaluationBatches(Batches):
    """The batches of one rank, with the progress of all ranks on stderr under a title."""

    def __init__(
        self,
        images: HeldOut,
        preprocessing: Preprocessing,
        title: str,
        batch_size: int,
        workers: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        size = preprocessing.image_size
        # Images in memory that are resized as a whole are prepared batch by batch, which is much faster.
        by_batches = preprocessing == Preprocessing.whole(size) and isinstance(images.images, MemoryImages)
        super().__init__(
            images.images,
            batch_size=batch_size,
            image_size=size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            workers=choose_workers(workers, ranks.local_world_size),
            pin_memory=device.type == "cuda",
            transform=None if by_batches else preprocessing,
        )
        self.title, self.ranks = title, ranks.world_size

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch."""
        done = 0
        with image_progress(self.title, len(self.images)) as show:
            for batch in super().epoch(epoch, skip):
                yield batch
                done += self.ranks * (len(batch.images) + len(batch.unreadable))  # the others are taken to be as far
                show(done)
