"""The figure of two networks: both in one line each, and below their blocks beside each other, what differs marked."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convnext.evaluation.evaluation_figures import shortened
from convnext.explanation.architecture import map_size
from convnext.explanation.architecture_figure import (
    BETWEEN,
    EDGE,
    HEADING,
    INSIDE,
    LEAST_WIDTH,
    MARGIN,
    PAGE,
    STAGE,
    arrow,
    canvas,
    draw_frame,
    draw_heading,
)
from convnext.explanation.block_drawing import CHANGED, ONLY, WIDTH, draw_block, measure
from convnext.explanation.difference import Difference, Pair, entry, marks, typical, widthless
from convnext.explanation.operator_names import TIMES
from convnext.explanation.structure import Block, Part
from convnext.plotting import GREY, ORANGE, STYLE
from convnext.quantities import quantity

STRIP = 0.78  # a network in one line
PANEL_HEADING, LEGEND = 0.66, 0.32  # what stands above two blocks, and above all of them
MOST_STAGES = 4  # whose blocks are drawn
LETTERS = 19  # of a network's name above its block


Sides = Sequence[list[Block] | None]


@dataclass(frozen=True)
class Panel:
    """Blocks of two networks that are drawn beside each other; None for one that has none."""

    title: str
    sides: Sides

    @property
    def drawn(self) -> list[list[Block]]:
        """The blocks that are there."""
        return [side for side in self.sides if side]

    @property
    def width(self) -> float:
        """The room that it takes, its frame included."""
        return sum(side_width(side) for side in self.sides) + 3 * INSIDE

    @property
    def depth(self) -> float:
        """The room that the longer block takes downwards."""
        return max(measure(side).height for side in self.drawn)


def side_width(side: list[Block] | None) -> float:
    """The room that one network's blocks take."""
    return measure(side).width if side else WIDTH


def draw_difference(found: Difference) -> Figure:
    """Draw two networks: the parts of each with their maps and costs, then blocks beside each other."""
    lines = in_lines(panels(found))
    strips = len(found.pairs) * (WIDTH + BETWEEN)
    width = 2 * MARGIN - BETWEEN + max(strips, *(sum(panel.width + BETWEEN for panel in line) for line in lines))
    depths = [max(panel.depth for panel in line) for line in lines]
    height = 2 * MARGIN + 2 * (HEADING + STRIP + BETWEEN) + LEGEND
    height += sum(PANEL_HEADING + depth + INSIDE + BETWEEN for depth in depths) - BETWEEN
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(max(width, LEAST_WIDTH), height)
        y = MARGIN
        for place, shown in enumerate((found.first, found.second)):
            draw_heading(axes, MARGIN, y, shown)
            draw_strip(axes, y + HEADING, found.pairs, place)
            y += HEADING + STRIP + BETWEEN
        draw_legend(axes, MARGIN, y)
        y += LEGEND
        for line, depth in zip(lines, depths, strict=True):
            x = MARGIN
            for panel in line:
                draw_panel(axes, x, y, depth, panel, short_names(found))
                x += panel.width + BETWEEN
            y += PANEL_HEADING + depth + INSIDE + BETWEEN
        return figure


def panels(found: Difference) -> list[Panel]:
    """What is drawn beside each other: the stems, a block of the stages, what leads from stage to stage, the heads.

    Stages whose blocks differ from each other's in nothing but width share a panel, which shows the first of them.
    """
    stages: dict[Any, list[Pair]] = {}
    for pair in found.pairs:
        if pair.is_stage:
            blocks = [typical(part)[0] if part else None for part in (pair.first, pair.second)]
            stages.setdefault(tuple(widthless(block) if block else None for block in blocks), []).append(pair)
    rows = [Panel("stem", whole(pair)) for pair in found.pairs if pair.place[0] == 0]
    for pairs in list(stages.values())[:MOST_STAGES]:
        first = pairs[0]
        sides = [typical(part) if part else None for part in (first.first, first.second)]
        others = [str(pair.place[1]) for pair in pairs[1:]]
        also = f" (also of {', '.join(others)}, in other widths)" if others else ""
        rows.append(Panel(f"block of {first.title}{also}", sides))
    entries = entry(found, 2)
    if any(entries):
        rows.append(Panel("into stage 2", entries))
    return rows + [Panel("head", whole(pair)) for pair in found.pairs if pair.place[0] == 2]


def whole(pair: Pair) -> Sides:
    """The blocks of a stem or a head, which has one."""
    return [list(part.blocks) if part else None for part in (pair.first, pair.second)]


def in_lines(shown: Sequence[Panel]) -> list[list[Panel]]:
    """Panels in lines that are no wider than the page."""
    lines: list[list[Panel]] = [[]]
    for panel in shown:
        if lines[-1] and sum(other.width + BETWEEN for other in lines[-1]) + panel.width > PAGE:
            lines.append([])
        lines[-1].append(panel)
    return lines


