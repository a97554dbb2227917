"""A network's architecture, whatever it is named by: its structure, as a table and as plain data."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from rich.text import Text
from torch import nn

from convnext.console import table_of
from convnext.errors import UsageError
from convnext.explanation.networks import IMAGE_SIZE, open_studied
from convnext.explanation.operator_names import TIMES
from convnext.explanation.structure import Block, Part, Structure, structure
from convnext.inference.model_opening import is_trained
from convnext.models import Design, create_model, is_reference
from convnext.models.convnext import VARIANTS
from convnext.quantities import quantity
from convnext.weights.pretrained import checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_IMAGE = 8192  # pixels a side; nothing is computed, but a slip should not be taken seriously


@dataclass(frozen=True)
class Architecture:
    """A network as it is drawn.

    Attributes:
        name: what it was named by.
        structure: its parts, blocks and layers, with their costs.
        design: its choices, where it is a step of the roadmap.
        notes: what should be said.
    """

    name: str
    structure: Structure
    design: Design | None = None
    notes: tuple[str, ...] = ()
    file = "architecture"

    def to_dict(self) -> dict[str, Any]:
        """The architecture as plain data: the document of ``convnext explain --architecture --json``."""
        found = self.structure
        return {
            "name": self.name,
            "image_size": list(found.image_size),
            "params": found.params,
            "macs": found.macs,
            "unused_params": found.unused,
            "parts": [
                {
                    "kind": part.kind,
                    "title": part.title,
                    "depth": len(part.blocks) if part.kind == "stage" else None,
                    "out": list(part.shape),
                    "params": part.params,
                    "macs": part.macs,
                    "blocks": [block_dict(block) for block in part.blocks],
                }
                for part in found.parts
            ],
        }

    def table(self) -> Table:
        """A row a part."""
        return architecture_table(self)

    def draw(self) -> "Figure":
        """The parts from left to right, each block's layers from top to bottom."""
        from convnext.explanation.architecture_figure import draw_architecture

        return draw_architecture(self)


def block_dict(block: Block) -> dict[str, Any]:
    """A block as plain data."""
    return {
        "module": block.path,
        "class": block.name,
        "out": list(block.shape),
        "params": block.params,
        "macs": block.macs,
        "layers": [{"place": layer.place} | layer.to_dict() for layer in block.layers],
    }


def architecture(network: str | Path | nn.Module | Design, image_size: int | None = None) -> Architecture:
    """Read a network's architecture out of what it computes for an image.

    Args:
        network: a name of :func:`convnext.list_models`, a run's folder or a weights file, a :class:`Design`, or a
            network itself. Weights that are published are not downloaded: their network is drawn.
        image_size: pixels a side; by default 224, or what the run was trained with.

    Raises:
        UsageError: there is no such network, or it takes no images of this size.
        RunError: a file is damaged.
    """
    if image_size is not None and not 1 <= image_size <= LARGEST_IMAGE:
        raise UsageError(f"image size is {image_size}, needs a number of pixels from 1 to {LARGEST_IMAGE}")
    notes: tuple[str, ...] = ()
    if isinstance(network, nn.Module):
        name, model = type(network).__name__, network
    elif isinstance(network, Design):
        name, model = "a Design", built(network, None)
    elif is_tagged(str(network)):
        name = str(network)
        base, classes, published_size = published_form(name)
        image_size = image_size or published_size
        model = built(base, image_size, num_classes=classes)
    elif not is_trained(str(network)):
        name = str(network)
        model = built(name, image_size)
    else:
        trained = open_studied(str(network)).trained
        assert trained is not None, "what is not built is opened"
        name, model, notes = str(network), trained.model, trained.notes
        image_size = image_size or trained.preprocessing.image_size
    return Architecture(name, structure(model, image_size or IMAGE_SIZE), getattr(model, "design", None), notes)


def has_own_size(name: str) -> bool:
    """Whether a name means weights, which were trained with images of some size."""
    return is_tagged(name) or is_trained(name)


def is_tagged(name: str) -> bool:
    """Whether a name means weights that a library or the authors publish: NETWORK.TAG."""
    network = name.partition(".")[0]
    return not Path(name).exists() and "." in name and (network in VARIANTS or is_reference(network))


def published_form(name: str) -> tuple[str, int, int]:
    """The network that published weights NETWORK.TAG are of, without fetching them: its name, classes, image size.

    Raises:
        UsageError: there are no such weights.
    """
    network, _, tag = name.partition(".")
    if not is_reference(name):
        row = checkpoint(network, tag)
        return row.variant, row.classes, row.image_size
    import timm

    known = timm.list_pretrained(f"{network.partition('/')[2]}.*") if network.startswith("timm/") else []
    if name.partition("/")[2] not in known:
        there = ", ".join(f"timm/{one}" for one in known) or f"none; leave {tag!r} out to draw {network}"
        raise UsageError(f"no weights {name}: it has {there}")
    published: Any = timm.get_pretrained_cfg(name.partition("/")[2])
    return network, published.num_classes, published.input_size[-1]


def built(network: str | Design, image_size: int | None, **options: int) -> nn.Module:
    """A network without weights, or with some where it cannot be built without."""
    if image_size and is_reference(str(network)):
        options["image_size"] = image_size
    try:
        with torch.device("meta"):
            return create_model(network, **options)
    except NotImplementedError:  # its constructor computes with values
        return create_model(network, **options)


def map_size(shape: tuple[int, ...]) -> str:
    """Positions and channels as people write them: 56×56×96, 197 tokens × 192, 1000."""
    if len(shape) == 2:
        return f"{shape[0]} tokens {TIMES} {shape[1]}"
    return TIMES.join(map(str, shape))


def blocks_in_words(part: Part) -> str:
    """A part's blocks, a line for each kind: how many, and their layers in order."""
    lines = []
    for group in part.distinct():
        longest = max(group, key=lambda block: len(block.layers))
        texts = [layer.text for layer in longest.layers]
        lines.append((f"{len(group)} {TIMES} " if part.kind == "stage" else "") + " · ".join(texts))
    return "\n".join(lines)


def architecture_table(shown: Architecture) -> Table:
    """An architecture for a terminal: a row a part."""
    found = shown.structure
    height, width = found.image_size
    title = f"{shown.name}, one image of {height}{TIMES}{width} pixels"
    table = table_of(Text(title), title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("map", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("layers")
    for part in found.parts:
        row = (part.title, map_size(part.shape), quantity(part.params), quantity(part.macs))
        table.add_row(*row, Text(blocks_in_words(part)))
    if found.unused:
        names = ", ".join(list(found.unused)[:3])
        table.add_row("not used", "", quantity(sum(found.unused.values())), "", Text(f"{names}, ..."))
    table.add_section()
    table.add_row("in all", "", quantity(found.params), quantity(found.macs))
    return table
