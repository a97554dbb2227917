"""From a ResNet to a ConvNeXt, one measured step at a time; and from there to a trained, shipped network.

Names load when they are first used: ``import convnext`` alone does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from convnext.environment import __version__

if TYPE_CHECKING:
    from convnext.acceleration.accelerate import TrainingReport, accelerate, acceleration_report
    from convnext.acceleration.search import Optimized
    from convnext.acceleration.swapping import restore
    from convnext.errors import ConvNeXtError, KernelsWarning, LicenceWarning, RunError, UsageError, WeightsWarning
    from convnext.evaluation.evaluating import Evaluation, evaluate
    from convnext.explanation.explanations import Explanation, explain
    from convnext.exporting.export_job import ExportResult, export
    from convnext.inference.classifier import Classifier, Prediction, load
    from convnext.inference.model import Model
    from convnext.models import Block, ConvNeXt, Design, list_models, roadmap
    from convnext.models.cost import Cost, cost
    from convnext.training.recipe import Recipe
    from convnext.training.recipe_choice import recipe_for
    from convnext.training.run import Run, train
    from convnext.weights.loading import Loaded, load_weights
    from convnext.weights.pretrained import create_model
    from convnext.weights.saving import Saved, save_weights

__all__ = [
    "Block",
    "Classifier",
    "ConvNeXt",
    "ConvNeXtError",
    "Cost",
    "Design",
    "Evaluation",
    "Explanation",
    "ExportResult",
    "KernelsWarning",
    "LicenceWarning",
    "Loaded",
    "Model",
    "Optimized",
    "Prediction",
    "Recipe",
    "Run",
    "RunError",
    "Saved",
    "TrainingReport",
    "UsageError",
    "WeightsWarning",
    "__version__",
    "accelerate",
    "acceleration_report",
    "cost",
    "create_model",
    "evaluate",
    "explain",
    "export",
    "list_models",
    "load",
    "load_weights",
    "recipe_for",
    "restore",
    "roadmap",
    "save_weights",
    "train",
]

_HOMES = {
    "convnext.inference.classifier": ("Classifier", "Prediction", "load"),
    "convnext.inference.model": ("Model",),
    "convnext.evaluation.evaluating": ("Evaluation", "evaluate"),
    "convnext.exporting.export_job": ("ExportResult", "export"),
    "convnext.explanation.explanations": ("Explanation", "explain"),
    "convnext.errors": (
        "ConvNeXtError",
        "KernelsWarning",
        "LicenceWarning",
        "RunError",
        "UsageError",
        "WeightsWarning",
    ),
    "convnext.models": ("Block", "ConvNeXt", "Design", "list_models", "roadmap"),
    "convnext.models.cost": ("Cost", "cost"),
    "convnext.acceleration.accelerate": ("TrainingReport", "accelerate", "acceleration_report"),
    "convnext.acceleration.search": ("Optimized",),
    "convnext.acceleration.swapping": ("restore",),
    "convnext.training.recipe": ("Recipe",),
    "convnext.training.recipe_choice": ("recipe_for",),
    "convnext.training.run": ("Run", "train"),
    "convnext.weights.pretrained": ("create_model",),
    "convnext.weights.loading": ("Loaded", "load_weights"),
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
