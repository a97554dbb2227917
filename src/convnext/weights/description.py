"""What a weights file is for, where it or the files beside it say so: class names and preprocessing."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors

from convnext.data.preprocessing import EVAL_CROP, MEAN, STD, Preprocessing
from convnext.errors import RunError, reason
from convnext.weights import config_timm, config_transformers
from convnext.weights.architecture import Architecture
from convnext.weights.reading import BEST, IN_FOLDERS, is_safetensors

T = TypeVar("T")
LONGEST_DOCUMENT = 10_000_000  # bytes; the names of 22,000 classes take a hundredth of it
METADATA = "convnext"  # the entry of a safetensors file's metadata that this package writes


@dataclass(frozen=True)
class Description:
    """What is known of a file's purpose; None for what is not.

    Attributes:
        classes: the names of the classes, in the order of the logits.
        preprocessing: how images are prepared.
        norm_eps: what the norm behind the pooling adds to the variance.
    """

    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    norm_eps: float | None = None

    def metadata(self) -> dict[str, str]:
        """The description as a safetensors file's metadata."""
        document = {
            "classes": self.classes,
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_dict(),
            "norm_eps": self.norm_eps,
        }
        known = {name: value for name, value in document.items() if value is not None}
        return {"format": "pt"} | ({METADATA: json.dumps(known)} if known else {})


def describe(path: Path) -> Description:
    """What a weights file says of itself: by the files that its library writes beside it, else by its own metadata.

    Raises:
        RunError: one of these is damaged.
    """
    config = path.parent / "config.json"
    if path.name == BEST and (path.parent / "classes.json").is_file():
        return beside_a_run(path.parent)
    if path.name in IN_FOLDERS and config.is_file():
        return beside_a_config(config)
    found = own_metadata(path)
    return read_document(path, found) if found else Description()


def default_preprocessing(architecture: Architecture) -> Preprocessing:
    """The published way to prepare images of 224 px, for as many channels as the network takes."""
    if architecture.in_channels == 1:
        return Preprocessing(224, EVAL_CROP, mean=(sum(MEAN) / 3,), std=(sum(STD) / 3,))
    return Preprocessing.published(224)


def own_metadata(path: Path) -> str | None:
    """What this package wrote into a safetensors file."""
    if not is_safetensors(path):
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(METADATA)
    except (OSError, safetensors.SafetensorError):
        return None  # what is wrong with it, its reader says


def read_document(path: Path, text: str) -> Description:
    """The description that this package wrote."""

    def read() -> Description:
        document = json.loads(text)
        preprocessing, norm_eps = document.get("preprocessing"), document.get("norm_eps")
        return Description(
            classes=class_names(document.get("classes")),
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            norm_eps=epsilon(norm_eps),
        )

    return readable(path, read)


def beside_a_run(folder: Path) -> Description:
    """What a run's folder says."""
    classes, preprocessing = folder / "classes.json", folder / "preprocessing.json"
    found = Description(readable(classes, lambda: class_names(json.loads(text_of(classes)))))
    if not preprocessing.is_file():
        return found
    return replace(
        found, preprocessing=readable(preprocessing, lambda: Preprocessing.from_dict(document_in(preprocessing)))
    )


def beside_a_config(path: Path) -> Description:
    """What the ``config.json`` of timm or of transformers says, and the latter's ``preprocessor_config.json``."""
    config = document_in(path)

    def read() -> Description:
        if "architecture" in config:
            classes, preprocessing = config_timm.read(config)
            return Description(class_names(classes), preprocessing)
        if "model_type" in config:
            classes, norm_eps = config_transformers.read_config(config)
            beside = path.with_name("preprocessor_config.json")
            preprocessing = None
            if beside.is_file():
                preprocessing = readable(beside, lambda: config_transformers.read_preprocessor(document_in(beside)))
            return Description(class_names(classes), preprocessing, epsilon(norm_eps))
        return Description()

    return readable(path, read)


def class_names(value: Any) -> tuple[str, ...] | None:
    """Class names out of a document.

    Raises:
        TypeError: they are no list of names.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        raise TypeError("the class names are no list of words")
    return tuple(value)


def epsilon(value: Any) -> float | None:
    """What a norm adds to the variance.

    Raises:
        ValueError: it is no small number.
    """
    if value is not None and not 0 <= float(value) <= 1:  # a NaN is in no range either
        raise ValueError(f"the norm's epsilon is {value}, needs a number from 0 to 1")
    return None if value is None else float(value)


def text_of(path: Path) -> str:
    """The text of a document.

    Raises:
        ValueError: it is so long that it is none.
    """
    if (size := path.stat().st_size) > LONGEST_DOCUMENT:
        raise ValueError(f"it has {size:,} bytes, and such documents no more than {LONGEST_DOCUMENT:,}")
    return path.read_text(encoding="utf-8")


def document_in(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: it is damaged.
    """

    def read() -> dict[str, Any]:
        document = json.loads(text_of(path))
        if not isinstance(document, dict):
            raise TypeError("it holds no JSON object")
        return document

    return readable(path, read)


def readable(path: Path, read: Callable[[], T]) -> T:
    """What a document says; where it is damaged, an error that names the file."""
    try:
        return read()
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RunError(
            f"cannot understand {path}: {reason(error)}. Mend it, or move the weights away from it"
        ) from error
