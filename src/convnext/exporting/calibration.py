"""Real images for an export: to calibrate int8, and to check a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from convnext.data import Images, load_data
from convnext.data.folder import EXTENSIONS, image_files
from convnext.data.images import image_readers, read_picture, readable
from convnext.data.preprocessing import Preprocessing
from convnext.data.sample_images import crops
from convnext.errors import RunError, UsageError
from convnext.inference.evaluation_data import own_images
from convnext.inference.model import Model

MAX_IMAGES = 64  # for the check, and as many for calibration

ReadImage = Callable[[], Image.Image]


def images_to_check(
    model: Model, preprocessing: Preprocessing, folder: Path | None, calibrated: bool
) -> tuple[Tensor, str]:
    """Return images (N, C, H, W) to check a file on, and a description of them.

    They are those in a folder, only every second one if int8 is ``calibrated`` on the others; else those held out in
    training; else crops of the two photographs in scikit-learn.

    Raises:
        UsageError: the folder has no images.
        RunError: none can be read.
    """
    if folder is not None:
        files = find_files(folder)[:: 2 if calibrated else 1]
        return prepare(file_readers(files), preprocessing), f"images of {folder}"
    if model.recipe is not None:
        try:
            held_out = own_images(model, None)
        except (UsageError, RunError):
            held_out = None  # removed since the training
        if held_out is not None:
            return prepare(readers(held_out.images), preprocessing), f"{held_out.part} of {held_out.name}"
    squares = crops((240, 320, 420), across=110, down=90)
    return prepare([lambda square=square: square for square in squares], preprocessing), "crops of two photographs"


def images_to_calibrate(model: Model, preprocessing: Preprocessing, folder: Path | None) -> Tensor:
    """Return images (N, C, H, W) to calibrate int8 with: the run's training images, or every second one of a folder.

    Raises:
        UsageError: there are none.
        RunError: none can be read.
    """
    if folder is not None:
        files = find_files(folder)
        return prepare(file_readers(files[1::2] or files), preprocessing)
    remedy = "pass some like those that the model will see: --images FOLDER"
    if model.recipe is None:
        raise UsageError(f"int8 is calibrated with images, and {model.name} has none: {remedy}")
    try:
        data = load_data(model.recipe.data, val_fraction=model.recipe.val_fraction)
    except (UsageError, RunError) as error:
        raise UsageError(f"int8 is calibrated with the training images, which are gone ({error}): {remedy}") from error
    return prepare(readers(data.train), preprocessing)


def find_files(folder: Path) -> list[Path]:
    """Return the image files of a folder; raise UsageError if there are none."""
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise UsageError(f"no images in {folder}: --images needs a folder with {', '.join(EXTENSIONS)} files")
    return files


def file_readers(files: Sequence[Path]) -> list[ReadImage]:
    """Return a function that reads each of at most :data:`MAX_IMAGES` files."""
    return [lambda path=path: read_picture(path) for path in spread(files)]


def readers(images: Images) -> list[ReadImage]:
    """Return a function that reads each of at most :data:`MAX_IMAGES` images."""
    return image_readers(images, spread(range(len(images))))


def spread(values: Sequence) -> Sequence:
    """Return at most :data:`MAX_IMAGES` of the values, evenly spaced."""
    return values[:: max(1, -(-len(values) // MAX_IMAGES))]


def prepare(images: Sequence[ReadImage], preprocessing: Preprocessing) -> Tensor:
    """Return images as (N, C, H, W), without those that cannot be read; raise RunError if none can be."""
    prepared, reasons = readable(images, preprocessing)
    if not prepared:
        raise RunError(f"no image for the export can be read: {reasons[-1]}")
    return torch.stack(prepared)
