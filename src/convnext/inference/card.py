"""The metadata of an exported file: classes, preprocessing, precision, shapes, origin."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convnext.data.preprocessing import Preprocessing
from convnext.environment import __version__
from convnext.errors import UsageError, printable

MARK = "convnext"  # the entry that every file written by this package has: the version that wrote it
MAX_ENTRY = 10_000_000  # characters; the names of 22,000 classes take a hundredth of it
MAX_TEXT = 1000  # characters of a note or of a class name


@dataclass(frozen=True)
class Card:
    """The metadata of an exported file.

    Attributes:
        format: onnx, torch or openvino.
        precision: fp32, bf16 or int8.
        model: the model's name.
        classes: in the order of the outputs; none for features.
        preprocessing: prepares images for the model.
        with_preprocessing: True if the graph takes uint8 images and gives probabilities, not normalised images and
            logits.
        batch: images per call; None for any number.
        size: height and width in pixels; None for any from ``smallest`` on.
        smallest: height and width in pixels of the smallest images that the model takes.
        macs: multiply-accumulates of one image of the preprocessing's size.
        notes: remarks for the user, such as a licence.
        data: identifies the images that were held out in training; empty where they are not known.
        versions: of the packages that wrote the file.
    """

    format: str
    precision: str
    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    with_preprocessing: bool = False
    batch: int | None = None
    size: int | None = None
    smallest: int = 1
    macs: int = 0
    notes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of the model's images."""
        return self.preprocessing.channels

    @property
    def input(self) -> str:
        """The graph's input, as text: its name, then type, shape and values."""
        count, size = self.batch or "N", (f"{self.size}, {self.size}" if self.size else "H, W")
        if self.with_preprocessing:
            side = self.preprocessing.image_size
            what = f"pictures: uint8 ({count}, {size}, 3), RGB, 0 to 255"
            return f"{what}, resized and cropped as preprocessing says ({side} x {side})"
        kind = "RGB" if self.channels == 3 else "grey"
        what = f"images: float32 ({count}, {self.channels}, {size}), {kind}, 0 to 1"
        return f"{what}, minus preprocessing's mean, divided by its std"

    @property
    def output(self) -> str:
        """The graph's output, as text: its name, then type and shape."""
        name = "probabilities" if self.with_preprocessing else "logits"
        found = (name, len(self.classes)) if self.classes else ("features", "channels")
        return f"{found[0]}: float32 ({self.batch or 'N'}, {found[1]})"

    @property
    def input_name(self) -> str:
        """The name of the graph's input."""
        return self.input.partition(":")[0]

    @property
    def output_name(self) -> str:
        """The name of the graph's output."""
        return self.output.partition(":")[0]

    def to_metadata(self) -> dict[str, str]:
        """The card as strings by name, which every format can hold: JSON where a value is not a string."""
        values = {
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "with_preprocessing": self.with_preprocessing,
            "batch": self.batch or "dynamic",
            "size": self.size or "dynamic",
            "smallest": self.smallest,
            "macs": self.macs,
            "notes": self.notes,
            "data": dict(self.data),
            "versions": dict(self.versions),
        }
        texts = {name: getattr(self, name) for name in ("format", "precision", "model", "input", "output")}
        return {MARK: __version__, **texts} | {name: json.dumps(value) for name, value in values.items()}


def is_text_list(value: Any) -> bool:
    """True for a list of strings."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def is_count(value: Any) -> bool:
    """True for a whole number from 0 on."""
    return type(value) is int and value >= 0


def is_dimension(value: Any) -> bool:
    """True for a whole number from 1 on, or ``dynamic``."""
    return value == "dynamic" or (is_count(value) and value > 0)


TEXT_ENTRIES = ("format", "precision", "model")
JSON_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "classes": is_text_list,
    "preprocessing": lambda value: isinstance(value, dict),
    "with_preprocessing": lambda value: isinstance(value, bool),
    "batch": is_dimension,
    "size": is_dimension,
    "smallest": is_count,
    "macs": is_count,
    "notes": is_text_list,
    "data": lambda value: isinstance(value, dict),
    "versions": lambda value: isinstance(value, dict),
}


def read_card(metadata: Mapping[str, str]) -> Card | None:
    """The card in a file's metadata; None where this package did not write the file."""
    if MARK not in metadata:
        return None
    for name, text in metadata.items():
        if len(text) > MAX_ENTRY:
            raise ValueError(f"its entry {name} has {len(text):,} characters, at most {MAX_ENTRY:,} are read")
    try:
        values: dict[str, Any] = {name: json.loads(metadata[name]) for name in JSON_ENTRIES}
        for name, is_valid in JSON_ENTRIES.items():
            if not is_valid(values[name]):
                raise ValueError(f"its entry {name} has a value of the wrong type")
        values |= {name: printable(metadata[name]) for name in TEXT_ENTRIES}
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    except (KeyError, json.JSONDecodeError, UsageError) as error:
        raise ValueError(f"its entry {error} is missing or damaged") from error
    for name in ("classes", "notes"):
        values[name] = tuple(printable(text, MAX_TEXT) for text in values[name])
    for name in ("batch", "size"):
        values[name] = None if values[name] == "dynamic" else values[name]
    return Card(**values)
