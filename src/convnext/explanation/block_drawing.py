"""A block drawn as the paper's figure 4 draws it: layers as boxes from top to bottom, branches as lines beside them.

All lengths are inches; y grows downwards.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise, zip_longest

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch

from convnext.explanation.difference import Mark
from convnext.explanation.layer_reading import Layer
from convnext.explanation.operator_names import TIMES
from convnext.explanation.structure import Block
from convnext.plotting import GREY, ORANGE

WIDTH, LINE, PADDING, GAP = 1.24, 0.125, 0.11, 0.1  # of a box; of a line of its text; around that; between two boxes
JOIN, STUB = 0.17, 0.15  # a circle's diameter; the line that leads in, and out
LANE, SIDE = 0.12, 0.16  # between two lines beside the boxes; between the boxes and those beside them
FONT = 7.5
LETTERS = 21  # of a line in a box
MOST_ASIDE = 3  # boxes on a shortcut
MOST_LAYERS = 44  # that a block is drawn with; those in the middle of a longer one share a box
SAME, CHANGED, ONLY = (GREY, 0.6, "-"), (ORANGE, 1.6, (0, (2.5, 1.2))), (ORANGE, 1.8, "-")  # how a box is outlined
COLOURS = {
    "convolution": "#8FC1E3",
    "pointwise": "#D3E6F3",
    "linear": "#D3E6F3",
    "attention": "#F6C9A6",
    "norm": "#F2EBB5",
    "activation": "#C9E6C6",
    "pool": "#DCDCDC",
}


@dataclass(frozen=True)
class Cell:
    """A box to be drawn: a layer, or the layers in the middle of a long block."""

    place: int
    kind: str
    text: str
    inputs: tuple[int, ...]

    @property
    def is_join(self) -> bool:
        """Whether it is drawn as a small circle, where two branches come together."""
        return self.kind in ("add", "multiply")

    @property
    def height(self) -> float:
        """Of the box."""
        return JOIN if self.is_join else LINE * (1 + self.text.count("\n")) + PADDING


def cells(blocks: Sequence[Block], most: int = MOST_LAYERS) -> list[Cell]:
    """The boxes of blocks that compute the same, the one with the most layers first; in the order of computation."""
    drops = [[layer.rate for layer in block.layers if layer.kind == "drop"] for block in blocks]
    rates = iter(zip_longest(*drops, fillvalue=0.0))
    boxes = [cell(layer, next(rates) if layer.kind == "drop" else ()) for layer in blocks[0].layers]
    if len(boxes) <= most:
        return boxes
    half = most // 2
    hidden = {box.place for box in boxes[half:-half]}
    stand_in = max(hidden)
    first, last = boxes[:half], boxes[-half:]
    middle = Cell(stand_in, "other", f"{len(hidden)} more layers", (first[-1].place,))
    shown = [
        replace(box, inputs=tuple(dict.fromkeys(stand_in if place in hidden else place for place in box.inputs)))
        for box in last
    ]
    return [*first, middle, *shown]


def cell(layer: Layer, rates: Sequence[float]) -> Cell:
    """A layer's box; of stochastic depth, with the rates of all blocks that are drawn as this one."""
    kind = "pointwise" if layer.kind == "convolution" and set(layer.kernel) == {1} else layer.kind
    text = re.sub(r"(?<=\d)x(?=\d)", TIMES, layer.text)
    lines = textwrap.wrap(text, LETTERS)
    if rates:
        low, high = f"{min(rates):.2g}", f"{max(rates):.2g}"
        lines = [f"{text} {high}"] if low == high else [text, f"{low} to {high}"]
    return Cell(layer.place, kind, "\n".join(lines), layer.inputs)


def side_branches(boxes: Sequence[Cell]) -> dict[int, int]:
    """Boxes that stand beside the others, on the shortcut of an addition: their places, with the addition's."""
    found: dict[int, int] = {}
    by_place = {box.place: box for box in boxes}
    users: dict[int, int] = {}
    for box in boxes:
        for source in box.inputs:
            users[source] = users.get(source, 0) + 1
    for box in boxes:
        if box.kind != "add" or len(box.inputs) != 2:
            continue
        chains: list[tuple[int, list[int]]] = []  # where each begins, and its boxes
        for end in box.inputs:
            source, chain = end, list[int]()
            while source in by_place and users[source] == 1 and len(by_place[source].inputs) == 1:
                chain.append(source)
                source = by_place[source].inputs[0]
            chains.append((source, chain))
        (begin, shortcut), (other, rest) = sorted(chains, key=lambda chain: (chain[0], len(chain[1])))
        if 0 < len(shortcut) <= MOST_ASIDE and (begin < other or len(shortcut) < len(rest)):
            found.update(dict.fromkeys(shortcut, box.place))
    return found


@dataclass(frozen=True)
class Drawn:
    """How much room a block takes: to the right of its left edge, and downwards."""

    width: float
    height: float


