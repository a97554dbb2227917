"""The images to predict on, from names and from objects: files, folders, patterns, PIL images, arrays, tensors."""

import glob
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

ACCEPTED = "a path, a PIL image, a uint8 array (H, W, 3), a tensor (3, H, W) or (N, 3, H, W), or an iterable of these"
OPENING = threading.Lock()
LOADING = threading.Lock()  # of PIL images whose file is not read yet: the same one may have been passed twice


@dataclass(frozen=True)
class ImageInput:
    """One image to predict on: the path of its file, or itself, as a PIL image or a tensor (C, H, W)."""

    path: str | None = None
    image: Image.Image | Tensor | None = None

    @property
    def is_prepared(self) -> bool:
        """True for floats, which are normalised already."""
        return isinstance(self.image, Tensor) and self.image.is_floating_point()

    def pixels(self, preprocessing: Preprocessing) -> Tensor:
        """The input of the model: uint8 (S, S, 3) or (S, S); prepared floats (C, S, S) as they are."""
        if self.is_prepared:
            assert isinstance(self.image, Tensor)
            return self.image
        image = self.load()
        with reading(Path(self.path or "the image")):  # which may be too narrow to be resized
            return pixels(image, preprocessing)

    def load(self) -> Image.Image:
        """The image in RGB and upright, as from its file.

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


def pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An image resized and cropped for the model: uint8 (S, S, 3), or (S, S) in grey."""
    return torch.from_numpy(np.array(preprocessing.cut(image)))


def read_file(path: str) -> Image.Image:
    """Read an image file as in training, in RGB and upright, unless it is large enough to be an attack."""
    file = Path(path)
    if is_url(path):
        raise UnreadableImageError(path, "a URL, and nothing is downloaded here: download it, then name the file")
    if file.is_dir():
        found = "name its images" if image_files(file) else "and there is no image in it"
        raise UnreadableImageError(path, f"a folder, {found}")
    if not file.is_file():
        missing = "no such file, and no file matches the pattern" if is_pattern(path) else "no such file"
        raise UnreadableImageError(path, "not a regular file" if file.exists() else missing)
    with reading(file), file.open("rb") as stream:  # which Pillow leaves open where it refuses a file
        return upright(undecoded(stream))


def undecoded(stream: IO[bytes], formats: tuple[str, ...] | None = None, max_pixels: int | None = None) -> Image.Image:
    """Open the image in a stream; it is not decoded yet, unless it is a PNG.

    Args:
        stream: where it begins; it stays open until the image is decoded.
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
        image.load()  # its EXIF data may come last: reading it would decode the image below, where only one may be
    with OPENING, pillow_warnings():
        image.getexif()  # for its warnings
    return image


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings of oddities in files; a suspiciously large image raises an error.

    Filters of warnings are global to all threads: only one at a time may hold this.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def is_url(path: str) -> bool:
    """True if a path is a URL rather than a file."""
    return re.match("[a-zA-Z][a-zA-Z0-9+.-]+:/", path) is not None and not Path(path).exists()  # C:/ is a drive


def is_pattern(path: str) -> bool:
    """True if a path may be a glob pattern."""
    return re.search(r"[*?[]", path) is not None


def expand_paths(names: Iterable[str], stdin: IO[str]) -> Iterator[str]:
    """The image paths that names stand for: a folder for all images below it, a pattern for the files that match it.

    ``-`` stands for a list on standard input, one path per line. A name of nothing is passed on: reading it says why.
    """
    for name in names:
        if name == "-":
            yield from (line.rstrip("\r\n") for line in stdin if line.strip())
            continue
        matches = [name]
        if is_pattern(name) and not is_url(name) and not Path(name).exists():
            matches = sorted(glob.glob(name, recursive=True)) or [name]  # noqa: PTH207  # pathlib's needs a relative one
        for match in matches:
            images = image_files(Path(match)) if Path(match).is_dir() else []
            yield from [str(image) for image in images] or [match]


def image_inputs(inputs: Any, preprocessing: Preprocessing) -> Iterator[ImageInput]:
    """Every image of the inputs of ``Classifier.predict``, in their order."""
    if isinstance(inputs, str | Path):
        yield ImageInput(path=str(inputs))
    elif isinstance(inputs, Image.Image):
        yield ImageInput(image=inputs)
    elif isinstance(inputs, np.ndarray):
        yield from (ImageInput(image=Image.fromarray(image)) for image in checked_array(inputs))
    elif isinstance(inputs, Tensor):
        yield from (ImageInput(image=image) for image in checked_tensor(inputs, preprocessing))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, bytes | bytearray | dict):
        for one in inputs:
            if isinstance(one, Iterable) and not isinstance(one, str | Path | Image.Image | np.ndarray | Tensor):
                raise refusal(f"{type(one).__name__} within {type(inputs).__name__}")
            yield from image_inputs(one, preprocessing)
    else:
        raise refusal(f"{type(inputs).__name__} {inputs!r:.60}")


def refusal(arrived: str, remedy: str = "") -> UsageError:
    """The error for an input that is not accepted."""
    return UsageError(f"cannot predict on {arrived}: {remedy or f'needs {ACCEPTED}'}")


def checked_array(array: Any) -> Any:
    """Images (N, H, W, 3) of an array (H, W, 3) or (N, H, W, 3)."""
    arrived = f"an array of shape {array.shape} and dtype {array.dtype}"
    images = array[None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        first = array.ndim in (3, 4) and array.shape[-3] == 3
        remedy = "move the channels to the end" if first else "needs (H, W, 3) or (N, H, W, 3), in RGB"
        raise refusal(arrived, remedy)
    if array.dtype != np.uint8:
        raise refusal(arrived, "needs uint8 values from 0 to 255 (from 0 to 1: multiply by 255, round, astype uint8)")
    return np.ascontiguousarray(images)


def checked_tensor(tensor: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images (N, C, H, W) of a tensor (C, H, W) or (N, C, H, W): uint8, or floats that are prepared already."""
    arrived = f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}"
    images = tensor.detach()[None] if tensor.ndim == 3 else tensor.detach()
    channels, size = preprocessing.channels, preprocessing.image_size
    if images.ndim != 4 or images.shape[1] != channels or not images.numel():
        raise refusal(arrived, f"needs ({channels}, H, W) or (N, {channels}, H, W)")
    if images.dtype == torch.uint8:
        return images
    ways = "give uint8 values from 0 to 255, which are prepared here, or what classifier.preprocessing(image) returns"
    if not images.is_floating_point():
        raise refusal(arrived, ways)
    if images.shape[-2:] != (size, size):
        raise refusal(arrived, f"floats are taken to be prepared, which makes them {size} x {size}: {ways}")
    low, high = (bound.item() for bound in images.aminmax())
    if not -100 < low <= high < 100 or (low >= 0 and high <= 1):  # NaN as well
        raise refusal(f"{arrived} with values from {low:g} to {high:g}", f"they are not normalised: {ways}")
    return images.float()
