"""`load`: a trained model opened to predict with; images of any kind in, labels with probabilities out."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
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
from convnext.inference.inputs import ImageInput, image_inputs
from convnext.inference.model import Model, check_classes, resolve

DEFAULT_BATCH_SIZE = 32
UNKNOWN_COUNT = 256  # images expected where their number is not known
THREADS = min(16, os.cpu_count() or 1)  # that read and resize; Pillow releases the GIL


class Candidate(NamedTuple):
    """A class with its probability, from 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Attributes:
        path: its file, as it was named; None for an image that was passed itself.
        label: the most probable class; None where the image could not be read.
        probability: of that class, from 0 to 1; None where the image could not be read.
        top: the most probable classes, the first first.
        error: why the image could not be read; None where it was.
    """

    path: str | None
    label: str | None
    probability: float | None
    top: tuple[Candidate, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain data: an entry of ``convnext predict --json``."""
        return asdict(self) | {"top": [candidate._asdict() for candidate in self.top]}


class Classifier:
    """A model with its classes and preprocessing, on a device.

    Args:
        model: from prepared images (N, C, H, W) to logits (N, classes); it is put into evaluation mode.
        classes: names, in the order of the logits.
        preprocessing: from an image to a normalised tensor.
        name: that it was opened by.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.
        notes: remarks for the user, on the weights and their licence.
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

    @classmethod
    def of(cls, model: Model, device: str = "auto", *notes: str) -> "Classifier":
        """The classifier of a resolved model, with more notes."""
        placed = model.device_name(device)
        return cls(model.module, model.classes, model.preprocessing, model.name, placed, (*model.notes, *notes))

    def __repr__(self) -> str:
        return f"Classifier({self.name or type(self.model).__name__}: {len(self.classes)} classes, on {self.device})"

    def predict(self, inputs: Any, top: int = 5, batch_size: int = DEFAULT_BATCH_SIZE) -> list[Prediction]:
        """Predict the classes of images, in their order. For a file that cannot be read, the prediction has an error.

        Args:
            inputs: an image, or an iterable of images. An image is the path of a file; a PIL image of any mode; a uint8
                array (H, W, 3) in RGB, or (N, H, W, 3) for several; or a tensor (3, H, W), or (N, 3, H, W) for several.
                Tensors of uint8 are images, like arrays. Tensors of floats are taken to be prepared already, as
                ``preprocessing`` does it: normalised, and of its size.
            top: classes to name for each image; all there are, where there are fewer.
            batch_size: images per batch; it decides speed and memory only.

        Raises:
            UsageError: an input is of another kind or shape, or floats do not look prepared.
            RunError: the model's outputs are not finite, or a batch does not fit into memory.
        """
        count = len(inputs) if isinstance(inputs, list | tuple) else None
        return list(self.stream(inputs, top, batch_size, count))

    def stream(
        self,
        inputs: Any,
        top: int = 5,
        batch_size: int = DEFAULT_BATCH_SIZE,
        count: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Generator[Prediction, None, None]:
        """The same as :meth:`predict`, one by one: of an endless iterable, two batches are held at a time.

        Args:
            inputs: as for :meth:`predict`.
            top: as for :meth:`predict`.
            batch_size: as for :meth:`predict`.
            count: the number of images, where it is known.
            say: called with a line if a faster variant of the model is taken, as on a CPU where that pays.
        """
        self.check_classes()
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"{name} is {value}, needs 1 or more")
        size, expected = self.preprocessing.image_size, UNKNOWN_COUNT if count is None else count
        shape = batch_size, self.preprocessing.channels, size, size
        model = accelerate_job(self.model, shape, self.device, expected, say)
        return self.predict_batches(model, image_inputs(inputs, self.preprocessing), top, batch_size)

    def check_classes(self) -> None:
        """Refuse to predict without classes."""
        check_classes(self.name, self.classes)

    def predict_batches(
        self, model: nn.Module, images: Iterator[ImageInput], top: int, batch_size: int
    ) -> Generator[Prediction, None, None]:
        """Predict while threads prepare the next batch."""
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="convnext-predict")
        try:
            prepared = prefetched(images, self.preprocessing, pool, batch_size + THREADS)
            while batch := list(islice(prepared, batch_size)):
                tensors = [self.on_device(image) for _, image in batch if isinstance(image, Tensor)]
                found = iter(self.probabilities(model, tensors, top) if tensors else ())
                for path, image in batch:
                    if isinstance(image, Tensor):
                        candidates = next(found)
                        yield Prediction(path, *candidates[0], candidates)
                    else:
                        yield Prediction(path, None, None, error=image)
        finally:
            pool.shutdown(cancel_futures=True)

    def on_device(self, image: Tensor) -> Tensor:
        """One prepared image (C, H, W) on the device; uint8 pixels (H, W, C) are normalised there."""
        image = image.to(self.device)
        return image if image.is_floating_point() else self.preprocessing.normalize(image)

    @torch.inference_mode()
    def probabilities(self, model: nn.Module, images: list[Tensor], top: int) -> list[tuple[Candidate, ...]]:
        """The most probable classes of images (C, H, W)."""
        name = self.name or "the model"
        try:
            logits = model(torch.stack(images).contiguous(memory_format=torch.channels_last))
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"{len(images)} images at a time are too large for the memory of {self.device}: lower the batch size"
            ) from error
        if logits.shape != (len(images), len(self.classes)):
            raise UsageError(
                f"{name} gives outputs of shape {tuple(logits.shape)} for {len(images)} images, needs one for each of "
                f"its {len(self.classes)} classes"
            )
        if not logits.isfinite().all():
            raise RunError(f"the outputs of {name} are not finite: its weights are damaged")
        values, labels = logits.float().softmax(1).topk(min(top, len(self.classes)))
        return [
            tuple(Candidate(self.classes[label], value) for label, value in zip(*row, strict=True))
            for row in zip(labels.tolist(), values.tolist(), strict=True)
        ]


def prefetched(
    images: Iterator[ImageInput], preprocessing: Preprocessing, pool: ThreadPoolExecutor, count: int
) -> Iterator[tuple[str | None, Tensor | str]]:
    """Each image's path with its pixels, or with why it cannot be read, in order; ``count`` are prepared ahead."""
    pending: deque[tuple[str | None, Future[Tensor]]] = deque()
    while True:
        for image in islice(images, count - len(pending)):
            pending.append((image.path, pool.submit(image.pixels, preprocessing)))
        if not pending:
            return
        path, future = pending.popleft()
        try:
            yield path, future.result()
        except UnreadableImageError as error:
            yield path, error.reason


