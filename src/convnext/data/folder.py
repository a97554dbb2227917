"""Folders of image files: ``train/`` and ``val/``, or one folder of classes that is split here."""

import os
import random
from pathlib import Path

from convnext.data.images import FileImages, ImageData
from convnext.errors import UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
VAL_NAMES = ("val", "valid", "validation")


def read_folder(name: str, folder: Path, *, val_fraction: float | None, seed: int) -> ImageData:
    """Read a folder with ``train/`` and ``val/``, or one with a folder a class, which is split class by class.

    Args:
        val_fraction: the part of each class to hold out; None refuses a folder without ``train/`` and ``val/``.
        seed: of the split.

    Raises:
        UsageError: no such folder, no images, fewer than two classes, or a class in ``val/`` that ``train/`` lacks.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}: check the path (now in {Path.cwd()})")
    train = folder / "train"
    val = next((folder / part for part in VAL_NAMES if (folder / part).is_dir()), None)
    if train.is_dir() and val is not None:
        return read_divided(name, train, val)
    if val_fraction is None:
        raise UsageError(f"{folder} needs the folders train/ and val/, each with a folder a class")
    if train.is_dir():
        return divide(name, train, val_fraction, seed, (f"no val/ beside {train}: it is held out of train/",))
    return divide(name, folder, val_fraction, seed)


def read_divided(name: str, train_folder: Path, val_folder: Path) -> ImageData:
    """Read training and held-out images from a folder each."""
    train, val = files_by_class(train_folder), files_by_class(val_folder)
    check_classes(train_folder, train)
    strangers = [label for label, paths in val.items() if paths and label not in train]
    if strangers:
        raise UsageError(f"{val_folder} has classes that {train_folder} lacks: {', '.join(strangers)}")
    if not any(val.values()):
        raise UsageError(f"no images in {val_folder}: it needs a folder a class with {', '.join(EXTENSIONS)} files")
    missing = [label for label in train if not val.get(label)]
    notes = (f"{val_folder} has no images of {', '.join(missing)}",) if missing else ()
    classes = tuple(train)
    return ImageData(name, classes, labelled(train, classes), labelled(val, classes), notes=notes)


def divide(name: str, folder: Path, val_fraction: float, seed: int, notes: tuple[str, ...] = ()) -> ImageData:
    """Read a folder of classes and hold ``val_fraction`` of each class out, at least one image of two or more."""
    files = files_by_class(folder)
    check_classes(folder, files)
    train, val = {}, {}
    for label, paths in files.items():
        shuffled = random.Random(f"{seed}/{label}").sample(paths, len(paths))
        held_out = min(max(1, round(len(paths) * val_fraction)), len(paths) - 1)
        val[label], train[label] = sorted(shuffled[:held_out]), sorted(shuffled[held_out:])
        if not held_out:
            notes += (f"class {label} has one image: it is trained on, none is held out",)
    if not any(val.values()):
        raise UsageError(f"every class in {folder} has one image: it takes two to train on one and hold one out")
    classes = tuple(files)
    split = {"train": relative(train, folder), "val": relative(val, folder)}
    return ImageData(name, classes, labelled(train, classes), labelled(val, classes), split, notes)


def files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The image files below each of a folder's folders, by the folder's name."""
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        return {label: image_files(folder / label) for label in classes}
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from error


def image_files(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted."""
    found, seen = [], set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        found += [Path(directory, name) for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(found)


def check_classes(folder: Path, files: dict[str, list[Path]]) -> None:
    """Refuse a folder in which there is nothing to tell apart."""
    filled = [label for label, paths in files.items() if paths]
    if not filled:
        raise UsageError(
            f"no images in {folder}: it needs a folder a class, each with {', '.join(EXTENSIONS)} files "
            f"(found {len(files)} folders without any)"
        )
    if len(filled) < 2:
        raise UsageError(f"one class in {folder} ({filled[0]}): it takes two or more to tell apart")
    empty = [label for label in files if label not in filled]
    if empty:
        raise UsageError(f"no images in {', '.join(str(folder / label) for label in empty)}: fill or remove the folder")


def labelled(files: dict[str, list[Path]], classes: tuple[str, ...]) -> FileImages:
    """Files by class as one list with labels."""
    index = {label: i for i, label in enumerate(classes)}
    paths = tuple(path for paths in files.values() for path in paths)
    return FileImages(paths, tuple(index[label] for label, paths in files.items() for _ in paths))


def relative(files: dict[str, list[Path]], folder: Path) -> list[str]:
    """Files by class as one list of paths below a folder."""
    return [str(path.relative_to(folder)) for paths in files.values() for path in paths]
