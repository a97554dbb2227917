"""Layouts: by what names and in what shapes each library keeps the same tensors. One table of rules each, both ways."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from convnext.weights.layouts.official import ISOTROPIC, OFFICIAL, SPARSE
from convnext.weights.layouts.timm import TIMM, TIMM_CONV_MLP
from convnext.weights.layouts.torchvision import TORCHVISION
from convnext.weights.layouts.transformers import DINOV3, TRANSFORMERS

__all__ = ["DINOV3", "LAYOUTS", "SPARSE", "TIMM", "TIMM_CONV_MLP", "TORCHVISION", "TRANSFORMERS", "to_official"]

LAYOUTS = (OFFICIAL, ISOTROPIC, SPARSE, TIMM, TORCHVISION, TRANSFORMERS, DINOV3)


@dataclass(frozen=True)
class Official:
    """A file's tensors under their official names.

    Attributes:
        layout: what they came in, with what stood before the names: ``timm under visual.trunk``.
        weights: the tensors.
        unused: names in the file of tensors that are of another network or task.
        norm_eps: of the norm behind the pooling, where the layout's library has its own.
    """

    layout: str
    weights: dict[str, Tensor]
    unused: tuple[str, ...]
    norm_eps: float | None = None


def to_official(weights: Mapping[str, Tensor]) -> Official | None:
    """The ConvNeXt among a file's tensors, whatever the layout, and whatever stands before its names.

    Names in the network's part of the file that its layout does not know stay as they are. Of those outside it, a
    classifier of the layout's is the network's.

    Args:
        weights: tensors by name.

    Returns:
        The tensors; None where there is no ConvNeXt that a layout describes.
    """
    places = ((layout, layout.place(weights)) for layout in LAYOUTS)
    layout, prefix = next(((layout, place) for layout, place in places if place is not None), (None, ""))
    if layout is None:
        return None
    official, unused = {}, []
    for name, tensor in weights.items():
        inside, bare = name.startswith(prefix), without_prefix(name, prefix)
        if renamed := layout.to_official(bare, tensor):
            official[renamed[0]] = renamed[1]
        elif inside and not bare.startswith(layout.unused):
            official[bare] = tensor
        else:
            unused.append(name)
    under = f" under {prefix.removesuffix('.')}" if prefix else ""
    return Official(layout.name + under, official, tuple(unused), layout.norm_eps)


def without_prefix(name: str, prefix: str) -> str:
    """A name without as much of a prefix, counted in whole words, as it has: of ``a.b.``, ``a.c`` has ``a.``."""
    for part in prefix.split(".")[:-1]:
        if not name.startswith(f"{part}."):
            break
        name = name.removeprefix(f"{part}.")
    return name
