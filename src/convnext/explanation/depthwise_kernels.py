"""The depthwise kernels of a network as a sheet, and how far from their centre their weight is."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from convnext.errors import RunError, UsageError
from convnext.explanation.found import plain_table
from convnext.inference.model import resolve

SHOWN = 24  # channels of a block on the sheet
STAGE = re.compile(r"(?:^|\.)stages\.(\d+)\.")  # ours and timm's


@dataclass(frozen=True)
class BlockKernels:
    """A block's depthwise kernels.

    Attributes:
        stage: from 1 on.
        block: within the stage, from 1 on.
        layer: the convolution's name.
        weights: (channels, k, k).
    """

    stage: int
    block: int
    layer: str
    weights: Tensor

    def chosen(self) -> Tensor:
        """The kernels on the sheet (SHOWN, k, k): spread evenly over the channels in the order of their norm, from the
        largest to the smallest, so that strong and idle ones are both to be seen."""
        order = self.weights.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
        number = min(SHOWN, len(order))
        return self.weights[order[torch.linspace(0, len(order) - 1, number).round().long()]]

    def beyond(self, side: int) -> float | None:
        """The part of all squared weights that is outside the central ``side`` x ``side``, from 0 to 1; None where all
        weights are 0."""
        squares = self.weights.double().square().sum(0)
        margin = (len(squares) - side) // 2
        inner = squares[margin : margin + side, margin : margin + side] if margin > 0 else squares
        return float(1 - inner.sum() / squares.sum()) if squares.sum() > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """The block as plain data."""
        return {
            "stage": self.stage,
            "block": self.block,
            "layer": self.layer,
            "channels": len(self.weights),
            "kernel_size": self.weights.shape[-1],
            "root_mean_square": self.weights.double().square().mean().sqrt().item(),
            "beyond_1x1": self.beyond(1),
            "beyond_3x3": self.beyond(3),
        }


@dataclass(frozen=True)
class Kernels:
    """What `convnext explain --kernels` found: the document, the table and the figure.

    Attributes:
        name: what the network was asked for by.
        blocks: in their order.
        notes: what should be said.
    """

    name: str
    blocks: tuple[BlockKernels, ...]
    notes: tuple[str, ...]
    file = "kernels"

    def to_dict(self) -> dict[str, Any]:
        """The document of ``--json``."""
        blocks = [block.to_dict() for block in self.blocks]
        return {"name": self.name, "shown": SHOWN, "blocks": blocks, "notes": list(self.notes)}


def depthwise_kernels(name: str) -> Kernels:
    """The depthwise kernels of a network.

    Args:
        name: a run, weights, or the name of a network, which is untrained.

    Raises:
        UsageError: there is no such network, or it has no depthwise convolution.
        RunError: a file is damaged, or weights are not finite.
    """
    model = resolve(name, "named")
    blocks = kernels_of(model.module)
    if not blocks:
        raise UsageError(
            f"{name} has no depthwise convolution of more than 1 x 1, so no kernels to show: of the roadmap, the steps "
            "from depthwise on have them"
        )
    if not all(bool(block.weights.isfinite().all()) for block in blocks):
        raise RunError(f"some kernels of {name} are not finite: its weights are damaged")
    return Kernels(name, blocks, model.notes)


def kernels_of(model: nn.Module) -> tuple[BlockKernels, ...]:
    """Every block's depthwise kernels; of a network that names no stages, those of one width are a stage."""
    blocks: list[BlockKernels] = []
    last: Any = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups != module.in_channels or module.groups == 1:
            continue
        weights = module.weight.detach().float().cpu()
        if weights.shape[-1] == 1 or weights.shape[-1] != weights.shape[-2]:
            continue
        match = STAGE.search(name)
        here = int(match[1]) if match else ("width", module.in_channels)
        new = not blocks or here != last
        stage, block = (blocks[-1].stage if blocks else 0) + new, 1 if new else blocks[-1].block + 1
        blocks.append(BlockKernels(stage, block, name, weights.squeeze(1)))
        last = here
    return tuple(blocks)


def kernels_table(found: Kernels) -> Table:
    """One row per block."""
    rows = []
    for block in found.blocks:
        row = block.to_dict()
        size = row["kernel_size"]
        shares = ("-" if row[key] is None else f"{100 * row[key]:.0f} %" for key in ("beyond_1x1", "beyond_3x3"))
        rms = f"{row['root_mean_square']:.4f}"
        rows.append((str(block.stage), str(block.block), f"{size}x{size}", str(row["channels"]), rms, *shares))
    columns = ("stage", "block", "kernel", "channels", "root mean square", "beyond the centre", "beyond 3x3")
    return plain_table(f"{found.name}: squared weights by place", columns, rows, words=3)
