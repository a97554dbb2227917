"""How two architectures differ: in their choices where both are steps of the roadmap, in counts, parts and layers."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from convnext.console import table_of
from convnext.explanation.architecture import Architecture, architecture, blocks_in_words, has_own_size, map_size
from convnext.explanation.layer_reading import Layer
from convnext.explanation.operator_names import LayerKind
from convnext.explanation.structure import Block, Part
from convnext.quantities import quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mark = Literal["same", "changed", "only"]

COUNTED: tuple[tuple[str, tuple[LayerKind, ...]], ...] = (
    ("convolutions and linear layers", ("convolution", "linear")),
    ("attentions", ("attention",)),
    ("norms", ("norm",)),
    ("activations", ("activation",)),
)
MISSING, OTHER_KIND, OTHER_WIDTH = 1.0, 3.0, 0.5  # what it costs to leave a layer alone, or to pair two


@dataclass(frozen=True)
class Pair:
    """A part of each of two networks that stand in the same place; None where one has none.

    Attributes:
        place: 0 for the stems, 1 for stages and what stands between them, 2 for the heads; the stage's number; 0 for
            the stage itself, more for what stands behind it.
        first: of the first network.
        second: of the second.
    """

    place: tuple[int, int, int]
    first: Part | None
    second: Part | None

    @property
    def is_stage(self) -> bool:
        """Whether it is a stage's."""
        return self.place[0] == 1 and not self.place[2]

    @property
    def title(self) -> str:
        """What the place is called."""
        where, stage, behind = self.place
        if where != 1:
            return "stem" if where == 0 else "head"
        return f"between stages {stage} and {stage + 1}" if behind else f"stage {stage}"

    @property
    def differs(self) -> bool:
        """Whether they are anything but the same."""
        if self.first is None or self.second is None:
            return True
        ours, theirs = ([block.signature for block in part.blocks] for part in (self.first, self.second))
        return ours != theirs or self.first.shape != self.second.shape


@dataclass(frozen=True)
class Difference:
    """Two architectures beside each other.

    Attributes:
        first: the one.
        second: the other.
        pairs: their parts, those that stand in the same place together, in order.
    """

    first: Architecture
    second: Architecture
    pairs: tuple[Pair, ...]
    file = "difference"

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be said."""
        return (*self.first.notes, *self.second.notes)

    def table(self) -> Table:
        """What differs, a row a choice, a count and a part."""
        return difference_table(self)

    def draw(self) -> "Figure":
        """Both in one line each, and below their blocks beside each other, what differs marked."""
        from convnext.explanation.difference_figure import draw_difference

        return draw_difference(self)

    def design(self) -> list[tuple[str, Any, Any]]:
        """The choices in which two steps of the roadmap differ: field, first, second."""
        ours, theirs = self.first.design, self.second.design
        if ours is None or theirs is None:
            return []
        rows = [(f.name, getattr(ours, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(ours)]
        return [row for row in rows if row[1] != row[2]]

    def counts(self) -> list[tuple[str, int, int]]:
        """Blocks, and layers of each kind that either has: what, first, second."""
        rows: list[tuple[str, int, int]] = []
        both = (self.first.structure, self.second.structure)
        ours, theirs = (sum(len(part.blocks) for part in found.stages) for found in both)
        rows.append(("blocks", ours, theirs))
        kinds = [Counter(layer.kind for layer in found.layers) for found in both]
        for name, members in COUNTED:
            ours, theirs = (sum(count[kind] for kind in members) for count in kinds)
            rows.append((name, ours, theirs))
        return [row for row in rows if any(row[1:])]

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain data."""
        return {
            "models": [self.first.to_dict(), self.second.to_dict()],
            "difference": {
                "design": {name: [plain(ours), plain(theirs)] for name, ours, theirs in self.design()},
                "counts": {name: [ours, theirs] for name, ours, theirs in self.counts()},
                "params": [self.first.structure.params, self.second.structure.params],
                "macs": [self.first.structure.macs, self.second.structure.macs],
                "parts": [pair_dict(pair) for pair in self.pairs],
            },
        }


