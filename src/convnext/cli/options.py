"""How the commands speak: results on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convnext.errors import UsageError


def print_json(document: Any) -> None:
    """The one document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def note(text: str) -> None:
    """A word to the user, on stderr."""
    print(text, file=sys.stderr)


def speaks() -> bool:
    """Whether this process says what is wrong with the words: of those that torchrun started, one a machine does."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def interruptible(folder: Path | None) -> Iterator[None]:
    """Say what Ctrl-C leaves behind."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = f" What is finished is kept in {folder}: the same command goes on from there." if folder else ""
        raise KeyboardInterrupt((str(interrupt) or "Interrupted.") + kept) from None


def names(words: str) -> list[str]:
    """Names separated by commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def whole_numbers(what: str, words: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        UsageError: a word is none.
    """
    try:
        return [int(word) for word in names(words)]
    except ValueError:
        raise UsageError(f"{what} is {words!r}, needs whole numbers separated by commas: 8,16,32") from None
