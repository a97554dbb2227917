"""`load`: a trained network opened to predict with; images of any kind in, labels with probabilities out."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convnext.acceleration.accelerate import accelerate_job
from convnext.data.images import UnreadableImageError
from convnext.data.preprocessing import Preprocessing
from convnext.device import choose_device
from convnext.errors import RunError, UsageError, WeightsWarning
from convnext.inference.inputs import Given, given
from convnext.inference.model_opening import open_trained

BATCH_SIZE = 32
UNKNOWN_COUNT = 256  # images expected where their number is not known
THREADS = min(16, os.cpu_count() or 1)  # that read and resize; Pillow lets them run side by side


class Candidate(NamedTuple):
    """A class that an image may be of."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What an image shows.

    Attributes:
        path: its file, as it was named; None for an image that was given itself.
        label: the most probable class; None where the image could not be read.
        probability: of that class, from 0 to 1; None where the image could not be read.
        top: the most probable classes, the first first, each with ``label`` and ``probability``.
        error: why the image could not be read; None where it was.
    """

    path: str | None
    label: str | None
    probability: float | None
    top: tuple[Candidate, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain data: an entry of ``convnext predict --json``."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top": [candidate._asdict() for candidate in self.top],
            "error": self.error,
        }


class Classifier:
    """A trained network with its classes, and how pictures are prepared for it.

    Args:
        model: from prepared images (N, C, H, W) to logits (N, classes); it is put into evaluation mode.
        classes: names, in the order of the logits.
        preprocessing: from a picture to a prepared image.
        name: what it was opened by.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.
        notes: what should be said to who uses it, of its weights and their licence.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        name: str = "",
        device: str | torch.device = "auto",
        notes: Sequence[str] = (),
    ) -> None:
        self.device = choose_device(str(device))
        self.model = model.eval().to(device=self.device, memory_format=torch.channels_last)  # pyright: ignore
        self.classes, self.preprocessing, self.name = tuple(classes), preprocessing, name
        self.notes = tuple(notes)

    def __repr__(self) -> str:
        return f"Classifier({self.name or type(self.model).__name__}: {len(self.classes)} classes, on {self.device})"

    def predict(self, inputs: Any, top: int = 5, batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """What images show, in their order. A file that cannot be read has its ``error``; the others are answered.

        Args:
            inputs: an image, or an iterable of images. An image is the path of a file; a PIL image of any mode; a uint8
                array (H, W, 3) in RGB, or (N, H, W, 3) for several; or a tensor (3, H, W), or (N, 3, H, W) for several.
                Tensors of uint8 are pictures, like arrays. Tensors of floats are taken to be prepared already, as
                ``preprocessing`` does it: normalised, and of its size.
            top: classes to name for each image; all there are, where there are fewer.
            batch_size: images at a time; it decides speed and memory only.

        Raises:
            UsageError: an input is of another kind or shape, or floats do not look prepared.
            RunError: the network's outputs are not finite, or a batch does not fit into memory.
        """
        count = len(inputs) if isinstance(inputs, list | tuple) else None
        return list(self.stream(inputs, top, batch_size, count))

    def stream(
        self,
        inputs: Any,
        top: int = 5,
        batch_size: int = BATCH_SIZE,
        count: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Generator[Prediction, None, None]:
        """The same as :meth:`predict`, one by one: of an endless iterable, two batches are held at a time.

        Args:
            inputs: as for :meth:`predict`.
            top: as for :meth:`predict`.
            batch_size: as for :meth:`predict`.
            count: how many images there are, where that is known.
            say: called with a line if a faster variant of the model is taken, as on a CPU where that pays.
        """
        self.check_classes()
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"{name} is {value}, needs 1 or more")
        size, expected = self.preprocessing.image_size, UNKNOWN_COUNT if count is None else count
        shape = batch_size, self.preprocessing.channels, size, size
        model = accelerate_job(self.model, shape, self.device, expected, say)
        return self.answers(model, given(inputs, self.preprocessing), top, batch_size)

    def check_classes(self) -> None:
        """Refuse to answer without classes.

        Raises:
            UsageError: the weights have no classifier.
        """
        if not self.classes:
            raise UsageError(
                f"{self.name or 'the network'} has no classifier, its .model gives features: train one on them "
                "(convnext train FOLDER --weights FILE)"
            )

    def answers(
        self, model: nn.Module, images: Iterator[Given], top: int, batch_size: int
    ) -> Generator[Prediction, None, None]:
        """The predictions for images, which threads prepare a batch ahead."""
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="convnext-predict")
        try:
            prepared = ahead(images, self.preprocessing, pool, batch_size + THREADS)
            while batch := list(islice(prepared, batch_size)):
                yield from self.answer(model, batch, top)
        finally:
            pool.shutdown(cancel_futures=True)

    def answer(self, model: nn.Module, batch: list[tuple[str | None, Tensor | str]], top: int) -> Iterator[Prediction]:
        """The predictions for a batch of prepared images, or of words on why there is none, with their paths."""
        images = [self.on_device(image) for _, image in batch if isinstance(image, Tensor)]
        best = iter(self.probabilities(model, images, top) if images else ())
        for path, image in batch:
            if isinstance(image, str):
                yield Prediction(path, None, None, error=image)
            else:
                candidates = next(best)
                yield Prediction(path, *candidates[0], candidates)

    def on_device(self, image: Tensor) -> Tensor:
        """One prepared image (C, H, W); what comes as bytes is normalised."""
        image = image.to(self.device)
        return image if image.is_floating_point() else self.preprocessing.normalize(image)

    @torch.inference_mode()
    def probabilities(self, model: nn.Module, images: list[Tensor], top: int) -> list[tuple[Candidate, ...]]:
        """The most probable classes of images (C, H, W)."""
        try:
            logits = model(torch.stack(images).contiguous(memory_format=torch.channels_last))
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"{len(images)} images at a time are too large for the memory of {self.device}: lower the batch size"
            ) from error
        if logits.shape != (len(images), len(self.classes)):
            raise UsageError(
                f"{self.name or 'the network'} gives outputs of shape {tuple(logits.shape)} for {len(images)} images, "
                f"needs one for each of its {len(self.classes)} classes"
            )
        if not logits.isfinite().all():
            raise RunError(f"the outputs of {self.name or 'the network'} are not finite: its weights are damaged")
        values, labels = logits.float().softmax(1).topk(min(top, len(self.classes)))
        return [
            tuple(Candidate(self.classes[label], value) for label, value in zip(*row, strict=True))
            for row in zip(labels.tolist(), values.tolist(), strict=True)
        ]


