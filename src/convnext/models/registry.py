"""Models by name: the ConvNeXt family, every step of the roadmap, and references from torchvision and timm."""

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from convnext.errors import UsageError, unknown_name
from convnext.models.convnext import VARIANTS
from convnext.models.cost import cost
from convnext.models.design import Design, DesignNetwork
from convnext.models.protocol import FeatureNet, Network
from convnext.models.references import create_reference, is_reference, list_references
from convnext.models.roadmap import REGIMES, roadmap

DESIGN_FIELDS = tuple(field.name for field in dataclasses.fields(Design))


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` knows and that match a shell-style ``pattern``, sorted.

    References are listed for patterns that begin with their library: ``torchvision/*``, ``timm/resnet*``.
    """
    library = pattern.partition("/")[0]
    names = list_references(library) if is_reference(pattern) else [*VARIANTS, *roadmap_designs()]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def create_model(
    name: str | Design, *, features_only: bool = False, out_indices: Sequence[int] | int | None = None, **options: Any
) -> nn.Module:
    """Build a model with freshly initialised weights, in training mode.

    Args:
        name: a name of :func:`list_models`, such as ``convnext_tiny``, ``roadmap_tiny/patchify_stem`` or
            ``torchvision/swin_t``; or a :class:`Design`.
        features_only: build a backbone, whose output is a list of feature maps: see :class:`FeatureNet`.
        out_indices: the feature maps of a backbone; None for all four.
        options: arguments of the model's constructor: ``in_chans`` (3), ``num_classes`` (1000; 0 for features),
            ``drop_path_rate``, ``layer_scale_init_value``, ``head_init_scale``, ``output_stride`` (32, or 16 or 8 by
            dilation), and for the family those of :class:`ConvNeXt`. Steps of the roadmap take every field of
            :class:`Design` as well. References take what :func:`create_reference` says.

    Returns:
        A module from images (N, in_chans, H, W) to logits (N, num_classes), or to feature maps.

    Raises:
        UsageError: the name is unknown (the nearest are listed), or the model does not take an option.
    """
    if isinstance(name, str) and is_reference(name):
        return create_reference(name, features_only=features_only, out_indices=out_indices, **options)
    if isinstance(name, Design):
        model = create_from_design("this Design", name, options)
    elif name in VARIANTS:
        check_known(name, options, keyword_options(VARIANTS[name]))
        model = cast("Network", VARIANTS[name](**options))
    else:
        designs = roadmap_designs()
        if name not in designs:
            raise unknown_name("model", name, [*VARIANTS, *designs])
        model = create_from_design(name, designs[name], options)
    return FeatureNet(model, out_indices) if features_only else model


def create_from_design(name: str, design: Design, options: dict[str, Any]) -> DesignNetwork:
    """Build a design's model; options that are fields of the design change it first."""
    check_known(name, options, [*keyword_options(DesignNetwork), *DESIGN_FIELDS])
    change = {option: options.pop(option) for option in DESIGN_FIELDS if option in options}
    return DesignNetwork(dataclasses.replace(design, **change), **options)


def roadmap_designs() -> dict[str, Design]:
    """Every step of every regime: ``roadmap_REGIME/KEY`` to its design."""
    return {f"roadmap_{regime}/{step.key}": step.design for regime in REGIMES for step in roadmap(regime)}


def keyword_options(builder: Any) -> list[str]:
    """The arguments of a constructor, but for a design."""
    return [name for name in inspect.signature(builder).parameters if name != "design"]


def check_known(name: str, options: Iterable[str], known: list[str]) -> None:
    """Refuse options that a model does not have."""
    for option in options:
        if option not in known:
            raise UsageError(f"{name} takes no option {option!r}: choose among {', '.join(known)}")


def model_costs(pattern: str = "*", image_size: int = 224) -> list[dict[str, Any]]:
    """Name, parameters, multiply-accumulates and activations of every model that matches ``pattern``.

    Args:
        pattern: as for :func:`list_models`.
        image_size: pixels a side.

    Raises:
        UsageError: nothing matches, or the images are too small for a model.
    """
    names = list_models(pattern)
    if not names:
        library, slash, _ = pattern.partition("/")
        raise unknown_name("model", pattern, list_models(f"{library}/*" if slash else "*"))
    rows = []
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        rows.append({"name": name} | dataclasses.asdict(cost(model, image_size)) | {"image_size": image_size})
    return rows
