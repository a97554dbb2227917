"""A weights file opened by itself: which network it is of, for which classes, and how images are prepared for it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from convnext.errors import UsageError, printable
from convnext.files import read_json
from convnext.weights.architecture import Architecture, architecture_of
from convnext.weights.description import Description, describe
from convnext.weights.layouts import DINOV3, to_official
from convnext.weights.loading import check_fit, unused_notes
from convnext.weights.reading import BEST, read_weights, weights_file


@dataclass(frozen=True)
class Opened:
    """A file's weights under their official names, and what they are for.

    Attributes:
        path: the file.
        layout: what it is written in.
        weights: the tensors, of the file's own precision.
        architecture: the network.
        description: classes, preprocessing and norm, as far as the file or those beside it say.
        notes: what should be said aloud.
    """

    path: Path
    layout: str
    weights: dict[str, Tensor]
    architecture: Architecture
    description: Description
    notes: tuple[str, ...]

    def build(self) -> nn.Module:
        """The network with these weights, in evaluation mode."""
        with torch.device("meta"):  # initial values would be overwritten
            model = self.architecture.build()
        model.to_empty(device="cpu").load_state_dict(self.weights)
        norm = model.get_submodule("norm")
        assert isinstance(norm, nn.LayerNorm)
        norm.eps = self.description.norm_eps or norm.eps
        return model.eval()


def open_weights(path: str | Path) -> Opened:
    """Open a weights file of any layout that this package knows.

    Args:
        path: a weights file, or a folder as the hub's libraries save it.

    Raises:
        UsageError: there is no such file, or it is of no ConvNeXt.
        RunError: the file is damaged, holds code, or values that are not finite.
    """
    path = weights_file(Path(path))
    read, notes = read_weights(path)
    official = to_official(read)
    if official is None and (run := run_of(path)):
        raise UsageError(f"{run}, which is no ConvNeXt: its weights have no other layout")
    if official is None:
        names = ", ".join(map(printable, list(read)[:3]))
        raise UsageError(
            f"{path} is of no ConvNeXt in a layout that is known (official, timm, OpenCLIP, torchvision, "
            f"transformers): it has {len(read)} tensors, {names}, ... Other networks are opened by their run's folder"
        )
    try:
        architecture = architecture_of(official.weights)
        own = architecture.meta_weights()
        weights, fresh = with_final_norm(official.weights, own, path)
        check_fit(weights, own, path)
    except UsageError as error:
        if run := run_of(path):
            raise UsageError(f"{run}, which differs from every ConvNeXt that other layouts describe") from error
        raise UsageError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    description = describe(path)
    if description.norm_eps is None:
        description = replace(description, norm_eps=official.norm_eps)
    if description.classes and architecture.num_classes != len(description.classes):
        raise UsageError(
            f"{path} has a classifier of {architecture.num_classes} classes, and {len(description.classes)} names of "
            "classes beside it: they are of different networks"
        )
    notes = (*notes, *unused_notes(official, path), *fresh)
    if official.layout.startswith(DINOV3.name):
        notes = (*notes, f"{path.name} is DINOv3's: its licence has conditions of its own")
    return Opened(path, official.layout, weights, architecture, description, notes)


def run_of(path: Path) -> str:
    """Which network a run's weights are of, for a message; empty where they are of no run, or it does not say."""
    recipe = path.with_name("recipe.json")
    if path.name != BEST or not recipe.is_file():
        return ""
    model = read_json(recipe).get("model")
    return f"the run in {path.parent} is of {model}" if model else ""


def with_final_norm(
    weights: dict[str, Tensor], own: dict[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights with the norm behind the pooling, which masked pre-training and backbones lack; and what to say."""
    absent = [name for name in own if name.startswith("norm.") and name not in weights]
    if not absent:
        return weights, ()
    like = next(iter(weights.values()))
    fresh = {
        name: like.new_ones(own[name].shape) if name.endswith("weight") else like.new_zeros(own[name].shape)
        for name in absent
    }
    return weights | fresh, (f"{path.name} has no norm behind the pooling: it is a fresh one",)
