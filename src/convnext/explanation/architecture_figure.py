"""The figure of one network: its parts from left to right, each with its map, its costs and its blocks."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from convnext.explanation.architecture import Architecture, map_size
from convnext.explanation.block_drawing import WIDTH, draw_block, measure
from convnext.explanation.operator_names import TIMES
from convnext.explanation.structure import Block, Part
from convnext.plotting import BLUE, GREY, ORANGE, STYLE
from convnext.quantities import quantity

MARGIN, BETWEEN, INSIDE = 0.15, 0.2, 0.1  # around the figure; between two parts; between a part's frame and its blocks
HEADER = 1.02  # a part's title, map and costs
LABEL = 0.2  # what stands above a block
HEADING = 0.5  # the figure's
STAGE, EDGE = "#F4F4F4", "#BBBBBB"  # what a stage is filled with; what frames are drawn in
PAGE, LEAST_WIDTH = 16.0, 7.0  # a wider network takes several rows


def draw_architecture(shown: Architecture) -> Figure:
    """Draw a network: what comes in on the left, what goes out on the right, each block's layers from top to bottom."""
    rows = in_rows(shown.structure.parts)
    depths = [max(measure(group).height for part in row for group in drawn_blocks(part)) for row in rows]
    width = 2 * MARGIN + max(sum(map(part_width, row)) + BETWEEN * (len(row) - 1) for row in rows)
    frames = [HEADER + LABEL + depth + INSIDE for depth in depths]
    with matplotlib.rc_context(STYLE):
        height = 2 * MARGIN + HEADING + sum(frames) + BETWEEN * (len(rows) - 1)
        figure, axes = canvas(max(width, LEAST_WIDTH), height)
        draw_heading(axes, MARGIN, MARGIN, shown)
        y = MARGIN + HEADING
        for number, (row, depth, frame) in enumerate(zip(rows, depths, frames, strict=True)):
            x = MARGIN
            for part in row:
                if part is not row[0]:
                    arrow(axes, x - BETWEEN, x, y + 0.3)
                wide = part_width(part)
                draw_part(axes, x, y, wide, depth, part, shown)
                x += wide + BETWEEN
            if number + 1 < len(rows):
                arrow(axes, x - BETWEEN, x - BETWEEN + MARGIN, y + 0.3)
                arrow(axes, 0, MARGIN, y + frame + BETWEEN + 0.3)
            y += frame + BETWEEN
        return figure


def in_rows(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts in as few rows as the page's width allows, about as wide each."""
    whole = sum(part_width(part) + BETWEEN for part in parts)
    share = whole / math.ceil(whole / PAGE)
    rows: list[list[Part]] = [[]]
    width = 0.0
    for part in parts:
        more = part_width(part) + BETWEEN
        if rows[-1] and width + more / 2 > share * len(rows):
            rows.append([])
        rows[-1].append(part)
        width += more
    return rows


def draw_heading(axes: Axes, x: float, y: float, shown: Architecture) -> None:
    """A network's name and whole cost."""
    found = shown.structure
    axes.text(x, y, shown.name, fontsize=13, weight="bold", va="top", parse_math=False)
    unused = f" ({sum(found.unused.values()):,} not used)" if found.unused else ""
    text = f"{found.params:,} parameters{unused}, {found.macs:,} multiply-accumulates (MACs) for an image of "
    axes.text(x, y + 0.25, text + TIMES.join(map(str, found.image_size)), fontsize=9, va="top")


def arrow(axes: Axes, start: float, end: float, y: float) -> None:
    """An arrow to the right."""
    style = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(end - 0.01, y), xytext=(start + 0.01, y), arrowprops=style)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches, and axes over all of it in which a unit is an inch and y grows downwards."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def draw_frame(axes: Axes, x: float, y: float, width: float, height: float, colour: str, edge: str = EDGE) -> None:
    """A frame with round corners."""
    box = "round,pad=0.04,rounding_size=0.07"
    inner = ((x + 0.04, y + 0.04), width - 0.08, height - 0.08)
    axes.add_patch(FancyBboxPatch(*inner, boxstyle=box, facecolor=colour, edgecolor=edge, linewidth=0.9, zorder=0))


def drawn_blocks(part: Part) -> list[list[Block]]:
    """A part's blocks that are drawn: one for each group that computes the same, the one with the most layers first."""
    return [sorted(group, key=lambda block: -len(block.layers)) for group in part.distinct()]


def part_width(part: Part) -> float:
    """The room that a part takes, its frame included."""
    blocks = [measure(group).width for group in drawn_blocks(part)]
    return max(sum(blocks) + INSIDE * (len(blocks) + 1) + 0.06, WIDTH + 2 * INSIDE)


def draw_part(axes: Axes, x: float, y: float, width: float, depth: float, part: Part, shown: Architecture) -> None:
    """A part's frame, header and blocks."""
    colour = STAGE if part.kind == "stage" else "white"
    draw_frame(axes, x, y, width, HEADER + LABEL + depth + INSIDE, colour)
    draw_header(axes, x + INSIDE, y + 0.08, width - 2 * INSIDE, part, shown)
    at = x + INSIDE
    top = y + HEADER + LABEL
    for group in drawn_blocks(part):
        if part.kind == "stage":
            axes.text(at + WIDTH / 2, top - 0.03, count_text(part, group), ha="center", va="bottom", fontsize=8)
        room = draw_block(axes, at, top, group)
        at += room.width + INSIDE


def draw_header(axes: Axes, x: float, y: float, width: float, part: Part, shown: Architecture) -> None:
    """A part's title, map and costs, each cost with a bar of its share of the network's."""
    depth = f"{len(part.blocks)} blocks" if len(part.blocks) > 1 else ""
    axes.text(x, y, part.title, fontsize=10, weight="bold", va="top")
    axes.text(x + 0.68, y + 0.015, depth, fontsize=9, va="top")
    axes.text(x, y + 0.19, map_size(part.shape), fontsize=8.5, va="top")
    found = shown.structure
    rows = ((part.params, found.params, "params", BLUE), (part.macs, found.macs, "MACs", ORANGE))
    for row, (value, total, unit, colour) in enumerate(rows):
        top = y + 0.39 + 0.27 * row
        share = value / total if total else 0.0
        axes.text(x, top, f"{quantity(value)} {unit}", fontsize=7.5, va="top")
        axes.text(x + min(width, WIDTH), top, f"{100 * share:.0f} %", fontsize=7.5, va="top", ha="right", color=GREY)
        whole = min(width, WIDTH)
        axes.add_patch(Rectangle((x, top + 0.155), whole, 0.05, facecolor="#DDDDDD", zorder=1))
        axes.add_patch(Rectangle((x, top + 0.155), whole * share, 0.05, facecolor=colour, zorder=2))


def count_text(part: Part, group: list[Block]) -> str:
    """How many blocks are like this one, and which."""
    if len(group) == len(part.blocks):
        return f"{len(group)} {TIMES}" if len(group) > 1 else ""
    numbers = sorted(part.blocks.index(block) + 1 for block in group)
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{len(numbers)} {TIMES}: blocks {numbers[0]} to {numbers[-1]}"
    if len(numbers) < 5:
        return f"{len(numbers)} {TIMES}: blocks {', '.join(map(str, numbers))}"
    return f"{len(numbers)} {TIMES}: blocks {', '.join(map(str, numbers[:3]))}, ..."
