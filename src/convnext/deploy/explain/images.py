"""The images over which a network is studied: its run's held-out ones, other data, or two photographs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.folder import image_files
from convnext.data.held_out import load_held_out
from convnext.data.images import UnreadableImageError, read_picture
from convnext.deploy.explain.networks import Studied
from convnext.deploy.held_out import images_for
from convnext.deploy.photographs import crops
from convnext.errors import RunError, UsageError

MOST = 50  # images; more change the averages little
TILE = 213  # px a side of the squares that the photographs are cut into: six each


@dataclass(frozen=True)
class StudyImages:
    """Images prepared for a network.

    Attributes:
        images: (N, C, S, S).
        name: what they are, in words.
        notes: what should be said of them.
    """

    images: Tensor
    name: str
    notes: tuple[str, ...] = ()


def study_images(studied: Studied, data: str | None) -> StudyImages:
    """At most :data:`MOST` images, evenly spread over what there is.

    Args:
        studied: the network.
        data: a folder of images, or a data set by name; None for the images that the network's run held out, or where
            it has no run for pieces of the photographs that scikit-learn ships.

    Raises:
        UsageError: there is no such data, or no image in it.
        RunError: none of the images can be read.
    """
    name, readers = sources(studied, data)
    chosen = [readers[i] for i in np.linspace(0, len(readers) - 1, min(MOST, len(readers))).round().astype(int)]
    prepared, unreadable = [], []
    for read in chosen:
        try:
            prepared.append(studied.preprocessing(read()))
        except (UnreadableImageError, ValueError) as error:  # the latter for what is too narrow to be resized
            unreadable.append(f"skipped, cannot be read: {error}")
    if not prepared:
        raise RunError(f"none of {len(chosen)} images of {name} can be read: {unreadable[0]}")
    return StudyImages(torch.stack(prepared), f"{len(prepared)} images: {name}", tuple(unreadable))


def sources(studied: Studied, data: str | None) -> tuple[str, list[Callable[[], Image.Image]]]:
    """What the images are called, and what reads each of them."""
    if data is not None and Path(data).is_dir():
        files = image_files(Path(data))
        if not files:
            raise UsageError(f"no images in {data}: name a folder that has some, or a data set such as digits")
        return data, [lambda file=file: read_picture(file) for file in files]
    trained = studied.trained
    if data is not None:
        held_out = load_held_out(data)
    elif trained is not None and trained.recipe is not None:
        held_out = images_for(trained, None)
    else:
        pieces = list(crops((TILE,), TILE, TILE))
        return "pieces of two photographs", [lambda piece=piece: piece for piece in pieces]
    images = held_out.images
    return f"{held_out.name}, {held_out.part}", [lambda i=i: images.read(i)[0] for i in range(len(images))]
