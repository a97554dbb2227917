"""What a look inside a network leaves for a reader, and where."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from convnext.console import table_of
from convnext.evaluation.evaluation_figures import shortened
from convnext.explanation.networks import is_built
from convnext.inference.output import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def default_folder(name: str) -> Path:
    """``RUN/explain`` for a run's folder; ``runs/explain-NAME`` for weights and for networks by name."""
    path = Path(name)
    if not is_built(name) and (path / "recipe.json").exists():
        return path / "explain"
    return Path("runs") / f"explain-{name.strip('/').replace('/', '-')}"


class Found(Protocol):
    """What a look inside a network found.

    Attributes:
        file: the figure's name, without suffix.
        notes: what should be said aloud.
    """

    file: str

    @property
    def notes(self) -> tuple[str, ...]: ...

    def to_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        ...

    def table(self) -> RenderableType:
        """What is printed."""
        ...

    def draw(self) -> "Figure":
        """The figure."""
        ...


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
