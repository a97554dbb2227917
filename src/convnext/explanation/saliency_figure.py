"""Pictures of explanations: the photograph, the maps over it, and the most probable classes beside them."""

import re
from itertools import chain, count
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from convnext.explanation.explanations import Explanation
from convnext.explanation.found import shown
from convnext.plotting import BLUE, ORANGE, STYLE

SIDE = 640  # px that a photograph is drawn with at most
DIMMED = 0.3  # of a photograph's contrast is left where the network does not look
MOST_RATIO = 4  # of a picture's sides, up to which it is drawn in its own ratio
LETTERS = 28  # of a class's name


def draw_explanation(explanation: Explanation, network: str) -> Figure:
    """The figure of a picture that was read.

    Args:
        explanation: with its picture and maps.
        network: what to call the network.
    """
    assert explanation.picture is not None
    assert explanation.occlusion is not None
    label = shown(str(explanation.label), LETTERS)
    maps = []
    if explanation.grad_cam is not None:
        text = "share of the largest value"
        maps.append((f"Grad-CAM for {label}", explanation.grad_cam.numpy(), 1.0, text))
    falls = 100 * explanation.occlusion.clamp(min=0).numpy()
    text = "fall of the probability where hidden, points"
    maps.append((f"occlusion for {label}", falls, max(0.1, float(falls.max())), text))
    with matplotlib.rc_context(STYLE):
        width = 3.4 * (1 + len(maps)) + 4.2
        columns, rows = explanation.picture.size
        height = 1.3 + 3.4 * min(1.25, max(0.6, rows / columns))
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.add_gridspec(
            2, len(maps) + 2, width_ratios=[*[1] * (1 + len(maps)), 0.9], height_ratios=[1, 0.04]
        )
        panels = [figure.add_subplot(grid[0, i]) for i in range(len(maps) + 2)]
        photograph(panels[0], explanation, grey=False)
        panels[0].set_title("what the network sees (bright)", fontsize=9)
        for i, (title, values, largest, text) in enumerate(maps, 1):
            axes = panels[i]
            photograph(axes, explanation, grey=True)
            left, top, right, bottom = explanation.seen or (0, 0, 1, 1)
            drawn = axes.imshow(
                values,
                extent=(left, right, bottom, top),
                cmap="viridis",
                vmin=0,
                vmax=largest,
                alpha=0.6,
                interpolation="bilinear",
                aspect=axes.get_aspect(),
            )
            limits(axes, explanation)
            bar = figure.colorbar(drawn, cax=figure.add_subplot(grid[1, i]), orientation="horizontal", label=text)
            bar.locator = MaxNLocator(4)
            bar.update_ticks()
            bar.solids.set_alpha(1)  # pyright: ignore[reportOptionalMemberAccess]
            axes.set_title(title, fontsize=9, parse_math=False)
        draw_bars(panels[-1], explanation)
        heading = f"{shown(network, 50)}: {shown(explanation.path or 'the picture', 70)}"
        figure.suptitle(heading, fontsize=10, parse_math=False)
        return figure


def photograph(axes: Axes, explanation: Explanation, *, grey: bool) -> None:
    """The picture, dimmed where the network does not look; in grey where a map's colours come over it."""
    assert explanation.picture is not None
    assert explanation.seen is not None
    width, height = explanation.picture.size
    small = explanation.picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small.convert("L").convert("RGB") if grey else small).astype(np.float32) / 255
    scales = small.width / width, small.height / height
    left, top, right, bottom = (place * scales[i % 2] for i, place in enumerate(explanation.seen))
    rows, columns = np.arange(small.height) + 0.5, np.arange(small.width) + 0.5
    inside = ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))[None]
    pixels = np.where(inside[..., None], pixels, 1 - DIMMED * (1 - pixels))
    ratio = max(width / height, height / width)
    axes.imshow(pixels, extent=(0, width, height, 0), aspect="equal" if ratio <= MOST_RATIO else "auto")
    axes.set_facecolor("#CCCCCC")  # of borders that the network sees beyond the picture
    limits(axes, explanation)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def limits(axes: Axes, explanation: Explanation) -> None:
    """Show the whole picture, and what the network sees beyond it."""
    assert explanation.picture is not None
    width, height = explanation.picture.size
    left, top, right, bottom = explanation.seen or (0, 0, width, height)
    axes.set_xlim(min(0, left), max(width, right))
    axes.set_ylim(max(height, bottom), min(0, top))


def draw_bars(axes: Axes, explanation: Explanation) -> None:
    """The most probable classes, the explained one in another colour; it is added where it is none of them."""
    rows = [(candidate.label, candidate.probability) for candidate in explanation.top]
    if explanation.label not in dict(rows):
        rows.append((str(explanation.label), explanation.probability or 0.0))
    names = [shown(name, LETTERS) for name, _ in rows]
    values = [100 * value for _, value in rows]
    colours = [ORANGE if name == explanation.label else BLUE for name, _ in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.7)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (value, place), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 118)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("probability, %")
    axes.set_title("classes; the explained one in orange", fontsize=9)


class FigureNames:
    """Names of figures for pictures: safe in every folder, and each given once."""

    def __init__(self) -> None:
        self.given: set[str] = set()

    def of(self, path: str | None) -> str:
        """A name without suffix: the picture's, with its folder's in front or a number behind where it is given."""
        file = Path(path or "picture")
        own = safe(file.stem)
        beside = [f"{safe(file.parent.name)}-{own}"] if file.parent.name else []
        names = chain((own, *beside), (f"{own}-{number}" for number in count(2)))
        name = next(name for name in names if name.casefold() not in self.given)
        self.given.add(name.casefold())
        return name


def safe(name: str) -> str:
    """A name with nothing in it but letters, digits, hyphens and underscores."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:80] or "picture"
