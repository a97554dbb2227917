"""The folder, the tables and the texts that all explanations share."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from convnext.console import table_of
from convnext.inference.output import printable
from convnext.plotting import shortened


def default_folder(name: str) -> Path:
    """``RUN/explain`` for a run's folder; ``runs/explain-NAME`` for weights and for networks by name."""
    path = Path(name)
    if (path / "recipe.json").exists():
        return path / "explain"
    return Path("runs") / f"explain-{name.strip('/').replace('/', '-')}"


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> Table:
    """A table for a terminal, of which the first ``words`` columns are words and the others figures."""
    view = table_of(title)
    for i, name in enumerate(columns):
        view.add_column(name, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        view.add_row(*map(Text, row))
    return view


def shown(text: str, letters: int) -> str:
    """A text of at most so many letters that every figure takes: bytes that are no UTF-8 are written as such."""
    return shortened(printable(text), letters)
