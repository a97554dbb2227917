"""The similarity of two networks' feature maps as a heat map, a row and a column a block."""

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure

from convnext.explanation.similarity import Point, Similarity
from convnext.plotting import STYLE, shortened

CELL, LARGEST = 0.34, 8.0  # inches of a block and, of many, of all
NUMBERED = 12  # blocks a side up to which the cells have their values in them
LETTERS = 40


def draw_similarity(found: Similarity) -> Figure:
    """Draw the heat map: the first network from bottom to top, the second from left to right, as they compute."""
    rows, columns = found.values.shape
    few = max(rows, columns) <= NUMBERED
    cell = min(0.46 if few else CELL, LARGEST / max(rows, columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(cell * columns + 2.9, cell * rows + 1.75), layout="constrained")
        axes = figure.subplots()
        shades = matplotlib.colormaps["viridis"].with_extremes(bad="#BBBBBB")
        image = axes.imshow(found.values.numpy(), cmap=shades, vmin=0, vmax=1, origin="lower", interpolation="nearest")
        names = [shortened(name, LETTERS) for name in found.names]
        label_blocks(axes.yaxis, found.rows, names[0])
        label_blocks(axes.xaxis, found.columns, names[1])
        separate(axes, found.rows, found.columns)
        if few:
            write_values(axes, found)
        bar = figure.colorbar(image, ax=axes, aspect=28, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.set_label("linear CKA: 0 unrelated, 1 the same\nup to rotation and scale", fontsize=8)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        figure.suptitle(heading(found, figure.get_figwidth()), fontsize=10, parse_math=False)
        return figure


def heading(found: Similarity, inches: float) -> str:
    """The title, in lines that fit a figure's width."""
    what = f"{found.images} images: {found.data}" if found.data else f"{found.images} images"
    return "\n".join(["Similarity of feature maps", *textwrap.wrap(what, int(inches / 0.085))])


def label_blocks(axis: Axis, points: Sequence[Point], name: str) -> None:
    """Number the blocks, name the stages below their middles, and the network below these."""
    step = 1 if len(points) <= 40 else 5
    places = [i for i, point in enumerate(points) if point.number % step == 0 or step == 1]
    axis.set_ticks(places, [str(points[i].number) for i in places], fontsize=7)
    axis.set_tick_params(length=2, pad=2)
    stages = sorted({point.stage for point in points})
    middles = [[i for i, point in enumerate(points) if point.stage == stage] for stage in stages]
    axes, is_row = axis.axes, isinstance(axis, YAxis)
    outer = axes.secondary_yaxis(0) if is_row else axes.secondary_xaxis(0)
    ticks = [sum(places) / len(places) for places in middles]
    crowded = len(points) > NUMBERED and min(map(len, middles)) < 2
    names = [str(stage) if crowded else f"stage {stage}" for stage in stages]
    if is_row:
        outer.set_yticks(ticks, names, rotation=0 if crowded else 90, va="center", fontsize=7.5)
    else:
        outer.set_xticks(ticks, names, fontsize=7.5)
    outer.tick_params(length=0, pad=13 if not is_row else 14)
    outer.spines[:].set_visible(False)
    what = f"{name}: block, stage"
    (outer.set_ylabel if is_row else outer.set_xlabel)(what, fontsize=9, parse_math=False)


def separate(axes: Axes, rows: Sequence[Point], columns: Sequence[Point]) -> None:
    """White lines between the stages."""
    for points, draw in ((rows, axes.axhline), (columns, axes.axvline)):
        for i, point in enumerate(points[:-1]):
            if point.is_end:
                draw(i + 0.5, color="white", linewidth=1.2)
    axes.spines[:].set_visible(False)


def write_values(axes: Axes, found: Similarity) -> None:
    """Each cell's value in it, light on dark and dark on light."""
    for row, values in enumerate(found.values.tolist()):
        for column, value in enumerate(values):
            text = f"{value:.2f}" if value == value else "-"
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
