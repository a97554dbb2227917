"""A network as it is drawn: parts, blocks and layers with their maps and costs, read out of what it computes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

from torch import nn

from convnext.errors import UsageError
from convnext.explanation.execution import Call, Execution, execute
from convnext.explanation.layer_reading import Layer, layers_of

PartKind = Literal["stem", "downsampling", "stage", "between", "head"]


@dataclass(frozen=True)
class Block:
    """Layers that belong together: one call of a module with a residual branch, or what stands between such calls.

    Attributes:
        path: the module's path in the network; empty where no module has these layers alone.
        name: the class of the module, such as ``Bottleneck``; empty without a module.
        layers: in the order in which they are computed.
    """

    path: str
    name: str
    layers: tuple[Layer, ...]

    @property
    def params(self) -> int:
        """Parameters of all layers."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions and channels of what comes out: (H, W, C), (tokens, C) or (C)."""
        return self.layers[-1].shape

    @cached_property
    def signature(self) -> tuple[tuple[str, tuple[int | None, ...]], ...]:
        """What the block computes, whatever its weights: equal for blocks that differ in nothing but stochastic depth.

        Each layer in words, with the places in the block that its inputs come from, None for the block's own input.
        """
        places: dict[int, int | None] = {}
        rows: list[tuple[str, tuple[int | None, ...]]] = []
        for layer in self.layers:
            inputs = tuple(places.get(place) for place in layer.inputs)
            if layer.kind == "drop":
                places[layer.place] = inputs[0]
            else:
                places[layer.place] = len(rows)
                rows.append((layer.text, inputs))
        return tuple(rows)


@dataclass(frozen=True)
class Part:
    """A part of a network: its stem, a stage, a downsampling layer between two stages, or its head.

    Attributes:
        kind: which of these; ``between`` for layers between two stages that keep the size of the map.
        title: its name in a drawing: ``stem``, ``stage 1``, ...
        blocks: of a stage, those whose maps have the same size; else one.
    """

    kind: PartKind
    title: str
    blocks: tuple[Block, ...]

    @property
    def params(self) -> int:
        """Parameters of all blocks."""
        return sum(block.params for block in self.blocks)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all blocks."""
        return sum(block.macs for block in self.blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions and channels of what comes out: (H, W, C), (tokens, C) or (C)."""
        return self.blocks[-1].shape

    def distinct(self) -> list[list[Block]]:
        """The blocks that compute the same, together; in the order of each group's first."""
        groups: dict[Any, list[Block]] = {}
        for block in self.blocks:
            groups.setdefault(block.signature, []).append(block)
        return list(groups.values())


