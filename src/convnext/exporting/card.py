"""What an exported file says of itself: labels, preprocessing, precision, shapes, where it comes from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convnext.data.preprocessing import Preprocessing
from convnext.environment import __version__, installed_version
from convnext.errors import UsageError, printable

MARK = "convnext"  # the entry that every file of this package has: the version that wrote it
LONGEST = 10_000_000  # characters of an entry; the names of 22,000 classes take a hundredth of it
LONGEST_WORDS = 1000  # characters of a note or a class's name
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "torchao")


@dataclass(frozen=True)
class Card:
    """What stands in a file's metadata, as words by name.

    Attributes:
        format: onnx, torch, aoti or openvino.
        precision: fp32, bf16 or int8.
        model: the network's name.
        classes: in the order of the outputs; none for features.
        preprocessing: how pictures are prepared for the network.
        with_preprocessing: whether the graph takes pictures and gives probabilities, not images and logits.
        batch: images that it takes at a time; None for any number.
        size: pixels a side that it takes; None for any from ``smallest`` on.
        smallest: pixels a side of the smallest images that the network takes.
        macs: multiply-accumulates of one image of the preprocessing's size.
        notes: what should be said to who uses it, such as a licence.
        data: what tells the images that were held out in training from others; empty where that is not known.
        versions: of what it was made with.
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
    def input(self) -> str:
        """The graph's input, in words."""
        count, size = self.batch or "N", (f"{self.size}, {self.size}" if self.size else "H, W")
        side = self.preprocessing.image_size
        if self.with_preprocessing:
            return (
                f"pictures: uint8 ({count}, {size}, 3), RGB, 0 to 255, resized and cut as preprocessing says"
                f" ({side} x {side})"
            )
        return (
            f"images: float32 ({count}, {self.channels}, {size}), {'RGB' if self.channels == 3 else 'grey'}, 0 to 1, "
            "minus preprocessing's mean, divided by its std"
        )

    @property
    def output(self) -> str:
        """The graph's output, in words."""
        count = self.batch or "N"
        if not self.classes:
            return f"features: float32 ({count}, channels)"
        name = "probabilities" if self.with_preprocessing else "logits"
        return f"{name}: float32 ({count}, {len(self.classes)})"

    @property
    def channels(self) -> int:
        """Channels of the network's images."""
        return self.preprocessing.channels

    @property
    def input_name(self) -> str:
        """What the graph calls its input."""
        return self.input.partition(":")[0]

    @property
    def output_name(self) -> str:
        """What the graph calls its output."""
        return self.output.partition(":")[0]

    def to_metadata(self) -> dict[str, str]:
        """Words by name, JSON where they are more than one: what every format can hold."""
        return {
            MARK: __version__,
            "format": self.format,
            "precision": self.precision,
            "model": self.model,
            "classes": json.dumps(self.classes),
            "preprocessing": json.dumps(self.preprocessing.to_dict()),
            "input": self.input,
            "output": self.output,
            "with_preprocessing": json.dumps(self.with_preprocessing),
            "batch": json.dumps(self.batch or "dynamic"),
            "size": json.dumps(self.size or "dynamic"),
            "smallest": json.dumps(self.smallest),
            "macs": json.dumps(self.macs),
            "notes": json.dumps(self.notes),
            "data": json.dumps(dict(self.data)),
            "versions": json.dumps(dict(self.versions)),
        }


def versions() -> dict[str, str]:
    """The versions of what files are made with, as far as it is installed."""
    return {name: version for name in PACKAGES if (version := installed_version(name))}


def read_card(metadata: Mapping[str, str]) -> Card | None:
    """What a file's metadata says; None where this package did not write it.

    Raises:
        ValueError: it did, but an entry is missing or not as it writes it.
    """
    if MARK not in metadata:
        return None
    long = [name for name, text in metadata.items() if len(text) > LONGEST]
    if long:
        raise ValueError(f"its entry {long[0]} is longer than any that is written")
    try:
        values = {name: json.loads(metadata[name]) for name in JSON}
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        classes, notes = values["classes"], values["notes"]
        numbers = [values["smallest"], values["macs"]]
        shapes = [None if value == "dynamic" else value for value in (values["batch"], values["size"])]
        words = all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in (classes, notes)
        )
        whole = all(type(number) is int and number >= 0 for number in numbers)
        counts = all(value is None or (type(value) is int and value > 0) for value in shapes)
        documents = isinstance(values["data"], dict) and isinstance(values["versions"], dict)
        if not (words and whole and counts and documents and isinstance(values["with_preprocessing"], bool)):
            raise ValueError("an entry is of another kind than is written")
        return Card(
            printable(metadata["format"]),
            printable(metadata["precision"]),
            printable(metadata["model"]),
            tuple(printable(name, LONGEST_WORDS) for name in classes),
            preprocessing,
            values["with_preprocessing"],
            shapes[0],
            shapes[1],
            numbers[0],
            numbers[1],
            tuple(printable(note, LONGEST_WORDS) for note in notes),
            values["data"],
            values["versions"],
        )
    except (KeyError, json.JSONDecodeError, UsageError) as error:
        raise ValueError(f"its entry {error} is missing or damaged") from error


JSON = (
    "classes",
    "preprocessing",
    "with_preprocessing",
    "batch",
    "size",
    "smallest",
    "macs",
    "notes",
    "data",
    "versions",
)
