"""`convnext recipes`."""

import sys

from tyro.conf import Positional

from convnext.cli.options import print_json
from convnext.errors import unknown_name


def recipes(name: Positional[str] = "", json: bool = False) -> None:
    """List the named recipes, or show one in full.

    Args:
        name: a recipe's name, to see every field of it; all in a table unless given.
        json: print name, contract and every field of each as JSON on stdout.
    """
    from convnext.console import console_on
    from convnext.training.recipe_table import described, recipe_table, recipes_table
    from convnext.training.recipes import RECIPES

    if name and name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    chosen = {known: recipe for known, recipe in RECIPES.items() if name in ("", known)}
    if json:
        print_json([described(recipe) for recipe in chosen.values()])
    elif name:
        console_on(sys.stdout).print(described(chosen[name])["contract"], highlight=False, markup=False)
        console_on(sys.stdout).print(recipe_table(chosen[name]("DATA")))
    else:
        console_on(sys.stdout).print(recipes_table([described(recipe) for recipe in chosen.values()]))