def draw_strip(axes: Axes, y: float, pairs: Sequence[Pair], place: int) -> None:
    """One network's parts from left to right; each fact that the other network's part does not share is marked."""
    x, before = MARGIN, False
    for pair in pairs:
        part, other = (pair.first, pair.second) if place == 0 else (pair.second, pair.first)
        if part is None:
            axes.plot([x - BETWEEN, x + WIDTH], [y + STRIP / 2] * 2, color="black", linewidth=1.2)
        else:
            if before:
                arrow(axes, x - BETWEEN, x, y + STRIP / 2)
            draw_summary(axes, x, y, part, other)
        before = True
        x += WIDTH + BETWEEN


def draw_summary(axes: Axes, x: float, y: float, part: Part, other: Part | None) -> None:
    """One part's title, depth, map and costs."""
    colour = STAGE if part.kind == "stage" else "white"
    draw_frame(axes, x, y, WIDTH, STRIP, colour, ORANGE if other is None else EDGE)
    others = facts(other) if other else [""] * 3
    axes.text(x + 0.07, y + 0.06, part.title, fontsize=8.5, weight="bold", va="top")
    if part.kind == "stage":
        depth = f"{TIMES} {len(part.blocks)}"
        differs = other is None or len(other.blocks) != len(part.blocks)
        write(axes, x + WIDTH - 0.07, y + 0.06, depth, differs, ha="right")
    for row, (fact, theirs) in enumerate(zip(facts(part), others, strict=True)):
        write(axes, x + 0.07, y + 0.24 + 0.165 * row, fact, fact != theirs)


def facts(part: Part) -> list[str]:
    """A part's map and costs."""
    return [map_size(part.shape), f"{quantity(part.params)} params", f"{quantity(part.macs)} MACs"]


def write(axes: Axes, x: float, y: float, text: str, differs: bool, ha: str = "left") -> None:
    """A fact, in the colour of what differs where it does."""
    weight, colour = ("bold", ORANGE) if differs else ("normal", "black")
    axes.text(x, y, text, fontsize=7.5, va="top", ha=ha, weight=weight, color=colour)


def draw_legend(axes: Axes, x: float, y: float) -> None:
    """What the marks mean."""
    for style, text in ((CHANGED, "another width, kernel or function"), (ONLY, "only in this network")):
        edge, line, dashes = style
        axes.add_patch(
            Rectangle((x, y + 0.03), 0.3, 0.14, facecolor="white", edgecolor=edge, linewidth=line, linestyle=dashes)
        )
        axes.text(x + 0.38, y + 0.1, text, fontsize=8, va="center")
        x += 0.55 + 0.062 * len(text)
    axes.text(x, y + 0.1, "bold", fontsize=8, va="center", color=ORANGE, weight="bold")
    axes.text(x + 0.35, y + 0.1, "differs", fontsize=8, va="center")


def short_names(found: Difference) -> tuple[str, str]:
    """The networks' names without what stands before the last slash, where that tells them apart."""
    names = (found.first.name, found.second.name)
    first, second = (name.rstrip("/").rpartition("/")[2] for name in names)
    return (first, second) if first != second else names


def in_two_lines(name: str) -> str:
    """A name that fits above a block: a long one is divided at a sign that divides words."""
    if len(name) <= LETTERS:
        return name
    cut = 1 + max(name.rfind(sign, 0, LETTERS) for sign in "_-. ")
    return f"{name[:cut]}\n{shortened(name[cut:], LETTERS)}" if cut else shortened(name, LETTERS)


def draw_panel(axes: Axes, x: float, y: float, depth: float, panel: Panel, names: tuple[str, str]) -> None:
    """A title, and below it the blocks of both networks, marked where they differ."""
    draw_frame(axes, x, y, panel.width, PANEL_HEADING + depth + INSIDE, STAGE)
    title = "\n".join(textwrap.wrap(panel.title, int(panel.width / 0.066)))
    axes.text(x + INSIDE, y + 0.07, title, fontsize=8.5, weight="bold", va="top", linespacing=1.05)
    marked = marks(panel.drawn[0][0], panel.drawn[1][0]) if len(panel.drawn) == 2 else ({}, {})
    at = x + INSIDE
    for name, side, mark in zip(names, panel.sides, marked, strict=True):
        middle = at + WIDTH / 2
        axes.text(middle, y + PANEL_HEADING - 0.02, in_two_lines(name), fontsize=8, ha="center", va="bottom")
        if side:
            draw_block(axes, at, y + PANEL_HEADING, side, mark)
        else:
            axes.text(middle, y + PANEL_HEADING + 0.25, "none", fontsize=8, ha="center", color=GREY)
        at += side_width(side) + INSIDE
