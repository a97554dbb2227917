"""Effective receptive fields: how far around a position a stage's map depends on the image, and how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from convnext.errors import RunError
from convnext.explanation.feature_maps import as_map, stage_layers, watching
from convnext.explanation.found import plain_table
from convnext.explanation.study_images import subjects
from convnext.inference.model import SEED

BATCH = 5  # images at a time
SHARES = (0.5, 0.95)  # of the gradient that the squares hold
ROUNDING = 1e-9  # of sums


@dataclass(frozen=True)
class StageField:
    """The effective receptive field of a stage.

    Attributes:
        stage: its name, such as ``stage 1``.
        layer: the module that it ends with.
        positions: height and width of its map.
        gradient: (H, W), the gradient of the map's central position by the image, its absolute values added up over
            the channels and averaged over images; it adds up to 1, or is 0 where nothing gets through.
    """

    stage: str
    layer: str
    positions: tuple[int, int]
    gradient: Tensor

    def square(self, share: float) -> tuple[int, int, int] | None:
        """The smallest square that holds a share of the gradient: side, top and left in pixels; None where there is no
        gradient."""
        if not self.gradient.any():
            return None
        sums = nn.functional.pad(self.gradient.cumsum(0).cumsum(1), (1, 0, 1, 0))  # [i, j]: of what is above and left
        least, most = 1, min(self.gradient.shape)
        while least < most:  # the most that a square can hold grows with its side
            side = (least + most) // 2
            least, most = (least, side) if within(sums, side).max() >= share - ROUNDING else (side + 1, most)
        held = within(sums, least)
        top, left = divmod(int(held.argmax()), held.shape[1])
        return least, top, left

    def side(self, share: float) -> int | None:
        """Pixels a side of :meth:`square`."""
        square = self.square(share)
        return None if square is None else square[0]

    def to_dict(self) -> dict[str, Any]:
        """The stage as plain data."""
        return {
            "stage": self.stage,
            "layer": self.layer,
            "positions": list(self.positions),
            **{f"side_{100 * share:.0f}": self.side(share) for share in SHARES},
        }


def within(sums: Tensor, side: int) -> Tensor:
    """What each square of a side holds, by its top and left, from the sums (H + 1, W + 1) above and left of a point."""
    return sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]


@dataclass(frozen=True)
class NetworkFields:
    """The stages' fields of one network, trained or untrained.

    Attributes:
        name: what the network was asked for by.
        weights: ``trained`` or ``untrained``.
        images: what the average is over, in words.
        image_size: pixels a side.
        stages: in their order.
    """

    name: str
    weights: str
    images: str
    image_size: int
    stages: tuple[StageField, ...]


@dataclass(frozen=True)
class ReceptiveFields:
    """What `convnext explain --receptive-field` found: the document, the table and the figure.

    Attributes:
        networks: each untrained and, where it is, trained.
        notes: what should be said.
    """

    networks: tuple[NetworkFields, ...]
    notes: tuple[str, ...] = field(default=())
    file = "receptive-field"

    def to_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "seed": SEED,
            "networks": [
                {
                    "name": network.name,
                    "weights": network.weights,
                    "images": network.images,
                    "image_size": network.image_size,
                    "stages": [stage.to_dict() for stage in network.stages],
                }
                for network in self.networks
            ],
            "notes": list(self.notes),
        }


def receptive_field(names: Sequence[str], data: str | None = None, device: str = "auto") -> ReceptiveFields:
    """The effective receptive field (arXiv 1701.04128) of every stage, trained beside untrained.

    Untrained networks have a LayerScale of 1 where they have one: it begins near 0, where it hides what a block reads.

    Args:
        names: runs, weights, or names of networks, which are untrained.
        data: images to average over, by :func:`~convnext.explanation.study_images.study_images`.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.

    Raises:
        UsageError: there is no such network or data, or a network has no maps.
        RunError: a file is damaged, or gradients are not finite.
    """
    networks: list[NetworkFields] = []
    notes: list[str] = []
    for subject in subjects(names, data, device):
        name, images = subject.name, subject.images.images
        notes += subject.notes
        if subject.weights == "untrained" and with_full_layer_scale(subject.model):
            notes.append(f"{name}: LayerScale is 1 in the untrained network (it begins near 0, which hides blocks)")
        stages = stage_fields(subject.model, images)
        networks.append(NetworkFields(name, subject.weights, subject.images.name, images.shape[-1], stages))
    return ReceptiveFields(tuple(networks), tuple(dict.fromkeys(notes)))


def with_full_layer_scale(model: nn.Module) -> bool:
    """Set every block's LayerScale to 1; whether there is any."""
    scales = [scale for name, scale in model.named_parameters() if name.endswith("gamma") and scale.ndim == 1]
    for scale in scales:
        nn.init.ones_(scale)
    return bool(scales)


def stage_fields(model: nn.Module, images: Tensor) -> tuple[StageField, ...]:
    """The effective receptive field of every stage.

    Args:
        model: in evaluation mode.
        images: prepared, (N, C, H, W), on the model's device.
    """
    size = (images.shape[2], images.shape[3])
    layers = stage_layers(model, images[:1])
    sums = [torch.zeros(size, dtype=torch.float64) for _ in layers]
    positions: dict[str, tuple[int, int]] = {}
    central: dict[str, Tensor] = {}

    def see(name: str, output: Any) -> None:
        seen = as_map(output, size, least=1)
        assert seen is not None
        height, width = positions[name] = (seen.shape[2], seen.shape[3])
        central[name] = seen[:, :, height // 2, width // 2].sum()

    for batch in images.split(BATCH):
        pixels = batch.detach().clone().requires_grad_()
        with torch.enable_grad(), watching({name: model.get_submodule(name) for name in layers}, see):
            model(pixels)
        for name, total in zip(layers, sums, strict=True):
            (gradient,) = torch.autograd.grad(central[name], pixels, retain_graph=True)
            total.add_(gradient.abs().double().sum((0, 1)).cpu())
        central.clear()
    fields = []
    for i, (name, total) in enumerate(zip(layers, sums, strict=True), start=1):
        if not total.isfinite().all():
            raise RunError(f"the gradients of {type(model).__name__} are not finite: its weights are damaged")
        whole = total.sum()
        fields.append(StageField(f"stage {i}", name, positions[name], total / whole if whole > 0 else total))
    return tuple(fields)


def pixels(side: int | None) -> str:
    """A side for a table."""
    return "-" if side is None else str(side)


def receptive_field_table(found: ReceptiveFields) -> Table:
    """One row per stage of each network."""
    rows = [
        (network.name, network.weights, stage.stage, "x".join(map(str, stage.positions)), *map(pixels, sides))
        for network in found.networks
        for stage in network.stages
        for sides in ([stage.side(share) for share in SHARES],)
    ]
    columns = ("network", "weights", "stage", "map", *(f"{100 * share:.0f} % within, px" for share in SHARES))
    return plain_table("side of the square that holds the gradient", columns, rows, words=3)
