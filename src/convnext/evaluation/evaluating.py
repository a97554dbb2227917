"""`evaluate`: a run folder or a published network in, its metrics on held-out images out."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convnext.acceleration.accelerate import accelerate_job
from convnext.console import console_on, image_progress, say
from convnext.data.held_out import HeldOut
from convnext.data.images import MemoryImages
from convnext.data.loader import Batch, Batches
from convnext.data.preprocessing import Preprocessing
from convnext.device import autocast_for, choose_device, choose_workers
from convnext.errors import RunError, UsageError
from convnext.inference.evaluation_data import images_for
from convnext.inference.exported import is_exported
from convnext.inference.model_opening import is_published, is_weights, open_trained
from convnext.inference.trained import Trained
from convnext.training.distributed import process_group
from convnext.training.metrics import Metrics
from convnext.training.metrics import evaluate as evaluate_batches


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        trained: the network.
        data: the images, labelled by the network's classes; ``data.part`` and ``data.notes`` say which they are.
        metrics: top-1 and top-5 accuracy, loss, confusion matrix, scores by class, calibration, images a second.
    """

    trained: Trained
    data: HeldOut
    metrics: Metrics

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain data: the document of ``convnext evaluate --json``."""
        metrics = self.metrics
        return {
            "run": self.trained.name,
            "weights": self.trained.weights,
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
            "classes": list(self.trained.classes),
            "per_class": [
                {"label": label, **scores._asdict()}
                for label, scores in zip(self.trained.classes, metrics.per_class, strict=True)
            ],
            "calibration": [part._asdict() for part in metrics.calibration],
            "confusion": metrics.confusion.tolist(),
        }


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    trust: bool = False,
) -> Evaluation:
    """Evaluate a trained network: every image once, prepared as the network expects it; progress on stderr.

    Args:
        run: a run's folder, whose best epoch is evaluated; or what else :func:`convnext.load` opens: an exported file,
            a weights file, or published weights by name.
        data: what `convnext.train` takes, or the path of a folder with a folder a class, which is taken whole. By
            default, and where it is the run's own data, the images that the run held out.
        batch_size: images at a time.
        device: auto (a GPU where there is one), cpu, cuda, mps; an exported file runs on the processor.
        precision: fp32, bf16 or fp16 (autocast), or auto: bf16 on a GPU that has it; an exported file has its own.
        workers: processes that read image files; -1 for one a core, at most 8.
        trust: open a ``.pt2`` file that was not exported here as well, though it can run any code.

    Raises:
        UsageError: there is no such run or data, the network has no classifier, the data has classes that the network
            does not know, or an exported file may run code and is not trusted.
        RunError: a file is damaged or missing, or no image can be read.
    """
    name = str(run)
    file = (is_exported(name) or is_weights(name)) and Path(name).exists()
    if data is None and (file or is_published(name)):
        raise UsageError(f"{name} comes without data: name some, such as imagenet:PATH or a folder of images")
    with process_group(device) as ranks:
        trained = open_trained(name, trust)
        torch_device = choose_device(trained.device_name(device), ranks.local_rank)
        if trained.runtime and precision not in ("auto", "fp32"):
            raise UsageError(f"{name} is exported with a precision of its own: leave out --precision {precision}")
        autocast = autocast_for(precision, torch_device)
        if not trained.classes:
            raise UsageError(
                f"{name} has no classifier: train one on its features (convnext train FOLDER --weights FILE)"
            )
        images = images_for(trained, None if data is None else str(data))
        size = trained.preprocessing.image_size
        whole = trained.preprocessing == Preprocessing.whole(size)  # what images in memory are prepared to, much faster
        by_batches = whole and isinstance(images.images, MemoryImages)
        batches = ShownBatches(
            images.images,
            batch_size=batch_size,
            image_size=size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            workers=choose_workers(workers, ranks.local_world_size),
            pin_memory=torch_device.type == "cuda",
            transform=None if by_batches else trained.preprocessing,
        )
        batches.title = f"{name} on {images.name}" if ranks.is_main else ""
        batches.processes = ranks.world_size
        model = trained.model.to(device=torch_device, memory_format=torch.channels_last)  # pyright: ignore
        if precision in ("auto", "fp32"):
            count = len(images.images) // ranks.world_size
            shape = batch_size, trained.preprocessing.channels, size, size
            model = accelerate_job(model, shape, torch_device, count, saying if ranks.is_main else lambda _: None)
        try:
            with closing(batches):
                metrics = evaluate_batches(model, batches, len(trained.classes), torch_device, autocast)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"batches of {batch_size} are too large for the memory of {torch_device}: lower --batch-size"
            ) from error
    if not metrics.rows.losses.isfinite().all():
        raise RunError(
            f"the outputs of {name} are not finite for some images: its weights are damaged, or need --precision fp32"
        )
    return Evaluation(trained, images, metrics)


def saying(line: str) -> None:
    """A word on stderr, beside the progress."""
    say(line, console_on(sys.stderr))


class ShownBatches(Batches):
    """Batches that show on stderr how far they are: a bar on a terminal, a plain line now and then elsewhere.

    Attributes:
        title: what to call them; none for nothing shown.
        processes: how many give such batches; the others are taken to be as far.
    """

    title, processes = "", 1

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch."""
        done = 0
        with image_progress(self.title, len(self.images)) as show:
            for batch in super().epoch(epoch, skip):
                yield batch
                done += self.processes * (len(batch.images) + len(batch.unreadable))
                show(done)
