"""The figure of channel activity: dead, saturated and alike channels by depth, a line a network."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convnext.explanation.activity import Activity, NetworkActivity
from convnext.explanation.found import shown
from convnext.plotting import BLUE, GREY, ORANGE, STYLE

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", GREY)  # told apart by the colour-blind as well
MARKERS = "osD^vP"
NAMED = 40  # blocks up to which each has its name at the axis


def draw_activity(found: Activity) -> Figure:
    """Three panels by depth: shares of dead and of saturated channels, and how far channels are apart."""
    networks = found.networks
    names = list(dict.fromkeys(network.name for network in networks))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 7.4), layout="constrained")
        dead, saturated, distance = figure.subplots(3, 1, sharex=True)
        for network in networks:
            place = names.index(network.name) % len(COLOURS)
            trained = network.weights == "trained"
            for axes, values in (
                (dead, [100 * block.dead for block in network.blocks]),
                (saturated, [100 * block.saturated for block in network.blocks]),
                (distance, [block.distance for block in network.blocks]),
            ):
                axes.plot(
                    depths(networks, network),
                    values,
                    color=COLOURS[place],
                    marker=MARKERS[place],
                    markerfacecolor=COLOURS[place] if trained else "white",
                    markersize=5,
                    linewidth=1.5,
                    linestyle="-" if trained else "--",
                    label=f"{shown(network.name, 40)}, {network.weights}",
                    clip_on=False,
                )
        for axes, title, label in (
            (dead, "dead: nowhere above a tenth of the block's root mean square", "% of channels"),
            (saturated, "saturated: above the root mean square at 95 % of the positions or more", "% of channels"),
            (distance, "mean cosine distance of channels: 0 all alike, 0.5 nothing in common", "distance"),
        ):
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_ylabel(label)
            axes.grid(alpha=0.25)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.set_ylim(0, max(axes.get_ylim()[1], 0.5 if axes is distance else 1))
        name_blocks(distance, networks)
        handles, labels = dead.get_legend_handles_labels()
        figure.legend(handles, [label.replace("$", r"\\$") for label in labels], loc="outside lower center", ncols=2)
        over = "; ".join(dict.fromkeys(network.images for network in networks))
        behind = ", ".join(dict.fromkeys(block.behind for network in networks for block in network.blocks))
        title = f"activity of the blocks' hidden channels, behind {behind}\n{shown(over, 90)}"
        figure.suptitle(title, fontsize=10, parse_math=False)
        return figure


def depths(networks: Sequence[NetworkActivity], network: NetworkActivity) -> list[float]:
    """Where a network's blocks are: their numbers, or of networks that differ in length their place from 0 to 1."""
    number = len(network.blocks)
    if len({len(other.blocks) for other in networks}) == 1:
        return [float(i) for i in range(number)]
    return [i / max(1, number - 1) for i in range(number)]


def name_blocks(axes: Axes, networks: Sequence[NetworkActivity]) -> None:
    """The blocks' names at the axis, where all networks have the same and they are few."""
    blocks = {tuple(block.block for block in network.blocks) for network in networks}
    if len({len(network.blocks) for network in networks}) > 1:
        axes.set_xlabel("place of the block, from the first (0) to the last (1)")
    elif len(blocks) == 1 and len(networks[0].blocks) <= NAMED:
        (names,) = blocks
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=8, parse_math=False)
        axes.set_xlabel("block")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("block, from 0")
