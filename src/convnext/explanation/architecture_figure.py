"""The figure of one model, or of two with what differs: parts from left to right, blocks from top to bottom.

All lengths are inches; y grows downwards.
"""

import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from convnext.explanation.architecture import Architecture, Block, Layer, Part, size, totals
from convnext.explanation.difference import Mark, marks, paired_parts
from convnext.plotting import GREY, ORANGE, STYLE

BOX, LINE, GAP, LANE = 1.24, 0.235, 0.1, 0.16  # width and height of a layer's box; between two boxes; beside them
MARGIN, BETWEEN, STRIP, HEADING, TITLE = 0.15, 0.2, 0.78, 0.5, 0.62
COLORS = {"convolution": "#8FC1E3", "linear": "#D3E6F3", "norm": "#F2EBB5", "activation": "#C9E6C6", "pool": "#DCDCDC"}
OUTLINES: dict[Mark, Any] = {
    "same": {"edgecolor": GREY, "linewidth": 0.6},
    "changed": {"edgecolor": ORANGE, "linewidth": 1.6, "linestyle": (0, (2.5, 1.2))},
    "only": {"edgecolor": ORANGE, "linewidth": 1.8},
}
Panel = tuple[str, list[Block | None]]


def draw_architecture(*models: Architecture) -> Figure:
    """Draw the parts of each model with their costs, and below them a block of each kind, side by side."""
    pairs = paired_parts(models)
    shown = panels(pairs)
    widths = [sum(block_width(block) + BETWEEN for block in blocks) + BETWEEN for _, blocks in shown]
    depth = max(block_height(block) for _, blocks in shown for block in blocks if block)
    width = 2 * MARGIN + max(sum(widths) + BETWEEN * (len(shown) - 1), (BOX + BETWEEN) * len(pairs) - BETWEEN, 6.0)
    strip = HEADING + STRIP + BETWEEN
    height = 2 * MARGIN + strip * len(models) + 0.32 * (len(models) - 1) + TITLE + depth + BETWEEN
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        y = MARGIN
        for number, model in enumerate(models):
            draw_strip(axes, y, model, [(parts[number], parts[-1 - number]) for _, parts in pairs])
            y += strip
        if len(models) > 1:
            draw_legend(axes, y)
            y += 0.32
        x = MARGIN
        for panel, panel_width in zip(shown, widths, strict=True):
            draw_panel(axes, x, y, (panel_width, TITLE + depth + BETWEEN), panel, models)
            x += panel_width + BETWEEN
    return figure


def panels(pairs: list[tuple[str, list[Part | None]]]) -> list[Panel]:
    """Stem, a block for all stages whose blocks differ in width alone, the way into the first such stage, head."""
    stem, *middle, head = pairs
    blocks: dict[Any, tuple[list[str], list[Block | None]]] = {}
    entries: dict[str, list[Block | None]] = {}
    for title, parts in middle:
        typical = [part.groups()[0][1] if part else None for part in parts]
        if title.startswith("between"):
            entries[title[-1]] = typical
            continue
        functions = tuple(
            block and tuple(layer.function for layer in block.layers if layer.kind != "drop") for block in typical
        )
        blocks.setdefault(functions, ([], typical))[0].append(title[-1])
        firsts = [part and part.blocks[0] for part in parts]
        if title != "stage 1" and any(one is not other for one, other in zip(firsts, typical, strict=True)):
            known = entries.get(title[-1], [None] * len(parts))
            entries[title[-1]] = [
                old or (first if first is not block else None)
                for old, first, block in zip(known, firsts, typical, strict=True)
            ]
    found = [("stem", [part.blocks[0] if part else None for part in stem[1]])]
    found += [(f"block of stage {', '.join(stages)}", typical) for stages, typical in blocks.values()]
    found += [(f"into stage {stage}", first) for stage, first in list(entries.items())[:1]]
    return [*found, ("head", [part.blocks[0] if part else None for part in head[1]])]


def block_width(block: Block | None) -> float:
    """The width of a block's boxes and of the lines beside them."""
    kinds = {layer.on_shortcut for layer in block.layers} if block else set()
    return BOX + (LANE + BOX if True in kinds else LANE if block and block.module else 0.0)


def block_height(block: Block) -> float:
    """The height of a block's boxes and of the lines that lead in and out."""
    return sum(LINE + GAP for layer in block.layers if not layer.on_shortcut) + 3 * GAP


def draw_strip(axes: Axes, y: float, model: Architecture, parts: list[tuple[Part | None, Part | None]]) -> None:
    """A model in one line: name, costs, and each part with its output size and costs."""
    costs = totals(model.layers)
    axes.text(MARGIN, y, model.name, fontsize=13, weight="bold", va="top", parse_math=False)
    text = f"{costs['params']:,} parameters, {costs['macs']:,} multiply-accumulates (MACs) for an image of "
    axes.text(MARGIN, y + 0.25, text + size(model.image_size), fontsize=9, va="top")
    x, y = MARGIN, y + HEADING
    for number, (part, other) in enumerate(parts):
        if number:
            style = {"arrowstyle": "-|>" if part else "-", "color": "black", "shrinkA": 0, "shrinkB": 0}
            axes.annotate(
                "", xy=(x if part else x + BOX, y + STRIP / 2), xytext=(x - BETWEEN, y + STRIP / 2), arrowprops=style
            )
        if part:
            frame(axes, x, y, BOX, STRIP, ORANGE if other is None else "#BBBBBB", part.kind == "stage")
            depth = [f"\N{MULTIPLICATION SIGN} {len(one.blocks)}" if one else "" for one in (part, other)]
            axes.text(
                x + 0.07,
                y + 0.06,
                part.title.replace("between stages", "into").split(" and")[0]
                if part.kind != "downsampling"
                else "downsampling",
                fontsize=8.5,
                weight="bold",
                va="top",
            )
            if part.kind == "stage":
                fact(axes, x + BOX - 0.07, y + 0.06, depth[0], depth[0] != depth[1], ha="right")
            for row, (ours, theirs) in enumerate(
                zip(part.summary(), other.summary() if other else [""] * 3, strict=True)
            ):
                fact(axes, x + 0.07, y + 0.24 + 0.165 * row, ours, ours != theirs)
        x += BOX + BETWEEN


