"""`convnext models`."""

import dataclasses
import sys
from typing import Any

from tyro.conf import Positional

from convnext.cli.options import Json, print_json
from convnext.errors import UsageError


def models(
    pattern: Positional[str] = "*", pretrained: bool = False, image_size: int | None = None, json: Json = False
) -> None:
    """List models with their parameters, multiply-accumulates and activations for one image; or published weights.

    Args:
        pattern: a name or a shell-style pattern: 'convnextv2_*', 'roadmap_tiny/*', 'torchvision/resnet*'; or a run
            folder, a weights file or VARIANT.TAG.
        pretrained: list the authors' published weights of these models instead: data, accuracy, licence, size, and
            whether the file is on this machine.
        image_size: height and width in pixels of the image that is counted for; None for 224, or the model's own.
    """
    from convnext.console import console_on
    from convnext.inference.model import resolve
    from convnext.models import model_costs
    from convnext.models.cost import cost
    from convnext.weights.names import parse_name
    from convnext.weights.published import listing, listing_table

    if pretrained and image_size is not None:
        raise UsageError("published weights have an image size of their own: leave --image-size or --pretrained out")
    name = parse_name(pattern)
    if pretrained:
        rows = listing(pattern)
    elif name.kind in ("run", "weights", "published") and (name.tag or name.path.exists()):
        model = resolve(pattern, "none")
        size = image_size or model.image_size
        rows = [{"name": model.name} | dataclasses.asdict(cost(model.module, size)) | {"image_size": size}]
    else:
        rows = model_costs(pattern, 224 if image_size is None else image_size)
    if json:
        print_json(rows)
    else:
        console = console_on(sys.stdout)
        console.print(listing_table(rows, console.width) if pretrained else cost_table(rows))


def cost_table(rows: list[dict[str, Any]]) -> Any:
    """The rows of :func:`convnext.models.model_costs` as a table."""
    from rich.table import Table

    from convnext.quantities import quantity

    columns = {"params": "params", "MACs": "macs", "activations": "activations"}
    table = Table(title=f"one image of {rows[0]['image_size']} px, 1000 classes")
    table.add_column("model")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *(quantity(row[key]) for key in columns.values()))
    return table
