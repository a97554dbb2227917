"""Data sets by name: ``digits``, ``cifar10``, ``cifar100``, ``imagenet:PATH``, or a folder of images."""

import math
import os
import pickle
from pathlib import Path

import numpy as np
import torch

from convnext.data.folder import read_folder
from convnext.data.images import ImageData, MemoryImages
from convnext.errors import RunError, UsageError, unknown_name
from convnext.files import user_cache

NAMES = ("digits", "cifar10", "cifar100")
OBJECT = "object:"  # how a recipe names a dataset or a model that was passed as an object


def load_data(name: str, *, val_fraction: float = 0.2, seed: int = 0) -> ImageData:
    """Load a data set.

    Args:
        name: ``digits`` (scikit-learn's 1,797 handwritten digits), ``cifar10``, ``cifar100`` (downloaded once),
            ``imagenet:PATH`` (a folder with ``train/`` and ``val/``), or the path of a folder that has either
            ``train/`` and ``val/`` or a folder a class.
        val_fraction: the part of each class that is held out, where the data comes undivided.
        seed: of that division.

    Raises:
        UsageError: there is no such data, or it is no data to train on; the message says what is missing.
        RunError: it could not be downloaded.
    """
    if not name:
        raise UsageError(f"no data: name {', '.join(NAMES)}, imagenet:PATH or the path of a folder of images")
    if name.startswith(OBJECT):
        raise UsageError(f"the data is a dataset in memory ({name.removeprefix(OBJECT)}): pass that dataset")
    if name == "digits":
        return load_digits(val_fraction, seed)
    if name in ("cifar10", "cifar100"):
        return load_cifar(name)
    if name.startswith("imagenet:"):
        return read_folder(name, Path(name.removeprefix("imagenet:")), val_fraction=None, seed=seed)
    if not Path(name).is_dir():
        if "/" in name or os.sep in name or Path(name).exists():
            raise UsageError(f"{name} is no folder: data is a folder of images, {', '.join(NAMES)} or imagenet:PATH")
        raise unknown_name("data", name, [*NAMES, "imagenet:PATH"], "Or give the path of a folder of images.")
    return read_folder(name, Path(name), val_fraction=val_fraction, seed=seed)


def load_digits(val_fraction: float, seed: int) -> ImageData:
    """scikit-learn's optical digits: 1,797 images of 8 x 8 pixels and 10 classes, split by class."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = sklearn_digits(return_X_y=True)  # (1797, 64), 0 to 16
    grey = torch.from_numpy((pixels.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8))
    images = grey.expand(-1, 3, -1, -1)
    held_out = math.ceil(val_fraction * len(labels))
    if not 10 <= held_out <= len(labels) - 10:
        raise UsageError(f"val_fraction is {val_fraction}: both parts of the digits need an image of each class")
    train, val = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    parts = [MemoryImages(images[part], torch.from_numpy(labels[part]).long()) for part in (train, val)]
    return ImageData("digits", tuple(str(digit) for digit in range(10)), train=parts[0], val=parts[1])


def load_cifar(name: str) -> ImageData:
    """CIFAR-10 or CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels, through torchvision."""
    from torchvision import datasets

    builder = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = data_cache()
    try:
        parts = [builder(folder, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise RunError(
            f"{name} could not be downloaded from {builder.url} ({error}): put {builder.filename} into {folder} "
            "yourself, or set CONVNEXT_DATA to the folder that has it"
        ) from error
    train, val = (
        MemoryImages(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return ImageData(name, tuple(parts[0].classes), train, val)


def data_cache() -> Path:
    """The folder for downloaded data: ``CONVNEXT_DATA``, or ``convnext/data`` in the user's cache."""
    if "CONVNEXT_DATA" in os.environ:
        return Path(os.environ["CONVNEXT_DATA"])
    return user_cache("data")