def ahead(
    images: Iterator[Given], preprocessing: Preprocessing, pool: ThreadPoolExecutor, count: int
) -> Iterator[tuple[str | None, Tensor | str]]:
    """Each image's path with its pixels, or with why there are none, in order; ``count`` of them are under way."""
    pending: deque[tuple[str | None, Future[Tensor]]] = deque()
    more = True
    while more or pending:
        while more and len(pending) < count:
            image = next(images, None)
            more = image is not None
            if image is not None:
                pending.append((image.path, pool.submit(image.prepared, preprocessing)))
        if pending:
            path, future = pending.popleft()
            try:
                yield path, future.result()
            except UnreadableImageError as error:
                yield path, error.reason


def load(path: str | Path, device: str | torch.device = "auto", *, trust: bool = False) -> Classifier:
    """Open a trained network to predict with.

    Args:
        path: a run's folder, whose best epoch is taken; an exported file (.onnx, .pt2, .xml); a weights file of any
            layout (official, timm, OpenCLIP, torchvision, transformers), or a folder as the hub's libraries save it,
            which says by itself what network it is of; ``VARIANT`` or ``VARIANT.TAG`` for the authors' published
            weights, such as ``convnext_tiny.in22k_in1k``; or ``torchvision/NAME``, ``timm/NAME`` for a network with its
            library's.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu; an exported file runs on the processor.
        trust: open a ``.pt2`` file that was not exported here as well, though it can run any code.

    Returns:
        The classifier; of weights without one, its ``model`` gives features (N, channels).

    Warns:
        WeightsWarning: the file does not say all: classes or preprocessing are taken from the published networks.

    Raises:
        UsageError: there is no such run, file or network, or no such device.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    classifier = open_classifier(path, device, trust)
    for text in classifier.notes:
        warnings.warn(text, WeightsWarning, stacklevel=2)
    return classifier


def open_classifier(path: str | Path, device: str | torch.device = "auto", trust: bool = False) -> Classifier:
    """The same as :func:`load`, which leaves it to its caller to say the classifier's ``notes``."""
    opened = open_trained(path, trust)
    device = opened.device_name(str(device))
    return Classifier(opened.model, opened.classes, opened.preprocessing, opened.name, device, opened.notes)
