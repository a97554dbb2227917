"""The networks as a table of costs."""

from typing import Any

import torch
from rich.table import Table

from convnext.errors import unknown_name
from convnext.models import create_model, list_models
from convnext.models.cost import cost
from convnext.quantities import quantity


def family(pattern: str = "*", image_size: int = 224) -> list[dict[str, Any]]:
    """Name, parameters, multiply-accumulates and activations of every network that matches ``pattern``.

    Args:
        pattern: as for :func:`convnext.list_models`.
        image_size: pixels a side.

    Raises:
        UsageError: nothing matches, or the images are too small for a network.
    """
    names = list_models(pattern)
    if not names:
        library, slash, _ = pattern.partition("/")
        raise unknown_name("model", pattern, list_models(f"{library}/*" if slash else "*"))
    rows = []
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        counted = cost(model, image_size)
        rows.append(
            {
                "name": name,
                "params": counted.params,
                "macs": counted.macs,
                "activations": counted.activations,
                "image_size": image_size,
            }
        )
    return rows


def family_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of :func:`family` for a terminal."""
    table = Table(title=f"one image of {rows[0]['image_size']} px, 1000 classes")
    table.add_column("model")
    for name in ("params", "MACs", "activations"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *(quantity(row[name]) for name in ("params", "macs", "activations")))
    return table
