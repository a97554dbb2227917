"""The packages that a format needs, which an installation of this one need not have; and their remarks, kept back."""

import contextlib
import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convnext.errors import UsageError


def needed(package: str, extra: str) -> Any:
    """A package of an extra, imported.

    Raises:
        UsageError: it is not installed, or something that it needs itself is not.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing(error.name or package, extra) from error


def check_installed(package: str, extra: str) -> None:
    """Refuse to begin without a package of an extra; it is not imported yet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module without a specification
        found = None
    if found is None:
        raise missing(package, extra)


def missing(package: str, extra: str) -> UsageError:
    """The error for a package that is not installed."""
    return UsageError(f"{package} is not installed, which this format needs: pip install 'convnext[{extra}]'")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep libraries' remarks and progress, which are about themselves, from the user; stdout is for results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