def fact(axes: Axes, x: float, y: float, text: str, is_different: bool, ha: str = "left") -> None:
    """A figure of one part, marked where the other model has another."""
    color, weight = (ORANGE, "bold") if is_different else ("black", "normal")
    axes.text(x, y, text, fontsize=7.5, va="top", ha=ha, color=color, weight=weight)


def frame(axes: Axes, x: float, y: float, width: float, height: float, edge: str, is_filled: bool) -> None:
    """A frame with round corners."""
    inner = (x + 0.04, y + 0.04), width - 0.08, height - 0.08
    color, style = "#F4F4F4" if is_filled else "white", "round,pad=0.04,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch(*inner, boxstyle=style, facecolor=color, edgecolor=edge, linewidth=0.9, zorder=0))


def draw_legend(axes: Axes, y: float) -> None:
    """What outlines and bold figures mean."""
    x = MARGIN
    legend: dict[Mark, str] = {"changed": "another width, kernel or function", "only": "only in this model"}
    for mark, text in legend.items():
        draw_box(axes, x + 0.15, y + 0.02, Layer(0, "", "", "", (), ()), mark, 0.3, 0.16)
        axes.text(x + 0.38, y + 0.1, text, fontsize=8, va="center")
        x += 0.6 + 0.062 * len(text)
    axes.text(x, y + 0.1, "bold", fontsize=8, va="center", color=ORANGE, weight="bold")
    axes.text(x + 0.35, y + 0.1, "differs", fontsize=8, va="center")


def draw_panel(
    axes: Axes, x: float, y: float, extent: tuple[float, float], panel: Panel, models: tuple[Architecture, ...]
) -> None:
    """A title, and below it the block of each model."""
    title, blocks = panel
    frame(axes, x, y, *extent, "#BBBBBB", True)
    axes.text(x + 0.1, y + 0.07, title, fontsize=8.5, weight="bold", va="top")
    for number, block in enumerate(blocks):
        x += BETWEEN
        if len(models) > 1:
            axes.text(
                x + BOX / 2,
                y + TITLE - 0.05,
                models[number].name.rpartition("/")[2],
                fontsize=7,
                ha="center",
                va="bottom",
            )
        other = blocks[-1 - number]
        if block:
            draw_block(axes, x, y + TITLE, block, marks(block, other) if other else {})
        else:
            axes.text(x + BOX / 2, y + TITLE + 0.25, "none", fontsize=8, ha="center", color=GREY)
        x += block_width(block)


def draw_block(axes: Axes, x: float, y: float, block: Block, marked: dict[int, Mark]) -> None:
    """The layers of a block from top to bottom, its shortcut as a line beside them."""
    column = [layer for layer in block.layers if not layer.on_shortcut]
    shortcut = [layer for layer in block.layers if layer.on_shortcut]
    center, bottom = x + BOX / 2, y + block_height(block)
    axes.plot([center, center], [y, bottom], color=GREY, linewidth=0.9, zorder=1)
    for row, layer in enumerate(column):
        top = y + 1.5 * GAP + row * (LINE + GAP)
        draw_box(axes, center, top, layer, marked.get(layer.place, "same"), BOX, LINE)
        if layer.kind == "add":
            lane, end = (x + 1.5 * BOX + LANE if shortcut else x + BOX + LANE), top + LINE / 2
            axes.plot([center, lane, lane], [y + 0.5 * GAP, y + 0.5 * GAP, end], color=GREY, linewidth=0.9, zorder=1)
            style = {
                "arrowstyle": "-|>",
                "color": GREY,
                "linewidth": 0.9,
                "shrinkA": 0,
                "shrinkB": 0,
                "mutation_scale": 6,
            }
            axes.annotate("", xy=(center + LINE / 2, end), xytext=(lane, end), arrowprops=style, zorder=1)
            middle = (y + end - len(shortcut) * (LINE + GAP)) / 2
            for number, beside in enumerate(shortcut):
                mark = marked.get(beside.place, "same")
                draw_box(axes, lane, middle + number * (LINE + GAP), beside, mark, BOX, LINE)


def draw_box(axes: Axes, center: float, top: float, layer: Layer, mark: Mark, width: float, height: float) -> None:
    """One layer: a circle for the addition, a box for all others."""
    middle = top + height / 2
    if layer.kind == "add":
        axes.add_patch(Circle((center, middle), height * 0.36, facecolor="white", zorder=3, **OUTLINES[mark]))
    else:
        inner = (center - width / 2 + 0.03, top + 0.03), width - 0.06, height - 0.06
        style = {"boxstyle": "round,pad=0.03,rounding_size=0.05", "facecolor": COLORS.get(layer.family, "white")}
        axes.add_patch(FancyBboxPatch(*inner, zorder=3, **style, **OUTLINES[mark]))
    text = re.sub(r"(?<=\d)x(?=\d)", "\N{MULTIPLICATION SIGN}", layer.text)
    axes.text(center, middle, text, ha="center", va="center_baseline", fontsize=7.5, zorder=4)