def measure(blocks: Sequence[Block]) -> Drawn:
    """The room that :func:`draw_block` takes."""
    return draw_block(None, 0, 0, blocks)


def draw_block(
    axes: Axes | None, x: float, y: float, blocks: Sequence[Block], marks: Mapping[int, Mark] | None = None
) -> Drawn:
    """Draw a block below and to the right of a point.

    Args:
        axes: where; None to measure only.
        x: left edge.
        y: top edge.
        blocks: those that compute the same: the first is drawn.
        marks: how its layers stand to those of another network, by place; "same" without.
    """
    boxes = cells(blocks)
    aside = side_branches(boxes)
    main = [box for box in boxes if box.place not in aside]
    centre, right = x + WIDTH / 2, x + WIDTH
    tops: dict[int, float] = {}
    row = y + STUB
    for box in main:
        tops[box.place] = row
        row += box.height + GAP
    bottom = row - GAP + STUB
    ends = {box.place: tops[box.place] + box.height for box in main}
    lanes: list[list[tuple[float, float]]] = []
    for before, box in pairwise([None, *main]):
        assert box is not None
        for source in box.inputs:
            straight = before is None or source == before.place
            if straight and axes:
                line(axes, centre, y if before is None else ends[before.place], tops[box.place])
            if straight or source in aside:
                continue
            top, goal = ends.get(source, y) + GAP / 2, tops[box.place] + box.height / 2
            at = x + WIDTH + LANE * (free_lane(lanes, top, goal) + 1)
            right = max(right, at)
            if axes:
                line(axes, centre, top - GAP / 2, top)
                route(axes, (centre, top), at, (centre + reach(box), goal))
    if axes:
        line(axes, centre, ends[main[-1].place], bottom)
    groups: dict[int, list[Cell]] = {}
    for box in boxes:
        if box.place in aside:
            groups.setdefault(aside[box.place], []).append(box)
    for join, members in groups.items():
        top, goal = ends.get(members[0].inputs[0], y) + GAP / 2, tops[join] + JOIN / 2
        middle = x + 1.5 * WIDTH + SIDE
        right = max(right, middle + WIDTH / 2)
        place = (top + goal - sum(box.height for box in members) - GAP * (len(members) - 1)) / 2
        if axes:
            route(axes, (centre, top), middle, (centre + JOIN / 2, goal))
        for box in members:
            if axes:
                draw_cell(axes, middle, place, box, (marks or {}).get(box.place, "same"))
            place += box.height + GAP
    if axes:
        for box in main:
            draw_cell(axes, centre, tops[box.place], box, (marks or {}).get(box.place, "same"))
    return Drawn(right - x, bottom - y)


def reach(box: Cell) -> float:
    """From a box's centre to its edge."""
    return JOIN / 2 if box.is_join else WIDTH / 2


def line(axes: Axes, x: float, top: float, bottom: float) -> None:
    """A line downwards."""
    axes.plot([x, x], [top, bottom], color=GREY, linewidth=0.9, zorder=1)


def free_lane(lanes: list[list[tuple[float, float]]], top: float, bottom: float) -> int:
    """The first lane that is free from top to bottom; it is taken."""
    for number in count():
        if number == len(lanes):
            lanes.append([])
        if all(bottom < begin or end < top for begin, end in lanes[number]):
            lanes[number].append((top, bottom))
            return number
    raise AssertionError


def route(axes: Axes, start: tuple[float, float], at: float, end: tuple[float, float]) -> None:
    """A line from the column to a lane beside it, down, and back to the column, with a head."""
    xs, ys = [start[0], at, at], [start[1], start[1], end[1]]
    axes.plot(xs, ys, color=GREY, linewidth=0.9, zorder=1, solid_joinstyle="round")
    arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6}
    axes.annotate("", xy=end, xytext=(at, end[1]), arrowprops=arrow, zorder=1)


def draw_cell(axes: Axes, centre: float, top: float, box: Cell, mark: Mark) -> None:
    """One box, around its centre line."""
    edge, width, dashes = {"same": SAME, "changed": CHANGED, "only": ONLY}[mark]
    middle = top + box.height / 2
    if box.is_join:
        axes.add_patch(Circle((centre, middle), JOIN / 2, facecolor="white", edgecolor=edge, linewidth=width, zorder=3))
        axes.text(centre, middle, box.text, ha="center", va="center", fontsize=FONT + 1, zorder=4)
        return
    axes.add_patch(
        FancyBboxPatch(
            (centre - WIDTH / 2 + 0.03, top + 0.03),
            WIDTH - 0.06,
            box.height - 0.06,
            boxstyle="round,pad=0.03,rounding_size=0.05",
            facecolor=COLOURS.get(box.kind, "white"),
            edgecolor=edge,
            linewidth=width,
            linestyle=dashes,
            zorder=3,
        )
    )
    axes.text(centre, middle, box.text, ha="center", va="center_baseline", fontsize=FONT, zorder=4, parse_math=False)
