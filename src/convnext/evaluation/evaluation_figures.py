"""Pictures of an evaluation: the confusion matrix, and the reliability diagram."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convnext.plotting import BLUE, GREY, LIGHT_BLUE, ORANGE, STYLE, shortened
from convnext.training.metrics import CalibrationBin

NAMED = 50  # classes up to which each has its name at the axes
COUNTED = 20  # classes up to which each cell has its count in it
LETTERS = 24  # of a class name


def draw_confusion(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """The confusion matrix: a row a class, a column a prediction, the colour the part of the row.

    Args:
        counts: (classes, classes), images of the row's class that were taken for the column's.
        classes: their names; from 51 classes on, numbers at the axes stand for them.
        title: above the picture; may have several lines.
    """
    number = len(classes)
    side = 3.2 + 0.3 * min(number, COUNTED) + 0.18 * (number - COUNTED) * (number > COUNTED) if number <= NAMED else 9.5
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side + 1.2, side + 0.7), layout="constrained")
        axes = figure.subplots()
        parts = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
        # Rare mistakes among many classes are what there is to see: the scale is stretched towards zero.
        norm = PowerNorm(1.0 if number <= COUNTED else 0.4, vmin=0, vmax=100)
        image = axes.imshow(enlarged(parts), cmap="Blues", norm=norm, interpolation="nearest")
        if number <= COUNTED:
            write_counts(axes, counts, parts)
        if number <= NAMED:
            names = [shortened(name, LETTERS) for name in classes]
            size = 9 if number <= COUNTED else 7
            axes.set_yticks(range(number), names, parse_math=False, fontsize=size)
            axes.set_xticks(range(number), names, parse_math=False, fontsize=size, rotation=90)
            axes.set_xlabel("predicted class")
            axes.set_ylabel("true class")
        else:
            for axis, what in ((axes.xaxis, "predicted class"), (axes.yaxis, "true class")):
                axis.set_major_locator(MaxNLocator(10, integer=True))
                axis.set_label_text(f"{what} (its place in per_class.csv, from 0)")
        axes.spines[["top", "right"]].set_visible(True)
        ticks = [0, 20, 40, 60, 80, 100] if number <= COUNTED else [0, 1, 5, 10, 25, 50, 75, 100]
        label = "% of the true class's images"
        if reach := reach_of(number):
            label += f"; each cell is drawn over its {reach} neighbours"
        figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, ticks=ticks, label=label)
        axes.set_title(title, fontsize=10, parse_math=False)
        return figure


def enlarged(parts: np.ndarray) -> np.ndarray:
    """The picture of a matrix; of hundreds of classes, each cell is drawn larger than it is, or none would be seen."""
    reach = reach_of(len(parts))
    return F.max_pool2d(torch.from_numpy(parts)[None], 2 * reach + 1, stride=1, padding=reach)[0].numpy()


def reach_of(number: int) -> int:
    """Over how many neighbours on each side a cell is drawn, of a matrix of so many classes."""
    return round(number / 400)


def write_counts(axes: Axes, counts: np.ndarray, parts: np.ndarray) -> None:
    """Each cell's count in it, light on dark and dark on light; nothing for zero."""
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if parts[row, column] > 55 else "black"
            axes.text(column, row, f"{count}", color=colour, ha="center", va="center", fontsize=7 if count > 999 else 8)


def draw_reliability(bins: Sequence[CalibrationBin], ece: float, title: str) -> Figure:
    """Accuracy by confidence, with what it would be were the confidence right; below, how many images each bin has."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 6.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        width = bins[0].high - bins[0].low
        filled = [part for part in bins if part.images]
        middles = [(part.low + part.high) / 2 for part in filled]
        accuracies = [part.accuracy for part in filled]
        confidences = [part.confidence for part in filled]
        upper.bar(middles, accuracies, width, color=LIGHT_BLUE, edgecolor="white", label="accuracy")
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="confidence = accuracy")
        upper.vlines(
            confidences, accuracies, confidences, color=ORANGE, linewidth=2, label="gap at the mean confidence"
        )
        upper.plot(confidences, accuracies, "o", color=BLUE, markersize=4)
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("part that is right")
        upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)
        lower.bar(middles, [part.images for part in filled], width, color=BLUE, edgecolor="white")
        lower.set_ylabel("images")
        lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        lower.set_xlabel("confidence: probability of the predicted class")
        figure.align_ylabels()
        heading = f"{title}, expected calibration error {ece:.4f} over {len(bins)} bins"
        figure.suptitle(heading, fontsize=10, parse_math=False)
        return figure
