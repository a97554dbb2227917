"""Where progress, warnings and tables are printed: a console on stdout or stderr."""

from collections.abc import Iterable
from typing import IO

from rich.console import Console

PLAIN_SECONDS = 10  # between two plain lines of progress, where no terminal shows a bar


def console_on(stream: IO[str]) -> Console:
    """A console on stdout or stderr; wide where a file or a pipe reads along."""
    return Console(file=stream, width=None if stream.isatty() else 120)


def say(line: str, console: Console) -> None:
    """Print a line as it is: no markup, no colours of numbers, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print warnings, a line each."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
