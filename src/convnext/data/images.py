"""Labelled images, in memory or in files, and the data sets made of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from convnext.errors import ConvNeXtError, UsageError

Pixels = NDArray[Any]  # uint8 (H, W, 3), RGB
Prepared = TypeVar("Prepared")


class UnreadableImageError(ConvNeXtError):
    """A file is no image that can be read: ``reason`` says why, the message names the file as well."""

    def __init__(self, path: Path | str, reason: object) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = str(reason)


@dataclass(frozen=True)
class MemoryImages:
    """Images held in memory: uint8 ``images`` (N, 3, H, W) and int64 ``labels`` (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """One image as a picture, and its label."""
        pixels = self.images[index].permute(1, 2, 0).numpy()  # (H, W, 3)
        return Image.fromarray(pixels), int(self.labels[index])


@dataclass(frozen=True)
class FileImages:
    """Image files: ``paths`` and their ``labels``."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def folders(self) -> frozenset[Path]:
        """The folders that the files are in."""
        return frozenset(path.parent for path in self.paths)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """One image in RGB, and its label.

        Raises:
            UnreadableImageError: the file is missing, truncated or no image.
        """
        return read_picture(self.paths[index]), self.labels[index]


def read_picture(path: Path) -> Image.Image:
    """A file's picture in RGB, upright.

    Raises:
        UnreadableImageError: the file is missing, truncated or no image.
    """
    with reading(path), Image.open(path) as image:
        return upright(image)


def readable(
    readers: Iterable[Callable[[], Image.Image]], prepare: Callable[[Image.Image], Prepared]
) -> tuple[list[Prepared], list[str]]:
    """Prepare images; returns the results, and the reasons for those left out: unreadable, or too narrow to resize.

    Args:
        readers: what reads each picture.
        prepare: what is done with it; a ValueError means that it cannot be.
    """
    prepared, reasons = [], []
    for read in readers:
        try:
            prepared.append(prepare(read()))
        except (UnreadableImageError, ValueError) as error:
            reasons.append(str(error))
    return prepared, reasons


def upright(image: Image.Image) -> Image.Image:
    """A picture in 8-bit RGB, turned as its EXIF data says."""
    return to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong while it is read."""
    try:
        yield
    except UnidentifiedImageError as error:  # whose own words are about objects in memory
        raise UnreadableImageError(path, "no image of a kind that can be read") from error
    except Exception as error:  # Pillow's decoders raise any kind for damaged files, as RuntimeError for AVIF
        reason = error.strerror if isinstance(error, OSError) else None
        raise UnreadableImageError(path, reason or error or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any kind in 8-bit RGB.

    Raises:
        ValueError: its values have no fixed range.
    """
    if image.mode == "F":
        raise ValueError("values without a fixed range (floating point): save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass(frozen=True)
class DatasetImages:
    """A map-style ``torch.utils.data.Dataset`` of (image, label).

    An image is a PIL image; a uint8 tensor (3, H, W) or array (H, W, 3), or grey (H, W); or such a tensor or array of
    floats, with any number of channels, which is already augmented and normalised and is used as it is.
    """

    dataset: Any

    def __post_init__(self) -> None:
        if not (hasattr(self.dataset, "__getitem__") and hasattr(self.dataset, "__len__")):
            raise UsageError(
                f"{type(self.dataset).__name__} is not a map-style dataset: it needs __getitem__, which returns "
                "(image, label), and __len__"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """One image, as a PIL image in RGB or a float tensor (C, H, W), and its label.

        Raises:
            UsageError: the item is not such a pair.
        """
        item = self.dataset[index]
        try:
            image, label = item
            return as_item(image), int(label)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"item {index} of {type(self.dataset).__name__} is not (image, label) with an integer label and a PIL "
                f"image, uint8 or float tensor (3, H, W) or array (H, W, 3): {error}"
            ) from error


def as_item(image: Any) -> Image.Image | Tensor:
    """An image of a dataset as a PIL image in RGB, or as a float tensor (C, H, W)."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    channels_last = isinstance(image, np.ndarray)
    tensor = torch.from_numpy(image) if channels_last else image
    if not isinstance(tensor, Tensor) or tensor.ndim not in (2, 3):
        raise TypeError(f"the image is {type(image).__name__} {tuple(getattr(image, 'shape', ()))}")
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif channels_last:
        tensor = tensor.permute(2, 0, 1)
    if tensor.is_floating_point():
        return tensor.float()
    if tensor.dtype != torch.uint8:
        raise TypeError(f"the image's values are {tensor.dtype}")
    return to_rgb(Image.fromarray(tensor.permute(1, 2, 0).squeeze(-1).numpy()))


Images = MemoryImages | FileImages | DatasetImages


def image_readers(images: Images, indices: Iterable[int]) -> list[Callable[[], Image.Image]]:
    """Functions that read some of the images, which are not prepared floats."""

    def read(index: int) -> Image.Image:
        image, _ = images.read(index)
        assert isinstance(image, Image.Image)
        return image

    return [partial(read, index) for index in indices]


@dataclass(frozen=True)
class ImageData:
    """A data set for classification.

    Attributes:
        name: what it was loaded by.
        classes: class names; a label is an index into them.
        train: images to train on.
        val: held-out images.
        split: the files of each part by path, where this package split a folder; else None.
        notes: what a user should know about what was read.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    split: dict[str, list[str]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_gone(self) -> bool:
        """True if a folder of its files no longer exists."""
        parts = [part for part in (self.train, self.val) if isinstance(part, FileImages)]
        return not all(folder.is_dir() for part in parts for folder in part.folders)

    @property
    def fingerprint(self) -> str:
        """Tells this data from other images of the same name: counts, and a digest of classes and files."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for part in (self.train, self.val):
            if isinstance(part, FileImages):
                files = zip(part.paths, part.labels, strict=True)
                digest.update("\n".join(f"{path.name} {label}" for path, label in files).encode())
            elif isinstance(part, DatasetImages):
                digest.update(type(part.dataset).__qualname__.encode())
        return f"{len(self.train)} for training, {len(self.val)} held out, {digest.hexdigest()[:12]}"
