"""Predictions written for people and for programs: tables with bars, lines, CSV, JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from convnext.errors import UsageError
from convnext.files import replacing
from convnext.inference.classifier import Prediction

BAR_WIDTH = 30  # columns

Write = Callable[[str], Any]
Add = Callable[[Prediction], None]


@contextmanager
def csv_writer(write: Write, top: int) -> Iterator[Add]:
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
def json_writer(write: Write, top: int = 1) -> Iterator[Add]:  # noqa: ARG001
    """Write predictions as one JSON list, one entry per line."""
    between = "[\n"

    def add(prediction: Prediction) -> None:
        nonlocal between
        write(between + json.dumps(prediction.to_dict(), allow_nan=False))
        between = ",\n"

    yield add
    write("[]\n" if between == "[\n" else "\n]\n")


@contextmanager
def json_lines_writer(write: Write, top: int = 1) -> Iterator[Add]:  # noqa: ARG001
    """Write predictions as JSON, one document per line."""
    yield lambda prediction: write(json.dumps(prediction.to_dict(), allow_nan=False) + "\n")


WRITERS: dict[str, Callable[[Write, int], AbstractContextManager[Add]]] = {
    ".csv": csv_writer,
    ".json": json_writer,
    ".jsonl": json_lines_writer,
}


def check_out(path: Path) -> None:
    """Refuse an output file of an unknown format."""
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"--out {path} has no known format: end it in one of {', '.join(WRITERS)}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file in it")


@contextmanager
def predictions_file(path: Path, top: int) -> Iterator[Add]:
    """Write predictions one by one to a file, in the format of its suffix, whole or not at all.

    Args:
        path: the file.
        top: classes that are named for each image.
    """
    with replacing(path) as write_bytes:

        def write(text: str) -> None:
            write_bytes(text.encode(errors="surrogateescape"))  # a file name that is not UTF-8, as its bytes

        with WRITERS[path.suffix.lower()](write, top) as add:
            yield add


def line(prediction: Prediction) -> str:
    """A prediction in one line: the file, then classes with their probabilities."""
    found = ", ".join(f"{label} {percent(probability)}" for label, probability in prediction.top)
    return printable(f"{prediction.path}: {found}")


def table(prediction: Prediction) -> Group:
    """A prediction for a terminal: the file, and one bar per class."""
    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True, overflow="ellipsis", max_width=40)
    for label, probability in prediction.top:
        bar = Bar(1, 0, probability, width=BAR_WIDTH, color="green")
        rows.add_row(Text(f"  {printable(label)}"), bar, Text(percent(probability).rjust(7)))
    return Group(Text(printable(str(prediction.path)), style="bold"), rows)


def percent(probability: float) -> str:
    """A probability as a percentage."""
    return f"{100 * probability:.1f} %"


def printable(text: str) -> str:
    """A text that every terminal takes: bytes of a file name that are not UTF-8 are escaped."""
    return text.encode(errors="backslashreplace").decode()
