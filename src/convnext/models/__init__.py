"""Models by name, the designs between them, and what they cost. Imports torch only."""

from convnext.models.convnext import Block, ConvNeXt, ConvNeXtV2, IsotropicConvNeXt
from convnext.models.design import Design, DesignNetwork
from convnext.models.protocol import FeatureInfo, FeatureNet
from convnext.models.references import is_reference
from convnext.models.registry import create_model, list_models, model_costs
from convnext.models.roadmap import roadmap

__all__ = [
    "Block",
    "ConvNeXt",
    "ConvNeXtV2",
    "Design",
    "DesignNetwork",
    "FeatureInfo",
    "FeatureNet",
    "IsotropicConvNeXt",
    "create_model",
    "is_reference",
    "list_models",
    "model_costs",
    "roadmap",
]
