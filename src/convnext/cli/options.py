"""Option types that commands share, and how commands print: results on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from convnext.errors import RunError, UsageError

NAMES = (
    "a run folder; an exported file; a weights file or folder of any layout; VARIANT.TAG for weights of the ConvNeXt "
    "authors (convnext_tiny.in22k_in1k); torchvision/NAME, timm/NAME"
)
ModelName = Annotated[str, Positional, arg(metavar="MODEL", help=f"{NAMES} or VARIANT for their default weights.")]
ModelNames = Annotated[
    tuple[str, ...],
    Positional,
    arg(metavar="MODEL...", help=f"{NAMES}, or what `convnext models` lists, with random weights."),
]
ImageNames = Annotated[
    tuple[str, ...],
    Positional,
    arg(
        metavar="IMAGE...",
        help="files, folders (all images below them), patterns in quotes ('photos/**/*.jpg'), or - for a list on "
        "standard input, one path per line.",
    ),
]
Device = Annotated[
    str, arg(help="auto (a GPU where there is one), cpu, cuda, mps or xpu; an exported file runs on the CPU.")
]
Trust = Annotated[bool, arg(help="open a .pt2 file that was not exported here, though it can run any code.")]
Json = Annotated[bool, arg(help="print one JSON document on stdout.")]
Top = Annotated[int, arg(help="classes to name for each image.")]


def print_json(document: Any) -> None:
    """Print the one document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def show(table: Any) -> None:
    """Print a table on stdout."""
    from convnext.console import console_on

    console_on(sys.stdout).print(table)


def note(text: str) -> None:
    """Print a message on stderr."""
    print(text, file=sys.stderr)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on stderr, one per line."""
    from convnext.console import console_on, say_warnings

    say_warnings(warnings, console_on(sys.stderr))


def reports_usage() -> bool:
    """True if this process reports usage errors: of the ranks of torchrun, one per machine does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def interruptible(folder: Path | None) -> Iterator[None]:
    """Add to the message of Ctrl-C what it leaves behind."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = f" What is finished is kept in {folder}: the same command resumes there." if folder else ""
        raise KeyboardInterrupt((str(interrupt) or "Interrupted.") + kept) from None


def report_unreadable(what: str, errors: list[str], count: int) -> None:
    """Name the images that could not be read, if there are any.

    Raises:
        RunError: there are.
    """
    warn(f"{what} for {error}" for error in errors)
    if errors:
        raise RunError(f"{len(errors):,} of {count:,} images could not be read, they are named above")


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def whole_numbers(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        UsageError: one is not.
    """
    try:
        return [int(word) for word in names(text)]
    except ValueError:
        raise UsageError(f"{option} is {text!r}, needs whole numbers separated by commas: 8,16,32") from None
