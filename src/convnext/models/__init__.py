"""Networks by name: the ConvNeXt family, every step of the roadmap, and references from torchvision and timm."""

import dataclasses
import inspect
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from convnext.errors import UsageError, unknown_name
from convnext.models.convnext import VARIANTS
from convnext.models.design import Design, DesignNetwork
from convnext.models.references import create_reference, is_reference, list_references
from convnext.models.roadmap import REGIMES, roadmap

__all__ = ["Design", "create_model", "is_reference", "list_models", "roadmap"]

DESIGN_FIELDS = tuple(field.name for field in dataclasses.fields(Design))


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` knows and that match a shell-style ``pattern``, sorted.

    References are listed for patterns that begin with their library: ``torchvision/*``, ``timm/resnet*``.
    """
    library = pattern.partition("/")[0]
    names = list_references(library) if is_reference(pattern) else [*VARIANTS, *roadmap_designs()]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def create_model(name: str | Design, **options: Any) -> nn.Module:
    """Build a network with freshly initialised weights, in training mode.

    Args:
        name: a name of :func:`list_models`, such as ``convnext_tiny``, ``roadmap_tiny/patchify_stem`` or
            ``torchvision/swin_t``; or a :class:`Design`.
        options: arguments of the network's constructor: ``in_chans`` (3), ``num_classes`` (1000; 0 for features),
            ``drop_path_rate``, ``layer_scale_init_value``, ``head_init_scale``, and for the family those of
            :class:`ConvNeXt`. Steps of the roadmap take every field of :class:`Design` as well. References take what
            :func:`create_reference` says.

    Returns:
        A module from images (N, in_chans, H, W) to logits (N, num_classes).

    Raises:
        UsageError: the name is unknown (the nearest are listed), or the network does not take an option.
    """
    if isinstance(name, Design):
        return create_from_design("this Design", name, options)
    if is_reference(name):
        return create_reference(name, **options)
    if name in VARIANTS:
        builder = VARIANTS[name]
        check_known(name, options, keyword_options(builder))
        return builder(**options)
    designs = roadmap_designs()
    if name in designs:
        return create_from_design(name, designs[name], options)
    raise unknown_name("model", name, [*VARIANTS, *designs])


def create_from_design(name: str, design: Design, options: dict[str, Any]) -> nn.Module:
    """Build a design's network; options that are fields of the design change it first."""
    check_known(name, options, [*keyword_options(DesignNetwork), *DESIGN_FIELDS])
    change = {option: options.pop(option) for option in DESIGN_FIELDS if option in options}
    return DesignNetwork(dataclasses.replace(design, **change), **options)


def roadmap_designs() -> dict[str, Design]:
    """Every step of every regime: ``roadmap_REGIME/KEY`` to its design."""
    return {f"roadmap_{regime}/{step.key}": step.design for regime in REGIMES for step in roadmap(regime)}


def keyword_options(builder: Any) -> list[str]:
    """The arguments that a constructor takes by name, but for a design."""
    return [name for name in inspect.signature(builder).parameters if name != "design"]


def check_known(name: str, options: dict[str, Any], known: list[str]) -> None:
    """Refuse options that a network does not have."""
    for option in options:
        if option not in known:
            raise UsageError(f"{name} takes no option {option!r}: choose among {', '.join(known)}")
