"""Everything that is printed: consoles on stdout or stderr, tables, warnings, and the one progress display."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from convnext.quantities import per_second

PLAIN_SECONDS = 10  # between two plain lines of progress, where no terminal shows a bar
REFRESH_SECONDS = 0.1  # between two refreshes of the bar on a terminal
BAR_WIDTH = 16  # columns


def console_on(stream: IO[str]) -> Console:
    """A console on stdout or stderr; 120 columns wide where the stream is a file or a pipe."""
    return Console(file=stream, width=None if stream.isatty() else 120)


def table_of(title: Any, **options: Any) -> Table:
    """An empty table in the style of all commands: one rule below the header.

    Args:
        title: printed above it; a ``rich.text.Text`` where it may contain brackets.
        options: arguments of ``rich.table.Table``.
    """
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, **options)


def say(line: str, console: Console) -> None:
    """Print a line verbatim: no markup, no highlighting, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print warnings, one per line."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


class ProgressDisplay:
    """The progress of a job on stderr: a live bar on a terminal, a plain line every ``PLAIN_SECONDS`` elsewhere.

    A context manager: the bar is live inside the block.

    Args:
        title: name of the job; "" for no progress, only notes and warnings.
        console: where to print; stderr by default.
        transient: remove the bar from the terminal when the block ends.
    """

    def __init__(self, title: str, console: Console | None = None, transient: bool = True) -> None:
        self.title = title
        self.console = console or console_on(sys.stderr)
        self.is_live = self.console.is_terminal and bool(title)
        # Stdout is captured only where it is the same terminal: rich would send a redirected file's lines to stderr.
        redirect = sys.stdout.isatty()
        self.live = Live(console=self.console, auto_refresh=False, transient=transient, redirect_stdout=redirect)
        self.updated = 0.0 if self.is_live else time.perf_counter()

    def __enter__(self) -> Self:
        if self.is_live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_live:
            self.live.stop()

    @property
    def state_width(self) -> int | None:
        """Columns beside the bar; None where lines may have any length."""
        return self.console.width - BAR_WIDTH - 1 if self.is_live else None

    def update(
        self,
        state: str,
        completed: float | None = None,
        heading: Callable[[], RenderableType] | None = None,
        is_last: bool = False,
    ) -> None:
        """Show the state of the job, if the last update is long enough ago.

        Args:
            state: one line.
            completed: from 0 to 1; None where the total is not known.
            heading: renders what stands above the bar on a terminal; the title by default.
            is_last: show it in any case.
        """
        now = time.perf_counter()
        interval = REFRESH_SECONDS if self.is_live else PLAIN_SECONDS
        if not self.title or (now - self.updated < interval and not is_last):
            return
        self.updated = now
        if not self.is_live:
            say(f"{self.title}: {state}", self.console)
            return
        line = Table.grid(padding=(0, 1, 0, 0))
        bar = ProgressBar(total=1.0, completed=completed or 0.0, width=BAR_WIDTH, pulse=completed is None)
        line.add_row(bar, Text(state))
        self.live.update(Group(heading() if heading else Text(self.title), line), refresh=True)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        say(line, self.console)

    def warn(self, warnings: Iterable[str]) -> None:
        """Print warnings above the bar."""
        say_warnings(warnings, self.console)


@contextmanager
def image_progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Display the progress over images.

    Args:
        title: name of the job; "" for no display.
        total: number of images; None where it is not known.

    Yields:
        A function to call with the number of images done.
    """
    start = time.perf_counter()
    with ProgressDisplay(title) as display:

        def show(done: int) -> None:
            count = f"{done:,}" if total is None else f"{min(done, total):,} of {total:,}"
            rate = per_second(done / (time.perf_counter() - start))
            display.update(f"{count} images  {rate} images/s", done / total if total else None)

        yield show


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings, logs and progress of other libraries; stdout is for results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
