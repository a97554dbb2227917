"""A weights file, of whatever layout, as a trained network."""

from functools import partial
from pathlib import Path

from convnext.data.imagenet import class_names, folder_names
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.inference.trained import Trained
from convnext.weights.hub import fetch
from convnext.weights.pretrained import checkpoint
from convnext.weights.weights_file import Opened, default_preprocessing, open_weights


def open_file(path: Path) -> Trained:
    """Open a weights file, or a folder as the hub's libraries save it.

    Its classes and preprocessing are those that it or the files beside it name; else ImageNet's classes, where it has
    as many, and the published preprocessing for 224 px.

    Raises:
        UsageError: there is no such file, it is of no ConvNeXt, or of one for images of other than 1 or 3 channels.
        RunError: the file is damaged, holds code, or values that are not finite.
    """
    return trained(str(path), open_weights(path), None)


def open_tag(name: str) -> Trained:
    """Open ``VARIANT`` or ``VARIANT.TAG``, the authors' published weights; they are downloaded once.

    Raises:
        UsageError: there are no such weights.
        RunError: they cannot be downloaded; the message says what to put where.
    """
    variant, _, tag = name.partition(".")
    row = checkpoint(variant, tag or True)
    opened = open_weights(fetch(row.variant, row.tag))
    return trained(f"{row.variant}.{row.tag}", opened, Preprocessing.published(row.image_size), *row.notes)


def trained(name: str, opened: Opened, preprocessing: Preprocessing | None, *notes: str) -> Trained:
    """What was opened, with its classes and preprocessing.

    Raises:
        UsageError: its images have channels that no picture has.
    """
    channels = opened.architecture.in_channels
    if channels not in (1, 3):
        raise UsageError(
            f"{name} is for images of {channels} channels, and pictures have 3, or 1 where they are grey: use the "
            f"network itself, convnext.create_model(..., in_chans={channels}) with convnext.load_weights"
        )
    known = opened.description.preprocessing or preprocessing
    classes, own = opened.description.classes, opened.architecture.num_classes
    if classes is None:
        known_names = class_names(own)
        classes = known_names or tuple(f"class {label}" for label in range(own))
        if own and not known_names:
            notes = (*notes, f"{name} has no names for its classes ({own}): they are called by their numbers")
    if known is None:
        known = default_preprocessing(opened.architecture)
        notes = (*notes, f"{name} does not say how images are prepared: as the published networks' for 224 px")
    return Trained(
        name,
        opened.build(),
        classes,
        known,
        weights=f"{opened.architecture.name}, {opened.layout} layout",
        aliases=partial(folder_names, own) if opened.description.classes is None else dict,
        notes=(*opened.notes, *notes),
    )
