"""A run's curves from its metrics: accuracy, losses and learning rate by epoch, as PNG and SVG."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convnext.plotting import BLUE, GREY, LIGHT_BLUE, ORANGE, STYLE, write_figure

POINTS = 40  # up to so many epochs, each is a point on the line


def write_curves(folder: Path, metrics: list[dict[str, Any]], title: str) -> Path:
    """Write ``curves.png`` and ``curves.svg`` of one epoch or more to a folder; returns the former's path.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    write_figure(draw(metrics, title), folder / "curves")
    return folder / "curves.png"


def draw(metrics: list[dict[str, Any]], title: str) -> Figure:
    """The figure: held-out accuracy with the best epoch marked, training and held-out loss, and the learning rate."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 7), layout="constrained")
        accuracy, losses, rate = panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1.2])
        draw_accuracy(accuracy, metrics)
        curve(losses, metrics, "train_loss", "training (with the recipe's smoothing and mixing)", color=GREY)
        curve(losses, metrics, "loss", "held out", color=BLUE)
        losses.set_ylabel("cross-entropy, nats")
        curve(rate, metrics, "lr", "learning rate", color=GREY)
        rate.set_ylabel("learning rate")
        rate.set_ylim(0, 1.1 * max(row["lr"] for row in metrics) or 1)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        rate.set_xlabel("epoch")
        rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        first, last = metrics[0]["epoch"], metrics[-1]["epoch"]
        margin = max(0.5, 0.02 * (last - first))
        rate.set_xlim(first - margin, last + margin)
        for axes in (accuracy, losses):  # above the axes, where no curve can pass
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0)
        for axes in panels:
            axes.axvline(best_of(metrics)[1], color=GREY, linestyle=":", linewidth=1, zorder=1)
            axes.grid(alpha=0.25)
        figure.align_ylabels(panels)
        size = min(12.0, 900 / max(1, len(title)))  # a long title still fits
        figure.suptitle(title, fontsize=size, fontweight="bold", parse_math=False)
        return figure


def draw_accuracy(axes: Axes, metrics: list[dict[str, Any]]) -> None:
    """Held-out accuracy: top-1, top-5 lighter, and where the weights are averaged that without; the best marked."""
    curve(axes, metrics, "top1", "top-1", color=BLUE)
    curve(axes, metrics, "top5", "top-5", color=LIGHT_BLUE)
    curve(axes, metrics, "model_top1", "top-1 without averaging", color=ORANGE)
    best, epoch = best_of(metrics)
    label = f"best: {best:.2f} % at epoch {epoch}"
    axes.plot(epoch, best, "o", color="black", markersize=8, fillstyle="none", linestyle="none", label=label, zorder=4)
    axes.set_ylabel("held-out accuracy, %")
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])


def best_of(metrics: list[dict[str, Any]]) -> tuple[float, int]:
    """The best top-1 in %, and the first epoch that has it."""
    best = max(metrics, key=lambda row: row["top1"])
    return best["top1"], best["epoch"]


def curve(axes: Axes, metrics: list[dict[str, Any]], name: str, label: str, *, color: str) -> None:
    """One of the metrics by epoch, where it was measured."""
    points = [(row["epoch"], row[name]) for row in metrics if row.get(name) is not None]
    if points:
        marker = "." if len(points) <= POINTS else ""
        axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.5, marker=marker, clip_on=False)
