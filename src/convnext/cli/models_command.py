"""`convnext models`."""

import sys

from tyro.conf import Positional

from convnext.cli.options import print_json
from convnext.errors import UsageError


def models(
    pattern: Positional[str] = "*", pretrained: bool = False, image_size: int | None = None, json: bool = False
) -> None:
    """List networks with their parameters, multiply-accumulates and activations for one image; or published weights.

    Args:
        pattern: a name or a shell-style pattern: 'convnextv2_*', 'roadmap_tiny/*', 'torchvision/resnet*'.
        pretrained: list the authors' published weights of these networks instead: data, accuracy, licence, size, and
            whether the file is on this machine.
        image_size: pixels a side of the image that is counted for; None for 224.
        json: print the list as JSON on stdout.
    """
    from convnext.console import console_on
    from convnext.models import model_costs
    from convnext.study.study_table import family_table
    from convnext.weights.published import listing, listing_table

    if pretrained and image_size is not None:
        raise UsageError("published weights have an image size of their own: leave --image-size or --pretrained out")
    rows = listing(pattern) if pretrained else model_costs(pattern, 224 if image_size is None else image_size)
    if json:
        print_json(rows)
    else:
        console = console_on(sys.stdout)
        console.print(listing_table(rows, console.width) if pretrained else family_table(rows))
