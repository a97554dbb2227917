"""What a user gives to predict on, one by one: files, pictures, arrays and tensors, or a clear word on why not."""

import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.folder import image_files
from convnext.data.images import UnreadableImageError, reading, upright
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError

TAKEN = "a path, a PIL image, a uint8 array (H, W, 3), a tensor (3, H, W) or (N, 3, H, W), or an iterable of these"
OPENING = threading.Lock()
LOADING = threading.Lock()  # of pictures whose file is not read yet: the same one may have been given twice


@dataclass(frozen=True)
class Given:
    """One image to predict on: its file's ``path``, or what it is itself (a picture, or an image as a tensor)."""

    path: str | None = None
    image: Image.Image | Tensor | None = None

    def prepared(self, preprocessing: Preprocessing) -> Tensor:
        """The pixels that the network sees: uint8 (S, S, 3) or (S, S), or as it was given, float (C, S, S).

        Raises:
            UnreadableImageError: a file cannot be read, or a picture cannot be resized.
        """
        if isinstance(self.image, Tensor) and self.image.is_floating_point():
            return self.image
        picture = self.picture()
        with reading(Path(self.path or "the image")):  # which may be too narrow to be resized
            return pixels(picture, preprocessing)

    def picture(self) -> Image.Image:
        """The file's picture; or what was given itself, in RGB and upright, as it would be from its file.

        Raises:
            UnreadableImageError: the file cannot be read.
        """
        if self.path is not None:
            return read_file(self.path)
        if isinstance(self.image, Tensor):
            return Image.fromarray(self.image.permute(1, 2, 0).squeeze(2).cpu().numpy())
        assert self.image is not None
        with reading(Path("the image")), LOADING:
            return upright(self.image)


def read_file(path: str) -> Image.Image:
    """A file's picture as training reads it, in RGB and upright, unless it is large enough to be an attack.

    Raises:
        UnreadableImageError: it is missing, no image, damaged, or of more than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    file = Path(path)
    if is_address(path):
        raise UnreadableImageError(path, "an address, and nothing is downloaded here: download it, then name the file")
    if file.is_dir():
        found = "name its images" if image_files(file) else "and there is no image in it"
        raise UnreadableImageError(path, f"a folder, {found}")
    if not file.is_file():
        missing = "no such file, and no file of such a pattern" if is_pattern(path) else "no such file"
        raise UnreadableImageError(path, "no regular file" if file.exists() else missing)
    with reading(file), file.open("rb") as stream:  # which Pillow leaves open where it refuses a file
        return upright(undecoded(stream))


def undecoded(stream: IO[bytes], formats: tuple[str, ...] | None = None, max_pixels: int | None = None) -> Image.Image:
    """The picture in a stream, not decoded yet unless it is a PNG.

    Args:
        stream: where it begins; it stays open until the picture is decoded.
        formats: Pillow's names of the formats that are tried; None for all.
        max_pixels: width times height; of more nothing is decoded.

    Raises:
        UnidentifiedImageError: it is no image of such a format.
        ValueError: it has too many pixels.
        Exception: Pillow's, of many kinds, where it is damaged or of more than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    with OPENING, pillow_warnings():
        image = Image.open(stream, formats=formats)
    count = image.width * image.height
    if max_pixels is not None and count > max_pixels:
        raise ValueError(f"{image.width} x {image.height} are {count:,} pixels, no more than {max_pixels:,} are taken")
    if image.format == "PNG":
        image.load()  # its EXIF data may come last: reading it would decode the picture below, where only one may be
    with OPENING, pillow_warnings():
        image.getexif()  # for its warnings
    return image


def pixels(picture: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """What the network sees of a picture: uint8 (S, S, 3), or (S, S) in grey.

    Raises:
        ValueError: it is too long and narrow to be resized.
    """
    return torch.from_numpy(np.array(preprocessing.cut(picture)))


def is_address(path: str) -> bool:
    """Whether a path is an address on a network rather than a file."""
    return re.match("[a-zA-Z][a-zA-Z0-9+.-]+:/", path) is not None and not Path(path).exists()  # C:/ is a drive


def is_pattern(path: str) -> bool:
    """Whether a path may be a shell's pattern."""
    return re.search(r"[*?[]", path) is not None


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Keep Pillow's warnings of oddities in files to itself, and take a suspiciously large image for an error.

    Warnings are one state for all threads: only one at a time may hold this.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def given(inputs: Any, preprocessing: Preprocessing) -> Iterator[Given]:
    """Every image of what was given, in its order.

    Raises:
        UsageError: it is of a kind, a shape or a range that is not taken, or could mean two things.
    """
    if isinstance(inputs, str | Path):
        yield Given(path=str(inputs))
    elif isinstance(inputs, Image.Image):
        yield Given(image=inputs)
    elif isinstance(inputs, np.ndarray):
        yield from (Given(image=Image.fromarray(pixels)) for pixels in checked_array(inputs))
    elif isinstance(inputs, Tensor):
        yield from (Given(image=image) for image in checked_tensor(inputs, preprocessing))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, bytes | bytearray | dict):
        for one in inputs:
            if isinstance(one, Iterable) and not isinstance(one, str | Path | Image.Image | np.ndarray | Tensor):
                raise refusal(f"{type(one).__name__} within {type(inputs).__name__}")
            yield from given(one, preprocessing)
    else:
        raise refusal(f"{type(inputs).__name__} {inputs!r:.60}")


def refusal(arrived: str, remedy: str = "") -> UsageError:
    """The error for what cannot be predicted on."""
    return UsageError(f"cannot predict on {arrived}: {remedy or f'needs {TAKEN}'}")


def checked_array(array: Any) -> Any:
    """Pictures (N, H, W, 3) of an array (H, W, 3) or (N, H, W, 3)."""
    arrived = f"an array of shape {array.shape} and dtype {array.dtype}"
    pictures = array[None] if array.ndim == 3 else array
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.size:
        first = array.ndim in (3, 4) and array.shape[-3] == 3
        remedy = "move the channels to the end" if first else "needs (H, W, 3) or (N, H, W, 3), in RGB"
        raise refusal(arrived, remedy)
    if array.dtype != np.uint8:
        raise refusal(arrived, "needs uint8 values from 0 to 255 (from 0 to 1: multiply by 255, round, astype uint8)")
    return np.ascontiguousarray(pictures)


def checked_tensor(tensor: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images (N, C, H, W) of a tensor (C, H, W) or (N, C, H, W): bytes, or floats that are prepared already."""
    arrived = f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}"
    images = tensor.detach()[None] if tensor.ndim == 3 else tensor.detach()
    channels, size = preprocessing.channels, preprocessing.image_size
    if images.ndim != 4 or images.shape[1] != channels or not images.numel():
        raise refusal(arrived, f"needs ({channels}, H, W) or (N, {channels}, H, W)")
    if images.dtype == torch.uint8:
        return images
    ways = "give uint8 values from 0 to 255, which are prepared here, or what classifier.preprocessing(picture) returns"
    if not images.is_floating_point():
        raise refusal(arrived, ways)
    if images.shape[-2:] != (size, size):
        raise refusal(arrived, f"floats are taken to be prepared, which makes them {size} x {size}: {ways}")
    low, high = (bound.item() for bound in images.aminmax())
    if not -100 < low <= high < 100:  # NaN as well
        raise refusal(f"{arrived} with values from {low:g} to {high:g}", f"they are not normalised: {ways}")
    if low >= 0 and high <= 1:
        raise refusal(f"{arrived} with values from {low:g} to {high:g}", f"they seem not to be normalised: {ways}")
    return images.float()
