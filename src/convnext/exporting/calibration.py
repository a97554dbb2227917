"""Real images for an export: to calibrate int8 with, and to check a file on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from convnext.data import FileImages, MemoryImages, load_data
from convnext.data.folder import EXTENSIONS, image_files
from convnext.data.images import read_picture, readable
from convnext.data.preprocessing import Preprocessing
from convnext.data.sample_images import crops
from convnext.errors import RunError, UsageError
from convnext.inference.evaluation_data import own_images
from convnext.inference.trained import Trained

MOST = 64  # images to check on, and as many to calibrate with


def images_to_check(
    trained: Trained, preprocessing: Preprocessing, folder: Path | None, calibrated: bool
) -> tuple[Tensor, str]:
    """Images (N, C, H, W) to compare a file's outputs on, and what they are in words.

    Args:
        trained: the network.
        preprocessing: what prepares them.
        folder: a folder of images; None for the run's held-out images or, where there are none, crops of the two
            photographs that scikit-learn brings along.
        calibrated: whether int8 is calibrated with images of the folder: it is checked on every second one then.

    Raises:
        UsageError: the folder has no images.
        RunError: none can be read.
    """
    if folder is not None:
        paths = spread(files_in(folder)[:: 2 if calibrated else 1])
        return prepared([lambda path=path: read_picture(path) for path in paths], preprocessing), f"images of {folder}"
    if trained.recipe is not None:
        try:
            held_out = own_images(trained, None)
        except (UsageError, RunError):
            held_out = None  # gone since the training
        if held_out is not None:
            return prepared(readers(held_out.images), preprocessing), f"{held_out.part} of {held_out.name}"
    squares = crops((240, 320, 420), across=110, down=90)
    return prepared([lambda square=square: square for square in squares], preprocessing), "crops of two photographs"


def images_to_calibrate(trained: Trained, preprocessing: Preprocessing, folder: Path | None) -> Tensor:
    """Images (N, C, H, W) for int8: the run's training images, or every second one of a folder.

    Raises:
        UsageError: there are none.
        RunError: none can be read.
    """
    if folder is not None:
        paths = files_in(folder)
        paths = spread(paths[1::2] or paths)
        return prepared([lambda path=path: read_picture(path) for path in paths], preprocessing)
    remedy = "give some of those that the network will see: --images FOLDER"
    if trained.recipe is None:
        raise UsageError(f"int8 is calibrated with images, and {trained.name} comes without: {remedy}")
    try:
        data = load_data(trained.recipe.data, val_fraction=trained.recipe.val_fraction)
    except (UsageError, RunError) as error:
        raise UsageError(
            f"int8 is calibrated with the images of the training, which are gone ({error}): {remedy}"
        ) from error
    return prepared(readers(data.train), preprocessing)


def files_in(folder: Path) -> list[Path]:
    """The image files of a folder.

    Raises:
        UsageError: there are none.
    """
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise UsageError(f"no images in {folder}: --images takes a folder with {', '.join(EXTENSIONS)} files below it")
    return files


def readers(images: MemoryImages | FileImages) -> list[Callable[[], Image.Image]]:
    """What reads each of some images, evenly spread over all."""
    return [lambda index=index: images.read(index)[0] for index in spread(range(len(images)))]


def spread(values: Sequence) -> list:
    """At most :data:`MOST` of some values, evenly spread."""
    step = max(1, -(-len(values) // MOST))
    return list(values[::step])


def prepared(pictures: Sequence[Callable[[], Image.Image]], preprocessing: Preprocessing) -> Tensor:
    """Pictures as images (N, C, H, W); those that cannot be read are left out.

    Raises:
        RunError: none can be read.
    """
    images, reasons = readable(pictures, preprocessing)
    if not images:
        raise RunError(f"no image to check the export on can be read: {reasons[-1]}")
    return torch.stack(images)


def resized(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    """The same for images of another size."""
    return preprocessing if size is None else replace(preprocessing, image_size=size)
