"""What the networks cost, by name."""

from typing import Any

import torch

from convnext.errors import unknown_name
from convnext.models import create_model, list_models
from convnext.models.cost import cost


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
