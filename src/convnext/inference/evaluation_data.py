"""The images to evaluate a trained network on: its own run's held-out ones, or those of other data."""

from pathlib import Path, PurePosixPath
from typing import Any

from convnext.data import FileImages, ImageData, load_data
from convnext.data.held_out import HeldOut, load_held_out
from convnext.data.sources import NAMES
from convnext.errors import RunError, UsageError
from convnext.files import read_json
from convnext.inference.class_matching import match_classes
from convnext.inference.trained import Trained


def images_for(trained: Trained, data: str | None) -> HeldOut:
    """The images to evaluate on, labelled by the network's classes.

    Args:
        trained: the network.
        data: a data set's name or path; None for the images that the run held out. The run's own data, at its old place
            or at another, means the images that the run held out as well, never those that it was trained on.

    Raises:
        UsageError: there is no such data, or it has classes that the network does not know.
        RunError: the images that the run held out are gone, or could not be downloaded.
    """
    found = own_images(trained, data) if trained.recipe else None
    if found is None:
        assert data is not None, "a network without a run has no data of its own"
        found = images_of_the_run(trained, data) or load_held_out(data)
    return match_classes(found, trained.classes, trained.name, trained.aliases())


def own_images(trained: Trained, name: str | None) -> HeldOut | None:
    """The images that a run held out; None where ``name`` is other data than the run's own."""
    assert trained.folder is not None
    assert trained.recipe is not None
    path = trained.folder / "data.json"
    recorded = read_json(path) if path.exists() else {}
    trained_on = trained.recipe.data
    name = trained_on if name is None else name
    folder = Path(name.removeprefix("imagenet:"))
    if name == trained_on and name not in NAMES and not folder.is_dir():
        raise RunError(
            f"{trained.name} was trained on the folder {folder}, which is not there (now in {Path.cwd()}): name its "
            f"place now, as in: convnext evaluate {trained.name} PATH"
        )
    if name != trained_on and (name in NAMES or not Path(name).is_dir()):
        return None
    try:
        data = load_data(name, val_fraction=trained.recipe.val_fraction)
    except UsageError:
        if name == trained_on:
            raise
        return None  # there is nothing to train on in it
    unchanged = "images" not in recorded or recorded["images"] == data.fingerprint
    if Path(name).resolve() == Path(trained_on).resolve():
        return own_part(name, data) if unchanged else changed_images(name, data, recorded)
    if "images" not in recorded or not unchanged or not could_be(data, trained_on, trained.recipe.val_fraction):
        return None
    return own_part(name, data, f"{name} has the files of {trained_on}, which the run was trained on")


def images_of_the_run(trained: Trained, name: str) -> HeldOut | None:
    """The images that the run of an exported file held out; None where ``name`` is other data than that run's."""
    images, val_fraction = trained.trained_on.get("images"), trained.trained_on.get("val_fraction")
    if not isinstance(val_fraction, float):
        return None
    try:
        data = load_data(name, val_fraction=val_fraction)
    except UsageError:
        return None  # there is nothing to train on in it
    note = f"{name} is what {trained.name} was trained on: evaluated are the images that were held out then"
    return own_part(name, data, note) if data.fingerprint == images else None


def own_part(name: str, data: ImageData, *notes: str) -> HeldOut:
    """The held-out images of data that is as it was in training."""
    return HeldOut(name, "images held out in training", data.classes, data.val, (*data.notes, *notes))


def could_be(data: ImageData, trained_on: str, val_fraction: float) -> bool:
    """Whether data with the same names of files is a copy of what was trained on, or that moved to another place."""
    if not Path(trained_on).is_dir():
        return True
    return sizes(data) == sizes(load_data(trained_on, val_fraction=val_fraction))


def sizes(data: ImageData) -> list[int]:
    """The sizes of all files, in bytes."""
    parts = [part for part in (data.train, data.val) if isinstance(part, FileImages)]
    return [path.stat().st_size for part in parts for path in part.paths]


def changed_images(name: str, data: ImageData, recorded: dict[str, Any]) -> HeldOut:
    """The held-out images of data that has changed since the training.

    Where this package had divided a folder, a division made now would hold images out that were trained on: the one of
    then is kept.
    """
    changed = f"{name} has changed since the training (then {recorded['images']}; now {data.fingerprint})"
    split = recorded.get("split")
    if not isinstance(split, dict):
        return HeldOut(name, "images held out", data.classes, data.val, (f"{changed}: evaluated as it is now",))
    root = Path(name) / "train" if (Path(name) / "train").is_dir() else Path(name)
    files = [PurePosixPath(Path(file).as_posix()) for file in split.get("val", ())]
    there = [file for file in files if (root / file).is_file()]
    if not there:
        raise RunError(f"none of the {len(files)} images that were held out in training is left in {root}")
    classes = tuple(sorted({file.parts[0] for file in there}))
    images = FileImages(tuple(root / file for file in there), tuple(classes.index(file.parts[0]) for file in there))
    note = f"{changed}: evaluated are the {len(there)} of {len(files)} images held out then that are still there"
    return HeldOut(name, "images held out in training", classes, images, (note,))
