"""`convnext recipes`."""

import inspect
import sys

from tyro.conf import Positional

from convnext.cli.options import Json, print_json
from convnext.errors import unknown_name


def recipes(name: Positional[str] = "", json: Json = False) -> None:
    """List the named recipes, or show one in full.

    Args:
        name: a recipe's name, to see every field of it; all in a table unless given.
    """
    from rich.table import Table

    from convnext.console import console_on
    from convnext.training.recipes import RECIPES

    if name and name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    entries = [
        {"name": known, "contract": inspect.getdoc(recipe), "recipe": recipe("DATA").to_dict()}
        for known, recipe in RECIPES.items()
        if name in ("", known)
    ]
    if json:
        print_json(entries)
        return
    console = console_on(sys.stdout)
    table = Table(box=None, pad_edge=False, show_header=not name)
    if name:
        console.print(entries[0]["contract"], highlight=False, markup=False)
        for field, value in entries[0]["recipe"].items():
            table.add_row(field, str(value))
    else:
        table.add_column("recipe")
        for column in ("epochs", "px", "batch", "lr"):
            table.add_column(column, justify="right")
        table.add_column("what it is for")
        for entry in entries:
            values, title = entry["recipe"], entry["contract"].splitlines()[0]
            numbers = [str(values[field]) for field in ("epochs", "image_size", "batch_size")]
            table.add_row(entry["name"], *numbers, f"{values['lr']:g} at {values['lr_batch_size']}", title)
    console.print(table)
