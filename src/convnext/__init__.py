"""From a ResNet to a ConvNeXt, one measured step at a time; and from there to a trained, shipped network.

Names load when they are first used: ``import convnext`` alone does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.deploy.classifier import Classifier, Prediction, load
    from convnext.deploy.evaluate import Evaluation, evaluate
    from convnext.deploy.explain.explanations import Explanation, explain
    from convnext.errors import ConvNeXtError, KernelsWarning, LicenceWarning, RunError, UsageError, WeightsWarning
    from convnext.models import Design, list_models, roadmap
    from convnext.models.cost import Cost, cost
    from convnext.models.fusion import Fusion, fuse, unfuse
    from convnext.speed.optimize import Optimized, optimize
    from convnext.training.choice import recipe_for
    from convnext.training.recipe import Recipe
    from convnext.training.run import Run, train
    from convnext.weights.create import create_model
    from convnext.weights.load import Loaded, load_weights
    from convnext.weights.saving import Saved, save_weights

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "ConvNeXtError",
    "Cost",
    "Design",
    "Evaluation",
    "Explanation",
    "Fusion",
    "KernelsWarning",
    "LicenceWarning",
    "Loaded",
    "Optimized",
    "Prediction",
    "Recipe",
    "Run",
    "RunError",
    "Saved",
    "UsageError",
    "WeightsWarning",
    "cost",
    "create_model",
    "evaluate",
    "explain",
    "fuse",
    "list_models",
    "load",
    "load_weights",
    "optimize",
    "recipe_for",
    "roadmap",
    "save_weights",
    "train",
    "unfuse",
]

_HOMES = {
    "convnext.deploy.classifier": ("Classifier", "Prediction", "load"),
    "convnext.deploy.evaluate": ("Evaluation", "evaluate"),
    "convnext.deploy.explain.explanations": ("Explanation", "explain"),
    "convnext.errors": (
        "ConvNeXtError",
        "KernelsWarning",
        "LicenceWarning",
        "RunError",
        "UsageError",
        "WeightsWarning",
    ),
    "convnext.models": ("Design", "list_models", "roadmap"),
    "convnext.models.cost": ("Cost", "cost"),
    "convnext.models.fusion": ("Fusion", "fuse", "unfuse"),
    "convnext.speed.optimize": ("Optimized", "optimize"),
    "convnext.training.recipe": ("Recipe",),
    "convnext.training.choice": ("recipe_for",),
    "convnext.training.run": ("Run", "train"),
    "convnext.weights.create": ("create_model",),
    "convnext.weights.load": ("Loaded", "load_weights"),
    "convnext.weights.saving": ("Saved", "save_weights"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'convnext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