@dataclass(frozen=True)
class Structure:
    """A network's parts, in order.

    Attributes:
        image_size: pixels of the image that was passed through, height and width.
        image_channels: its channels.
        parts: their costs add up to those of :func:`convnext.cost`, but for ``unused``.
        unused: parameters that nothing used, by name, with the number of their values.
    """

    image_size: tuple[int, int]
    image_channels: int
    parts: tuple[Part, ...]
    unused: dict[str, int]

    @property
    def params(self) -> int:
        """Parameters of the network, those without a use among them."""
        return sum(part.params for part in self.parts) + sum(self.unused.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all parts."""
        return sum(part.macs for part in self.parts)

    @property
    def stages(self) -> list[Part]:
        """The parts that are stages."""
        return [part for part in self.parts if part.kind == "stage"]

    @property
    def layers(self) -> list[Layer]:
        """All layers, in the order in which they are computed."""
        return [layer for part in self.parts for block in part.blocks for layer in block.layers]


def structure(model: nn.Module, image_size: int | tuple[int, int] = 224) -> Structure:
    """Read a network's parts, blocks and layers out of one pass of an image, on the meta device.

    A block is the outermost module in which branches come together by addition or concatenation; modules of its class
    without a branch, such as MobileNet's that stride, are blocks as well. Blocks in a row whose maps have the same size
    are a stage. A network without any such module is divided where its map changes its size.

    Args:
        model: images (N, C, H, W) in, one tensor out.
        image_size: pixels, height and width.

    Raises:
        UsageError: the network takes no images of this size.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if next(model.parameters(), None) is None:
        raise UsageError(
            f"{type(model).__name__} has no parameters that can be followed, as an exported file has none: "
            "name the run that it came from"
        )
    try:
        execution = execute(model, size)
    except UsageError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(
            f"{type(model).__name__} takes no images of {size[0]}x{size[1]} pixels ({str(error).splitlines()[0]}): "
            "name a size that it takes (--image-size)"
        ) from error
    layers = layers_of(execution)
    parts = with_blocks(execution, layers) or without_blocks(layers)
    channels = layers[0].in_channels or 0
    return Structure(size, channels, tuple(parts), execution.unused)


def with_blocks(execution: Execution, layers: Sequence[Layer]) -> list[Part]:
    """The parts of a network that has blocks; none where it has none."""
    block_of = blocks_of(execution, layers)
    if not block_of:
        return []
    runs: list[tuple[int | None, Block]] = []
    for call, members in groupby(layers, lambda layer: block_of.get(layer.place)):
        found = execution.calls[call] if call is not None else None
        path, name = (found.path, class_name(found)) if found else ("", "")
        runs.append((call, Block(path, name, tuple(members))))
    parts: list[Part] = []
    stage: list[Block] = []
    for i, (call, block) in enumerate(runs):
        if call is not None:
            stage.append(block)
            following = runs[i + 1] if i + 1 < len(runs) else (None, None)
            if following[0] is None or following[1].shape != block.shape:  # pyright: ignore[reportOptionalMemberAccess]
                number = 1 + sum(part.kind == "stage" for part in parts)
                parts.append(Part("stage", f"stage {number}", tuple(stage)))
                stage = []
        else:
            kind = kind_between(parts, block, last=i + 1 == len(runs))
            parts.append(Part(kind, kind, (block,)))
    return parts


def kind_between(parts: Sequence[Part], block: Block, last: bool) -> PartKind:
    """What layers outside all blocks are, by where they stand and what they do to the map."""
    if not parts:
        return "stem"
    if last:
        return "head"
    before, after = parts[-1].shape, block.shape
    return "downsampling" if math.prod(after[:-1]) < math.prod(before[:-1]) else "between"


def without_blocks(layers: Sequence[Layer]) -> list[Part]:
    """The parts of a network without blocks: a stage for each size of the map, then the head on vectors."""
    parts: list[Part] = []
    for size, members in groupby(layers, lambda layer: layer.shape[:-1]):
        block = Block("", "", tuple(members))
        number = 1 + sum(part.kind == "stage" for part in parts)
        if size and any(size):
            parts.append(Part("stage", f"stage {number}", (block,)))
        else:
            parts.append(Part("head", "head", (block,)))
    return parts


def blocks_of(execution: Execution, layers: Sequence[Layer]) -> dict[int, int]:
    """The call that is the block of each layer that is in one: places of layers to places of calls."""
    joining = {
        type(execution.calls[call].module)
        for layer in layers
        if layer.kind in ("add", "concatenate") and len(layer.inputs) > 1
        for call in layer.calls[-1:]
        if execution.calls[call].path
    }
    found: dict[int, int] = {}
    for layer in layers:
        block = next((call for call in outer(execution, layer) if type(execution.calls[call].module) in joining), None)
        if block is not None:
            found[layer.place] = block
    return found


def outer(execution: Execution, layer: Layer) -> Iterator[int]:
    """The calls around a layer from the outermost inwards, but for the network's own."""
    return (call for call in layer.calls if execution.calls[call].path)


def class_name(call: Call) -> str:
    """The name of a called module's class."""
    return type(call.module).__name__
