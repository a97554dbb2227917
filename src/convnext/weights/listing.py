"""The published checkpoints as people read them, and as data."""

from fnmatch import fnmatchcase
from typing import Any

from rich.table import Table

from convnext.errors import unknown_name
from convnext.weights.hub import at_hand
from convnext.weights.published import DATA, ROWS

WIDE = 110  # characters a line that have room for what the tags mean in every row


def listing(pattern: str = "*") -> list[dict[str, Any]]:
    """Everything that is known of the published checkpoints of the networks that match a shell-style ``pattern``.

    ``bytes`` are those of the tensors; the files are a little larger. ``at_hand`` is the file's path on this machine.

    Raises:
        UsageError: nothing matches.
    """
    rows = [row for row in ROWS if fnmatchcase(row.variant, pattern)]
    if not rows:
        raise unknown_name("model with published weights", pattern, dict.fromkeys(row.variant for row in ROWS))
    found = [at_hand(row.variant, row.tag) for row in rows]
    return [
        {
            "name": row.variant,
            "tag": row.tag,
            "data": row.data,
            "image_size": row.image_size,
            "classes": row.classes,
            "paper_top1": row.top1,
            "licence": row.licence,
            "bytes": row.tensor_bytes,
            "file": row.file,
            "address": row.address,
            "hub_repository": row.hub,
            "at_hand": str(path) if path else None,
        }
        for row, path in zip(rows, found, strict=True)
    ]


def listing_table(rows: list[dict[str, Any]], width: int) -> Table:
    """The rows of :func:`listing` for a terminal of ``width`` characters."""
    meanings = "\n".join(f"{tag}: {data}" for tag, data in DATA.items())
    said = "top-1 as the papers state it, ImageNet-1K; MB of the tensors, the file is a little larger"
    wide = width >= WIDE
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=said if wide else f"{said}\n{meanings}",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("tag", no_wrap=True)
    if wide:
        table.add_column("data", no_wrap=True)
    for name in ("px", "paper's\ntop-1 %", "MB"):
        table.add_column(name, justify="right")
    table.add_column("licence", no_wrap=True)
    table.add_column("here")
    for row in rows:
        top1 = "-" if row["paper_top1"] is None else f"{row['paper_top1']:.1f}"
        figures = (str(row["image_size"]), top1, f"{row['bytes'] / 1e6:,.0f}")
        data = (row["data"],) if wide else ()
        table.add_row(row["name"], row["tag"], *data, *figures, row["licence"], "yes" if row["at_hand"] else "no")
    return table
