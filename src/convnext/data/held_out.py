"""Images to evaluate on: the held-out part of a data set, or the whole of a folder that has no parts."""

from dataclasses import dataclass, replace
from pathlib import Path

from convnext.data.folder import EXTENSIONS, VAL_NAMES, files_by_class, labelled
from convnext.data.images import DatasetImages, FileImages, Images, MemoryImages
from convnext.data.sources import NAMES, load_data
from convnext.errors import UsageError

PART_NAMES = (*VAL_NAMES, "test")


@dataclass(frozen=True)
class HeldOut:
    """Images to evaluate on.

    Attributes:
        name: what the data was asked for by.
        part: which part of it this is, in words.
        classes: class names; a label is an index into them.
        images: the images.
        notes: what a user should know about what was read.
    """

    name: str
    part: str
    classes: tuple[str, ...]
    images: Images
    notes: tuple[str, ...] = ()

    def with_classes(self, index: dict[str, int], classes: tuple[str, ...]) -> "HeldOut":
        """The same images labelled by other classes: ``index`` has the new label of every class with images."""
        labels, images = [index.get(name, -1) for name in self.classes], self.images
        if isinstance(images, FileImages):
            images = replace(images, labels=tuple(labels[label] for label in images.labels))
        elif isinstance(images, MemoryImages):
            images = replace(images, labels=images.labels.new_tensor(labels)[images.labels])
        return replace(self, classes=classes, images=images)

    def with_notes(self, *notes: str) -> "HeldOut":
        """The same with more to say."""
        return replace(self, notes=(*self.notes, *notes))

    def filled(self) -> tuple[str, ...]:
        """The classes that have images."""
        assert not isinstance(self.images, DatasetImages), "its labels are the model's"
        labels = self.images.labels
        present = set(labels if isinstance(labels, tuple) else labels.tolist())
        return tuple(name for label, name in enumerate(self.classes) if label in present)


def load_held_out(name: str) -> HeldOut:
    """Images to evaluate on, by the name of a data set.

    Args:
        name: ``digits`` (the fifth that is held out by default), ``cifar10``, ``cifar100`` (their test images),
            ``imagenet:PATH``, or the path of a folder. Of a folder, ``val/`` is taken, else ``test/``, else ``train/``,
            each with a folder a class; a folder without these, but with a folder a class, is taken whole.

    Raises:
        UsageError: there is no such data, or it has no images.
        RunError: it could not be downloaded.
    """
    folder = Path(name.removeprefix("imagenet:"))
    if name in NAMES or not name or not folder.is_dir():
        data = load_data(name)  # by its name, or the error for a path that is not there
        part = "test images" if name.startswith("cifar") else "held-out images"
        return HeldOut(name, part, data.classes, data.val, data.notes)  # pyright: ignore[reportArgumentType]
    try:
        part = next((part for part in (*PART_NAMES, "train") if has_folders(folder / part)), None)
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from error
    source = folder / part if part else folder
    files = files_by_class(source)
    if not any(files.values()):
        raise UsageError(f"no images in {source}: it needs a folder a class with {', '.join(EXTENSIONS)} files")
    empty = [label for label, paths in files.items() if not paths]
    notes = (f"{source} has no images of {', '.join(empty)}",) if empty else ()
    classes = tuple(files)
    return HeldOut(name, f"images of {part}/" if part else "all its images", classes, labelled(files, classes), notes)


def has_folders(folder: Path) -> bool:
    """True if a folder contains folders, as one with a folder per class does."""
    return folder.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
