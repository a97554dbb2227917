"""The images over which a network is studied: its run's held-out ones, other data, or two photographs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convnext.data.folder import image_files
from convnext.data.held_out import load_held_out
from convnext.data.images import image_readers, read_picture, readable
from convnext.data.sample_images import crops
from convnext.device import choose_device
from convnext.errors import RunError, UsageError
from convnext.inference.evaluation_data import images_for
from convnext.inference.model import Model, resolve

MOST = 50  # images; more change the averages little
TILE = 213  # px a side of the squares that the photographs are cut into: six each

Prepared = TypeVar("Prepared")


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


def study_images(model: Model, data: str | None) -> StudyImages:
    """At most :data:`MOST` images, evenly spread over what there is.

    Args:
        model: the model.
        data: a folder of images, or a data set by name; None for the images that the network's run held out, or where
            it has no run for pieces of the photographs that scikit-learn ships.

    Raises:
        UsageError: there is no such data, or no image in it.
        RunError: none of the images can be read.
    """
    name, prepared, unreadable = sample(model, data, MOST, model.preprocessing)
    if not prepared:
        raise RunError(f"none of {len(unreadable)} images of {name} can be read: {unreadable[0]}")
    return StudyImages(torch.stack(prepared), f"{len(prepared)} images: {name}", tuple(unreadable))


def sample(
    model: Model, data: str | None, most: int, prepare: Callable[[Image.Image], Prepared]
) -> tuple[str, list[Prepared], list[str]]:
    """Some of the images that :func:`study_images` chooses among, evenly spread.

    Args:
        model: the model.
        data: as for :func:`study_images`.
        most: images at most.
        prepare: what is done with each picture.

    Returns:
        What the images are called; what was made of each; a note for each that cannot be read.
    """
    name, readers = sources(model, data)
    places = np.linspace(0, len(readers) - 1, min(most, len(readers))).round().astype(int)
    prepared, reasons = readable([readers[place] for place in places], prepare)
    return name, prepared, [f"skipped, cannot be read: {why}" for why in reasons]


def sources(model: Model, data: str | None) -> tuple[str, list[Callable[[], Image.Image]]]:
    """What the images are called, and what reads each of them."""
    if data is not None and Path(data).is_dir():
        files = image_files(Path(data))
        if not files:
            raise UsageError(f"no images in {data}: name a folder that has some, or a data set such as digits")
        return data, [lambda file=file: read_picture(file) for file in files]
    if data is not None:
        held_out = load_held_out(data)
    elif model.recipe is not None:
        held_out = images_for(model, None)
    else:
        pieces = list(crops((TILE,), TILE, TILE))
        return "pieces of two photographs", [lambda piece=piece: piece for piece in pieces]
    readers = image_readers(held_out.images, range(len(held_out.images)))
    return f"{held_out.name}, {held_out.part}", readers


@dataclass(frozen=True)
class Subject:
    """A network to look inside, untrained or trained, with the images that it is shown.

    Attributes:
        name: what the network was asked for by.
        weights: ``trained`` or ``untrained``.
        model: in evaluation mode, on the device.
        images: on the device.
        notes: what should be said of the network and the images.
    """

    name: str
    weights: str
    model: nn.Module
    images: StudyImages
    notes: tuple[str, ...]


def subjects(names: Sequence[str], data: str | None, device: str) -> Iterator[Subject]:
    """Each network untrained and, where it is, trained: opened when its turn comes.

    Args:
        names: runs, weights, or names of networks, which are untrained.
        data: images, as for :func:`study_images`.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.

    Raises:
        UsageError: there is no such network, data or device.
        RunError: a file is damaged, or no image can be read.
    """
    torch_device = choose_device(device)
    for name in names:
        model = resolve(name, "named")
        found = study_images(model, data)
        images = replace(found, images=found.images.to(torch_device))
        modules = {"untrained": model.untrained()} | ({"trained": model.module} if model.is_trained else {})
        for weights, module in modules.items():
            yield Subject(name, weights, module.to(torch_device), images, (*model.notes, *images.notes))