def load(path: str | Path, device: str | torch.device = "auto", *, trust: bool = False) -> Classifier:
    """Open a trained model to predict with.

    Args:
        path: a run folder, whose best epoch is taken; an exported file (.onnx, .pt2, .xml); a weights file of any
            layout (official, timm, OpenCLIP, torchvision, transformers), or a folder as timm and transformers save it;
            ``VARIANT`` or ``VARIANT.TAG`` for weights of the ConvNeXt authors, such as ``convnext_tiny.in22k_in1k``; or
            ``torchvision/NAME``, ``timm/NAME`` for a model with its library's.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu; an exported file runs on the CPU.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Returns:
        The classifier; of weights without one, its ``model`` gives features (N, channels).

    Warns:
        WeightsWarning: classes or preprocessing are not recorded, and assumed to be those of the published models.

    Raises:
        UsageError: there is no such run, file or model, or no such device.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    classifier = open_classifier(path, device, trust)
    for text in classifier.notes:
        warnings.warn(text, WeightsWarning, stacklevel=2)
    return classifier


def open_classifier(path: str | Path, device: str | torch.device = "auto", trust: bool = False) -> Classifier:
    """The same as :func:`load`; the caller prints the classifier's ``notes``."""
    return Classifier.of(resolve(path, trust=trust), str(device))
