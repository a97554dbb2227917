"""`convnext models`."""

import sys

from tyro.conf import Positional

from convnext.cli.speech import print_json


def models(pattern: Positional[str] = "*", image_size: int = 224, json: bool = False) -> None:
    """List networks with their parameters, multiply-accumulates and activations for one image.

    Args:
        pattern: a name or a shell-style pattern: 'convnextv2_*', 'roadmap_tiny/*', 'torchvision/resnet*'.
        image_size: pixels a side.
        json: print the list as JSON on stdout.
    """
    from convnext.console import console_on
    from convnext.models.family import family
    from convnext.study.table import family_table

    rows = family(pattern, image_size)
    if json:
        print_json(rows)
    else:
        console_on(sys.stdout).print(family_table(rows))
