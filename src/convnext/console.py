"""Where progress, warnings and tables are printed: a console on stdout or stderr."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from convnext.quantities import per_second

PLAIN_SECONDS = 10  # between two plain lines of progress, where no terminal shows a bar


def console_on(stream: IO[str]) -> Console:
    """A console on stdout or stderr; wide where a file or a pipe reads along."""
    return Console(file=stream, width=None if stream.isatty() else 120)


def table_of(title: Any, **options: Any) -> Table:
    """A table without columns yet, as every command draws them: a line below the heads.

    Args:
        title: above it; text with brackets in it as a ``rich.text.Text``.
        options: rich's.
    """
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, **options)


def say(line: str, console: Console) -> None:
    """Print a line as it is: no markup, no colours of numbers, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print warnings, a line each."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def images_shown(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far images are: a bar on a terminal, a plain line now and then elsewhere.

    Args:
        title: what is done; none for nothing shown.
        total: images in all, where that is known.

    Yields:
        What to call with the number of images done.
    """
    console, start = console_on(sys.stderr), time.perf_counter()
    last_line = start
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[state]}"))
    on_terminal = console.is_terminal and bool(title)
    with Progress(*columns, console=console, disable=not on_terminal, transient=True) as bar:
        task = bar.add_task(title, total=total, state="")

        def show(done: int) -> None:
            nonlocal last_line
            now = time.perf_counter()
            count = f"{min(done, total):,} of {total:,}" if total is not None else f"{done:,}"
            state = f"{count} images  {per_second(done / (now - start))} images/s"
            bar.update(task, completed=done, state=state)
            if title and not on_terminal and now - last_line > PLAIN_SECONDS:
                say(f"{title}: {state}", console)
                last_line = now

        yield show
