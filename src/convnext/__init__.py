"""From a ResNet to a ConvNeXt, one measured step at a time; and from there to a trained, shipped network.

Names load when they are first used: ``import convnext`` alone does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.models import Design, create_model, list_models, roadmap
    from convnext.models.cost import Cost, cost

__version__ = "0.1.0"

_HOMES = {
    "Cost": "convnext.models.cost",
    "Design": "convnext.models",
    "cost": "convnext.models.cost",
    "create_model": "convnext.models",
    "list_models": "convnext.models",
    "roadmap": "convnext.models",
}

__all__ = ["Cost", "Design", "cost", "create_model", "list_models", "roadmap"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
