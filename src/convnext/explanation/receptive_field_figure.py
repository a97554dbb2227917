"""The figure of effective receptive fields: a row a stage, a column a network."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convnext.explanation.found import shown
from convnext.explanation.receptive_field import SHARES, ReceptiveFields, StageField
from convnext.plotting import STYLE

LINES = ("-", "--")  # of the squares that hold the shares
MOST_LETTERS = 30


def draw_fields(found: ReceptiveFields) -> Figure:
    """Each stage's field in each network, with the squares that hold the shares of it."""
    networks = found.networks
    rows = max(len(network.stages) for network in networks)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.9 + 2.5 * len(networks), 1.2 + 2.3 * rows), layout="compressed")
        panels = figure.subplots(rows, len(networks), squeeze=False)
        for row, axes_of_row in enumerate(panels):
            largest = max(
                (network.stages[row].gradient.max().item() for network in networks if row < len(network.stages)),
                default=0.0,
            )
            norm, drawn = PowerNorm(0.25, vmin=0, vmax=largest or 1), None
            for axes, network in zip(axes_of_row, networks, strict=True):
                if row < len(network.stages):
                    stage = network.stages[row]
                    drawn = axes.imshow(
                        stage.gradient.numpy(),
                        cmap="viridis",
                        norm=norm,
                        extent=(0, network.image_size, network.image_size, 0),
                        interpolation="nearest",
                    )
                    draw_squares(axes, stage)
                else:
                    axes.set_visible(False)
            axes_of_row[0].set_ylabel(f"stage {row + 1}\npixels", fontsize=9)
            if drawn is not None:
                bar = figure.colorbar(drawn, ax=list(axes_of_row), shrink=0.9, aspect=18)
                bar.set_label("share of the gradient\n(fourth-root scale)", fontsize=8)
                ticks = [(i / 4) ** 4 * (largest or 1) for i in range(5)]
                bar.set_ticks(ticks, labels=[f"{tick:.0e}" if tick else "0" for tick in ticks], fontsize=7)
        for axes, network in zip(panels[0], networks, strict=True):
            name = shown(network.name, MOST_LETTERS)
            axes.set_title(f"{name}\n{network.weights}\n{squares(network.stages[0])}", fontsize=8, parse_math=False)
        squares_are = ", ".join(f"{100 * share:.0f} % {line}" for share, line in zip(SHARES, ("solid", "dashed")))  # noqa: B905
        figure.suptitle(f"effective receptive fields; squares hold shares of the gradient ({squares_are})", fontsize=9)
        return figure


def draw_squares(axes: Axes, stage: StageField) -> None:
    """The squares, with their sides above the panel."""
    for share, line in zip(SHARES, LINES, strict=True):
        if square := stage.square(share):
            side, top, left = square
            box = Rectangle((left, top), side, side, fill=False, edgecolor="white", linestyle=line, linewidth=1)
            axes.add_patch(box)
    height, width = stage.gradient.shape
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_title(squares(stage), fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=7)


def squares(stage: StageField) -> str:
    """The squares' sides in words."""
    sides = [stage.side(share) for share in SHARES]
    return "no gradient" if None in sides else " and ".join(map(str, sides)) + " px"
