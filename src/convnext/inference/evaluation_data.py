"""The images to evaluate a model on: those that its run held out, or other data, labelled by the model's classes."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from convnext.data import FileImages, ImageData, load_data
from convnext.data.held_out import HeldOut, load_held_out
from convnext.data.sources import NAMES
from convnext.errors import RunError, UsageError
from convnext.files import read_json
from convnext.inference.model import Model

MAX_LISTED = 10  # names in a message
HELD_OUT = "images held out in training"


def images_for(model: Model, data: str | None) -> HeldOut:
    """The images to evaluate on, labelled by the model's classes.

    Args:
        model: the model.
        data: a data set's name or path; None for the images that the run held out. The run's own data, at its old path
            or at another, also means the held-out images, never those that the model was trained on.

    Raises:
        UsageError: there is no such data, none is named and the model has no run, or it has classes that the model does
            not know.
        RunError: the images that the run held out are gone, or could not be downloaded.
    """
    if model.recipe:
        found = own_images(model, data)
    elif data is None:
        raise UsageError(f"{model.name} comes without data: name some, such as imagenet:PATH or a folder of images")
    else:
        found = images_of_export(model, data)
    return match_classes(found or load_held_out(str(data)), model)


def own_images(model: Model, name: str | None) -> HeldOut | None:
    """The images that a run held out; None where ``name`` is other data than the run's own."""
    assert model.folder is not None
    assert model.recipe is not None
    path = model.folder / "data.json"
    recorded = read_json(path) if path.exists() else {}
    trained_on, val_fraction = model.recipe.data, model.recipe.val_fraction
    name = trained_on if name is None else name
    folder = Path(name.removeprefix("imagenet:"))
    if name == trained_on and name not in NAMES and not folder.is_dir():
        raise RunError(
            f"{model.name} was trained on the folder {folder}, which is not there (now in {Path.cwd()}): name its "
            f"path now, as in: convnext evaluate {model.name} PATH"
        )
    if name != trained_on and (name in NAMES or not Path(name).is_dir()):
        return None
    try:
        data = load_data(name, val_fraction=val_fraction)
    except UsageError:
        if name == trained_on:
            raise
        return None  # it has nothing to train on
    is_unchanged = "images" not in recorded or recorded["images"] == data.fingerprint
    if Path(name).resolve() == Path(trained_on).resolve():
        return held_out_part(name, data) if is_unchanged else changed_images(name, data, recorded)
    if "images" not in recorded or not is_unchanged:
        return None
    if Path(trained_on).is_dir() and file_sizes(data) != file_sizes(load_data(trained_on, val_fraction=val_fraction)):
        return None  # the same file names, and other images
    return held_out_part(name, data, f"{name} has the files of {trained_on}, which the run was trained on")


def images_of_export(model: Model, name: str) -> HeldOut | None:
    """The images that the run of an exported file held out; None where ``name`` is other data than that run's."""
    val_fraction = model.data.get("val_fraction")
    if not isinstance(val_fraction, float):
        return None
    try:
        data = load_data(name, val_fraction=val_fraction)
    except UsageError:
        return None  # it has nothing to train on
    note = f"{name} is what {model.name} was trained on: evaluated on the images that were held out then"
    return held_out_part(name, data, note) if data.fingerprint == model.data.get("images") else None


def held_out_part(name: str, data: ImageData, *notes: str) -> HeldOut:
    """The held-out images of data that has not changed since the training."""
    return HeldOut(name, HELD_OUT, data.classes, data.val, (*data.notes, *notes))


def file_sizes(data: ImageData) -> list[int]:
    """The sizes of all files, in bytes."""
    parts = [part for part in (data.train, data.val) if isinstance(part, FileImages)]
    return [path.stat().st_size for part in parts for path in part.paths]


def changed_images(name: str, data: ImageData, recorded: dict[str, Any]) -> HeldOut:
    """The held-out images of data that has changed since the training.

    Where this package had split a folder, a new split would hold out images that were trained on: the recorded split is
    used.
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
    note = f"{changed}: evaluated on the {len(there)} of {len(files)} images held out then that are still there"
    return HeldOut(name, HELD_OUT, classes, images, (note,))


def match_classes(data: HeldOut, model: Model) -> HeldOut:
    """The data labelled by the model's classes, matched by name; with a note where it has images of some only."""
    classes = model.classes
    indices = {**model.aliases(), **{name: label for label, name in enumerate(classes)}}
    present = data.filled()
    unknown = [name for name in present if name not in indices]
    reached = {indices[name] for name in present if name in indices}
    absent = [name for label, name in enumerate(classes) if label not in reached]
    if unknown:
        count = "a class" if len(unknown) == 1 else f"{len(unknown)} classes"
        known = f"of its own {len(classes)} classes, the data lacks {listed(absent)}"
        raise UsageError(
            f"{data.name} has {count} that {model.name} does not know: {listed(unknown)}; "
            f"{known if absent else 'all of its own are there'}. Give the folders the model's class names, or leave "
            "the others out"
        )
    matched = data.with_classes(indices, tuple(classes))
    if not absent:
        return matched
    note = f"{data.name} has images of {len(reached)} of the {len(classes)} classes; none of {listed(absent)}"
    return matched.with_notes(note)


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
