"""The names of ImageNet's classes, for networks that come without any: known by how many there are."""

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FEWEST = 1000  # classes of the smallest set


@cache
def class_names(count: int) -> tuple[str, ...] | None:
    """ImageNet's class names, for the set that has this many; None where none has.

    ImageNet-1K's are those that torchvision has, of ImageNet-22K and its other parts the first words of timm's.
    """
    if count == 1000:
        return categories()
    subset = subset_of(count)
    if subset is None:
        return None
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    return tuple(ImageNetInfo(subset).label_descriptions())


def categories() -> tuple[str, ...]:
    """ImageNet-1K's class names as torchvision has them.

    They are read from the one file that holds them where it is there: all of torchvision takes as long to import as
    torch itself.
    """
    package = find_spec("torchvision")
    path = Path(package.origin).parent / "models" / "_meta.py" if package and package.origin else None
    names = runpy.run_path(str(path)).get("_IMAGENET_CATEGORIES") if path and path.is_file() else None
    if names is None:
        from torchvision.models import ResNet18_Weights

        names = ResNet18_Weights.DEFAULT.meta["categories"]
    return tuple(names)


def folder_names(count: int) -> dict[str, int]:
    """The same classes by the names of their folders, such as n01440764: where each stands among the logits."""
    subset = subset_of(count)
    if subset is None:
        return {}
    from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

    return {name: label for label, name in enumerate(ImageNetInfo(subset).label_names())}


def subset_of(count: int) -> str | None:
    """timm's name of the set with this many classes."""
    if count < FEWEST:
        return None  # without importing timm
    from timm.data import infer_imagenet_subset  # pyright: ignore[reportPrivateImportUsage]

    return infer_imagenet_subset({"num_classes": count})
