"""Predictions for people and for programs: tables with bars, lines, CSV, JSON; and the images that words name."""

import csv
import glob
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from convnext.data.folder import image_files
from convnext.errors import UsageError
from convnext.files import replacing
from convnext.inference.classifier import Prediction
from convnext.inference.inputs import is_address, is_pattern

BAR_WIDTH = 30

Write = Callable[[str], Any]
Add = Callable[[Prediction], None]


def named_images(words: Iterable[str], standard_input: IO[str]) -> Iterator[str]:
    """The paths that words name: a file is itself, a folder all images below it, a pattern the files that match it.

    ``-`` is a list on standard input, a path a line. What names nothing comes as it is, to be answered with why.
    """
    for word in words:
        if word == "-":
            yield from (line.rstrip("\r\n") for line in standard_input if line.strip())
        elif is_pattern(word) and not is_address(word) and not Path(word).exists():
            matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207  # pathlib's takes no absolute pattern
            yield from (path for match in matches or [word] for path in files_of(match))
        else:
            yield from files_of(word)


def files_of(path: str) -> list[str]:
    """A folder's images, or the path itself."""
    images = image_files(Path(path)) if Path(path).is_dir() else []
    return [str(image) for image in images] or [path]


@contextmanager
def csv_answers(write: Write, top: int) -> Iterator[Add]:
    """Write predictions as CSV: path, label, probability, error, then the next classes ``label2``, ``probability2``."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")

    def add_row(row: list[Any]) -> None:
        rows.writerow(row)
        write(text.getvalue())
        text.seek(0)
        text.truncate()

    def add(prediction: Prediction) -> None:
        others = [cell for candidate in prediction.top[1:] for cell in candidate]
        add_row([prediction.path, prediction.label, prediction.probability, prediction.error, *others])

    others = [f"{name}{place}" for place in range(2, top + 1) for name in ("label", "probability")]
    add_row(["path", "label", "probability", "error", *others])
    yield add


@contextmanager
def json_answers(write: Write, top: int = 1) -> Iterator[Add]:  # noqa: ARG001
    """Write predictions as one JSON list, an entry a line."""
    between = "[\n"

    def add(prediction: Prediction) -> None:
        nonlocal between
        write(between + json.dumps(prediction.to_dict(), allow_nan=False))
        between = ",\n"

    yield add
    write("[]\n" if between == "[\n" else "\n]\n")


@contextmanager
def json_lines_answers(write: Write, top: int = 1) -> Iterator[Add]:  # noqa: ARG001
    """Write predictions as JSON, a document a line."""
    yield lambda prediction: write(json.dumps(prediction.to_dict(), allow_nan=False) + "\n")


FORMATS: dict[str, Callable[[Write, int], AbstractContextManager[Add]]] = {
    ".csv": csv_answers,
    ".json": json_answers,
    ".jsonl": json_lines_answers,
}


def check_out(path: Path) -> None:
    """Refuse a file of no known format.

    Raises:
        UsageError: its name ends otherwise, or it is a folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {path} says no format: end it in one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file in it")


@contextmanager
def answers_file(path: Path, top: int) -> Iterator[Add]:
    """Write predictions one by one to a file, in the format of its suffix, whole or not at all.

    Args:
        path: its name.
        top: classes that are named for each image.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    with replacing(path) as write_bytes:

        def write(text: str) -> None:
            write_bytes(text.encode(errors="surrogateescape"))  # a file's name that is no UTF-8, as the bytes it is

        with FORMATS[path.suffix.lower()](write, top) as add:
            yield add


def line(prediction: Prediction) -> str:
    """A prediction in a line: the file, then classes with their probabilities."""
    found = ", ".join(f"{label} {percent(probability)}" for label, probability in prediction.top)
    return printable(f"{prediction.path}: {found}")


def table(prediction: Prediction) -> Group:
    """A prediction for a terminal: the file, and a bar a class."""
    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True, overflow="ellipsis", max_width=40)
    for label, probability in prediction.top:
        bar = Bar(1, 0, probability, width=BAR_WIDTH, color="green")
        rows.add_row(Text(f"  {printable(label)}"), bar, Text(percent(probability).rjust(7)))
    return Group(Text(printable(str(prediction.path)), style="bold"), rows)


def percent(probability: float) -> str:
    """A probability as people read it."""
    return f"{100 * probability:.1f} %"


def printable(text: str) -> str:
    """A text that every terminal takes: bytes of a file's name that are no UTF-8 are written as such."""
    return text.encode(errors="backslashreplace").decode()
