"""A network by name, with published weights where they are asked for."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, cast

from torch import nn

from convnext import models
from convnext.errors import LicenceWarning, UsageError, WeightsWarning, unknown_name
from convnext.models import Design, FeatureNet, is_reference, list_models
from convnext.models.protocol import Network
from convnext.weights.hub import fetch
from convnext.weights.loading import load_weights
from convnext.weights.published import ROWS, Published, published, tags_of

OTHER_NAMES = {
    "roadmap_tiny/separate_downsampling": "convnext_tiny",
    "roadmap_base/separate_downsampling": "convnext_base",
}


def create_model(
    name: str | Design,
    *,
    pretrained: str | bool | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network, in training mode: with freshly initialised weights, or with published ones.

    Args:
        name: a name of :func:`convnext.list_models`, such as ``convnext_tiny``, ``roadmap_tiny/patchify_stem`` or
            ``torchvision/swin_t``; or a :class:`Design`.
        pretrained: a tag of the authors' published weights of the network, as ``convnext models --pretrained`` lists
            them: ``in1k``, ``in22k``, ``in22k_in1k`` (with ``_384``, ``_512`` for larger images), ``fcmae``. True for
            the ImageNet-1K classifier at 224 px with the highest accuracy in the paper. They are downloaded once.
        features_only: build a backbone, whose output is a list of feature maps.
        out_indices: the feature maps of a backbone; None for all four.
        options: arguments of the model's constructor, as in :func:`convnext.models.create_model`; ``num_classes`` is
            1000, or that of the published weights.

    Returns:
        A module from images (N, in_chans, H, W) to logits (N, num_classes), or to a list of feature maps.

    Warns:
        LicenceWarning: the weights are not for commercial use; once a process.
        WeightsWarning: a part of the network keeps its initial values, such as a classifier for other classes; once.

    Raises:
        UsageError: the name or the tag is unknown (the nearest are listed), the network does not take an option, or
            the published weights do not fit the network with these options.
        RunError: the weights cannot be downloaded (the message says what to put where), or are damaged.
    """
    if pretrained is None or pretrained is False:
        return models.create_model(name, features_only=features_only, out_indices=out_indices, **options)
    row = checkpoint(name, pretrained)
    arguments: dict[str, Any] = {"num_classes": row.classes} | options
    model = models.create_model(row.variant, **arguments)
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UsageError(
            "published weights need a device that holds values, and this network is on the meta device: leave "
            "pretrained out, or create it on another one"
        )
    loaded = load_weights(model, fetch(row.variant, row.tag))
    for note in row.notes:
        warn_once(note, LicenceWarning)
    for note in loaded.notes:
        warn_once(note, WeightsWarning)
    return FeatureNet(cast(Network, model), out_indices) if features_only else model


def checkpoint(name: str | Design, pretrained: str | Literal[True]) -> Published:
    """The published checkpoint that is meant.

    Raises:
        UsageError: there is none; the message says what to do instead.
    """
    if isinstance(name, Design):
        raise UsageError("no weights are published for a Design: name the network, such as convnext_tiny")
    if is_reference(name):
        library, _, network = name.partition("/")
        calls = {
            "timm": f"timm.create_model({network!r}, pretrained=True)",
            "torchvision": f"torchvision.models.get_model({network!r}, weights='DEFAULT')",
        }
        raise UsageError(
            f"pretrained is for the ConvNeXt authors' weights; {name} comes with its library's by {calls[library]}"
        )
    if name in OTHER_NAMES:
        same = OTHER_NAMES[name]
        raise UsageError(f"weights are published under the network's own name: create {same}, which is {name}")
    if not tags_of(name) and name not in list_models():
        raise unknown_name("model", name, list_models())
    if pretrained is True:
        classifiers = [row for row in ROWS if row.variant == name and row.image_size == 224 and row.top1]
        pretrained = max(classifiers, key=lambda row: row.top1 or 0).tag if classifiers else "in1k"
    return published(name, pretrained)


@cache
def warn_once(note: str, category: type[Warning]) -> None:
    """Warn whoever calls :func:`create_model`, once a process."""
    warnings.warn(note, category, stacklevel=3)
