"""The named recipes as people read them: a table of all, or every field of one."""

import inspect
from collections.abc import Callable
from typing import Any

from rich.table import Table

from convnext.training.recipe import Recipe

DATA = "DATA"  # what the recipes are shown for


def described(recipe: Callable[..., Recipe]) -> dict[str, Any]:
    """A named recipe: its name, its contract in words, and the values of every field for some data."""
    values = recipe(DATA).to_dict()
    return {"name": recipe.__name__, "contract": inspect.getdoc(recipe), "recipe": values}


def recipes_table(recipes: list[dict[str, Any]]) -> Table:
    """All recipes, a line each."""
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("recipe", "left"),
        ("epochs", "right"),
        ("px", "right"),
        ("batch", "right"),
        ("lr", "right"),
    ):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("what it is for")
    for entry in recipes:
        values = entry["recipe"]
        rate = f"{values['lr']:g} at {values['lr_batch_size']}"
        numbers = [str(values[name]) for name in ("epochs", "image_size", "batch_size")]
        table.add_row(entry["name"], *numbers, rate, entry["contract"].splitlines()[0])
    return table


def recipe_table(recipe: Recipe) -> Table:
    """One recipe's fields."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in recipe.to_dict().items():
        table.add_row(name, str(value))
    return table
