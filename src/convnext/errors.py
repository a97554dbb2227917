"""Errors in the user's terms: what was needed, what arrived, what to do.

The command line prints their message alone and exits with their ``exit_status``.
"""

import difflib
from collections.abc import Iterable


class ConvNeXtError(Exception):
    """The base of every error that this package raises on purpose."""

    exit_status = 1


class UsageError(ConvNeXtError, ValueError):
    """The words were wrong: an unknown name, a value out of range, a path that is not there."""

    exit_status = 2


class RunError(ConvNeXtError, RuntimeError):
    """The work failed: a full disk, a loss that is not finite, data that vanished."""


class DivergedError(RunError):
    """The loss of a training is not finite."""


class WeightsWarning(UserWarning):
    """Something that a network's weights do not bring, such as a classifier for the wanted number of classes."""


class KernelsWarning(UserWarning):
    """A fast form that this machine cannot have: the same is computed, but takes longer."""


class LicenceWarning(UserWarning):
    """Weights under a licence that forbids commercial use."""


def printable(text: str, length: int = 100) -> str:
    """Words out of a stranger's file as they can be shown: in one line, no longer than ``length``, without what a
    terminal would obey."""
    text = text if len(text) <= length else text[:length] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def reason(error: BaseException) -> str:
    """What an error of another library says, in a few words."""
    name, lines = type(error).__name__, str(error).splitlines()
    text = f"{name}: {lines[0]}" if lines and isinstance(error, KeyError) else (lines or [name])[0]
    return printable(text.partition(". ")[0], 200)


def unknown_name(kind: str, name: str, known: Iterable[str], remedy: str = "") -> UsageError:
    """The error for a ``name`` that is not among the ``known`` ones: it lists the nearest, then a ``remedy``."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known[:8]
    more = "" if len(nearest) == len(known) else ", ..."
    return UsageError(f"unknown {kind} {name!r}: did you mean {', '.join(nearest)}{more}? {remedy}".rstrip())