def plain(value: Any) -> Any:
    """A choice as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def pair_dict(pair: Pair) -> dict[str, Any]:
    """A pair of parts as plain data: each value for the first and the second network."""
    both = (pair.first, pair.second)
    return {
        "title": pair.title,
        "differs": pair.differs,
        "depth": [len(part.blocks) if part else None for part in both],
        "out": [list(part.shape) if part else None for part in both],
        "params": [part.params if part else None for part in both],
        "macs": [part.macs if part else None for part in both],
        "blocks": [blocks_in_words(part).split("\n") if part else None for part in both],
    }


def difference(first: Architecture, second: Architecture) -> Difference:
    """Put two architectures beside each other: stem by stem, stage by stage, what stands between the stages, heads."""
    ours, theirs = named_parts(first.structure.parts), named_parts(second.structure.parts)
    pairs = [Pair(place, ours.get(place), theirs.get(place)) for place in sorted({**ours, **theirs})]
    return Difference(first, second, tuple(pairs))


def difference_of(first: str, second: str, image_size: int | None = None) -> Difference:
    """The same of two networks by what they are called, for one image.

    Args:
        first: as for :func:`convnext.explanation.architecture.architecture`.
        second: the same.
        image_size: pixels a side; by default what the first was trained with, or else the second, or else 224.

    Raises:
        UsageError: there is no such network, or one takes no images of this size.
        RunError: a file is damaged.
    """
    if image_size is None and not has_own_size(first) and has_own_size(second):
        theirs = architecture(second)
        return difference(architecture(first, theirs.structure.image_size[0]), theirs)
    ours = architecture(first, image_size)
    return difference(ours, architecture(second, ours.structure.image_size[0]))


def named_parts(parts: Sequence[Part]) -> dict[tuple[int, int, int], Part]:
    """Parts by where they stand: before everything, in a stage, behind it, at the end."""
    found: dict[tuple[int, int, int], Part] = {}
    stage = 0
    for part in parts:
        if part.kind == "stage":
            stage += 1
            found[1, stage, 0] = part
        elif part.kind in ("stem", "head"):
            found[(0, 0, 0) if part.kind == "stem" else (2, 0, 0)] = part
        else:
            behind = sum(place[:2] == (1, stage) for place in found)
            found[1, stage, behind] = part
    return found


def marks(ours: Block, theirs: Block) -> tuple[dict[int, Mark], dict[int, Mark]]:
    """How the layers of two blocks stand to each other, by place: the same, changed, or only in one.

    Layers are paired in order, by the pairing that leaves the fewest alone; only layers of one kind are paired.
    """
    first: dict[int, Mark] = {}
    second: dict[int, Mark] = {}
    for one, other in aligned(ours.layers, theirs.layers):
        if one is None or other is None:
            alone: Layer = one or other  # pyright: ignore[reportAssignmentType]
            (first if one else second)[alone.place] = "only"
        elif one.text != other.text:
            first[one.place] = second[other.place] = "changed"
    return first, second


def aligned(ours: Sequence[Layer], theirs: Sequence[Layer]) -> list[tuple[Layer | None, Layer | None]]:
    """Two lists of layers side by side, in order, at the least cost of pairing unlike ones and leaving some alone."""
    rows, columns = len(ours), len(theirs)
    costs = [[MISSING * (i + j) for j in range(columns + 1)] for i in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            paired = costs[i - 1][j - 1] + pairing(ours[i - 1], theirs[j - 1])
            costs[i][j] = min(paired, costs[i - 1][j] + MISSING, costs[i][j - 1] + MISSING)
    i, j = rows, columns
    pairs: list[tuple[Layer | None, Layer | None]] = []
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + pairing(ours[i - 1], theirs[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((ours[i], theirs[j]))
        elif i and costs[i][j] == costs[i - 1][j] + MISSING:
            i -= 1
            pairs.append((ours[i], None))
        else:
            j -= 1
            pairs.append((None, theirs[j]))
    return pairs[::-1]


def pairing(one: Layer, other: Layer) -> float:
    """What it costs to pair two layers: nothing for the same, little for another width or kernel."""
    if one.text == other.text:
        return 0.0
    alike = family(one) == family(other)
    return OTHER_WIDTH + 0.25 * (one.kernel != other.kernel) if alike else OTHER_KIND


def family(layer: Layer) -> str:
    """What layers that can be paired have in common: a 1x1 convolution is a linear layer."""
    if layer.kind in ("convolution", "linear"):
        return "mixes channels" if set(layer.kernel) <= {1} else "mixes positions"
    return layer.kind


def typical(part: Part) -> list[Block]:
    """The blocks that a part has most of, of those that compute the same, the longest first; of as many, those that do
    not stride."""
    groups = sorted(part.distinct(), key=lambda group: (-len(group), strides(group[0])))
    return sorted(groups[0], key=lambda block: -len(block.layers))


def strides(block: Block) -> bool:
    """Whether a block makes the map smaller."""
    return any(step > 1 for layer in block.layers for step in layer.stride)


def widthless(block: Block) -> tuple[Any, ...]:
    """What a block computes, whatever its width: equal in all stages of a ConvNeXt."""
    return tuple(
        (family(layer), layer.kernel, layer.stride, layer.groups > 1, layer.channels / block.shape[-1])
        for layer in block.layers
        if layer.kind != "drop"
    )


def entry(found: Difference, stage: int) -> list[list[Block] | None]:
    """How each network comes into a stage: by layers of their own before it, or by a first block unlike the others."""
    before = next((pair for pair in found.pairs if pair.place == (1, stage - 1, 1)), None)
    itself = next((pair for pair in found.pairs if pair.place == (1, stage, 0)), None)
    sides: list[list[Block] | None] = []
    for name in ("first", "second"):
        between, part = getattr(before, name, None), getattr(itself, name, None)
        if between is not None:
            sides.append(list(between.blocks))
        elif part is not None and part.blocks[0].signature != typical(part)[0].signature:
            sides.append([part.blocks[0]])
        else:
            sides.append(None)
    return sides


def difference_table(found: Difference) -> Table:
    """What differs, for a terminal."""
    names = (found.first.name, found.second.name)
    table = table_of(Text(f"{names[0]} and {names[1]}"))
    for name in ("", *names):
        table.add_column(Text(name))
    for name, ours, theirs in found.design():
        table.add_row(name, Text(str(ours)), Text(str(theirs)))
    if found.design():
        table.add_section()
    both = (found.first.structure, found.second.structure)
    table.add_row("parameters", *(f"{one.params:,}" for one in both))
    table.add_row("MACs", *(f"{one.macs:,}" for one in both))
    for name, *values in found.counts():
        table.add_row(name, *map(str, values))
    table.add_section()
    same = [pair.title for pair in found.pairs if not pair.differs]
    for pair in found.pairs:
        if pair.differs:
            table.add_row(pair.title, *(Text(part_in_words(part)) for part in (pair.first, pair.second)))
    if same:
        table.add_row("the same", Text(", ".join(same)), "")
    return table


def part_in_words(part: Part | None) -> str:
    """A part in a few lines: its map and costs, then its blocks."""
    if part is None:
        return "-"
    costs = f"{map_size(part.shape)}, {quantity(part.params)} params, {quantity(part.macs)} MACs"
    return f"{costs}\n{blocks_in_words(part)}"
