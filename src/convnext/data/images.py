"""Labelled images, in memory or in files, and the data sets made of them."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from convnext.errors import ConvNeXtError


class UnreadableImageError(ConvNeXtError):
    """A file is no image that can be read; the message names it."""


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

    def read(self, index: int) -> tuple[Image.Image, int]:
        """One image in RGB, and its label.

        Raises:
            UnreadableImageError: the file is missing, truncated or no image.
        """
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), self.labels[index]
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableImageError(f"{path}: {error}") from error


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
    train: MemoryImages | FileImages
    val: MemoryImages | FileImages
    split: dict[str, list[str]] | None = None
    notes: tuple[str, ...] = ()
