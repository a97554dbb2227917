"""The paper's figure 2 from a study's results: accuracy and cost of every step, the paper's values beside."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from convnext.plotting import BLUE, GREY, LIGHT_BLUE, ORANGE, STYLE

KEPT, BRANCH, PAPER, REFERENCE = BLUE, LIGHT_BLUE, ORANGE, GREY
BUBBLES = 4.6  # inches of height
RIGHT: dict[str, Any] = {"textcoords": "offset points", "va": "center"}  # a label to the right of its point


def draw(results: dict[str, Any]) -> Figure:
    """The figure of a study: accuracy (where trained), MACs and the paper's accuracy by step; accuracy by MACs."""
    with matplotlib.rc_context(STYLE):
        steps = results["steps"]
        trained = any(step["top1"] for step in steps)
        height = 1.6 + 0.32 * len(steps)
        figure = Figure(figsize=(11.5, height + (BUBBLES if trained else 0)), layout="constrained")
        upper = figure
        if trained:
            upper, lower = figure.subfigures(2, 1, height_ratios=[height, BUBBLES], squeeze=False)[:, 0]
            first, macs, paper = upper.subplots(1, 3, sharey=True, width_ratios=[4, 2.6, 2.6])
            draw_accuracy(first, results)
            draw_bubbles(lower.subplots(), results)
        else:
            first, paper = upper.subplots(1, 2, sharey=True)
            macs = first
        draw_macs(macs, results)
        draw_paper(paper, results)
        upper.legend(loc="outside lower center", ncols=4, frameon=False)
        first.set_yticks(range(len(steps)), [f"{step['title']}  {i}" for i, step in enumerate(steps, 1)])
        first.set_ylim(len(steps) - 0.4, -0.6)  # the first step on top
        figure.suptitle(
            f"From a ResNet to a ConvNeXt: {results['regime']} regime, {results['data']} at {results['image_size']} px",
            fontsize=12,
            fontweight="bold",
        )
        return figure


def draw_accuracy(axes: Axes, results: dict[str, Any]) -> None:
    """Bars of mean accuracy with the deviation and each seed."""
    steps = [(i, step) for i, step in enumerate(results["steps"]) if step["top1"]]
    values = [value for _, step in steps for value in step["top1"]]
    margin = max(0.5, 0.12 * (max(values) - min(values)))
    low = max(0.0, min(values) - 2 * margin)
    for i, step in steps:
        axes.barh(i, step["top1_mean"] - low, left=low, **bar_style(step["kept"]))
        if step["top1_std"] is not None:
            axes.errorbar(step["top1_mean"], i, xerr=step["top1_std"], color="black", capsize=3, linewidth=1)
            axes.plot(step["top1"], [i] * len(step["top1"]), ".", color="black", markersize=3)
        end = max(step["top1_mean"] + (step["top1_std"] or 0), *step["top1"])
        axes.annotate(f"{step['top1_mean']:.2f}", (end, i), (4, 0), **RIGHT)
    axes.set_xlim(low, max(values) + 3 * margin)
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= 100])
    beginning = f"  (the axis begins at {low:.1f})" if low else ""
    axes.set_xlabel(f"held-out top-1 accuracy, %{beginning}")
    seeds = max(len(step["top1"]) for _, step in steps)
    bars = f"mean ± standard deviation and each of {seeds} seeds" if seeds > 1 else "one seed"
    axes.set_title(f"measured here: {bars}", fontsize=9)


def draw_macs(axes: Axes, results: dict[str, Any]) -> None:
    """Bars of multiply-accumulates."""
    largest = max(step["macs"] for step in results["steps"])
    factor, unit = macs_unit(results["steps"])
    for i, step in enumerate(results["steps"]):
        axes.barh(i, step["macs"] / factor, **bar_style(step["kept"]))
        axes.annotate(f"{step['macs'] / factor:.2f}", (step["macs"] / factor, i), (4, 0), **RIGHT)
    for kept, label in ((True, "kept"), (False, "side branch")):
        axes.barh(0, 0, label=label, **bar_style(kept))
    axes.set_xlim(0, 1.22 * largest / factor)
    axes.set_xlabel(f"multiply-accumulates per image, {unit}")
    axes.set_title(f"counted here, at {results['image_size']} px", fontsize=9)


def draw_paper(axes: Axes, results: dict[str, Any]) -> None:
    """The paper's own ImageNet figures."""
    network = "ResNet-200" if results["regime"] == "base" else "ResNet-50"
    for i, step in enumerate(results["steps"]):
        paper = step["paper"]
        axes.errorbar(paper["top1"], i, xerr=paper["top1_std"], color=PAPER, capsize=3, linewidth=1)
        axes.plot(paper["top1"], i, "D", color=PAPER, markerfacecolor=PAPER if step["kept"] else "white", markersize=5)
        text = axes.annotate(f"{paper['top1']:.2f}", (paper["top1"], i), (9, 0), **RIGHT)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    for row, style in zip(results["paper_references"], (":", "--"), strict=True):
        label = f"{row['name']} {row['top1']:.2f}"
        axes.axvline(row["top1"], color=REFERENCE, linestyle=style, linewidth=1, label=label)
    values = [step["paper"]["top1"] for step in results["steps"]] + [row["top1"] for row in results["paper_references"]]
    axes.set_xlim(min(values) - 0.5, max(values) + 1.9)
    axes.set_xlabel("ImageNet-1K top-1 accuracy, %")
    axes.set_title(f"the paper's, {network} regime, 224 px", fontsize=9, color=PAPER)


def draw_bubbles(axes: Axes, results: dict[str, Any]) -> None:
    """Accuracy by multiply-accumulates; a bubble's area is the number of parameters."""
    numbered = [(str(i), step, step["kept"]) for i, step in enumerate(results["steps"], 1)]
    named = [(row["key"].split("/")[-1], row, None) for row in results["references"]]
    rows = [(label, row, kept) for label, row, kept in numbered + named if row["top1"]]
    largest = max(row["params"] for _, row, _ in rows)
    path = [row for _, row, kept in rows if kept]
    factor, unit = macs_unit([row for _, row, _ in rows])
    points = [(row["macs"] / factor, row["top1_mean"]) for row in path]
    axes.plot([x for x, _ in points], [y for _, y in points], color=KEPT, alpha=0.35, zorder=1)
    for label, row, kept in rows:
        point, area = (row["macs"] / factor, row["top1_mean"]), max(40.0, 500 * row["params"] / largest)
        colour = REFERENCE if kept is None else KEPT if kept else BRANCH
        marker = "s" if kept is None else "o"
        axes.scatter(*point, s=area, marker=marker, color=colour, alpha=0.6, edgecolor="white")
        if kept is None:
            axes.annotate(label, point, (0, area**0.5 / 2 + 2), textcoords="offset points", ha="center")
    for label, row in together([(label, row) for label, row, kept in rows if kept is not None]):
        axes.annotate(label, (row["macs"] / factor, row["top1_mean"]), ha="center", va="center", fontsize=8)
    counts = [row["macs"] for _, row, _ in rows]
    if max(counts) > 20 * min(counts):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.margins(0.08, 0.15)
    axes.set_xlabel(f"multiply-accumulates per image, {unit}")
    axes.set_ylabel("held-out top-1 accuracy, %")
    axes.set_title(
        "measured here: accuracy by cost; numbers are the steps above, squares the references, area is parameters "
        f"(largest {largest / 1e6:.2f} M)",
        fontsize=9,
    )
    axes.grid(alpha=0.25)


def together(steps: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """One label for steps whose bubbles overlap: the numbers of all."""
    accuracies = [row["top1_mean"] for _, row in steps]
    close = 0.03 * (max(accuracies) - min(accuracies)) if steps else 0
    labels: list[tuple[str, dict[str, Any]]] = []
    for label, row in steps:
        for i, (other, place) in enumerate(labels):
            if row["macs"] == place["macs"] and abs(row["top1_mean"] - place["top1_mean"]) <= close:
                labels[i] = (f"{other}, {label}", place)
                break
        else:
            labels.append((label, row))
    return labels


def macs_unit(rows: list[dict[str, Any]]) -> tuple[float, str]:
    """The unit of MACs in which the smallest model has a digit before the point."""
    return (1e9, "10⁹") if min(row["macs"] for row in rows) >= 5e8 else (1e6, "10⁶")


def bar_style(kept: bool) -> dict[str, Any]:
    """One colour for the kept path; side branches lighter and hatched."""
    return {"color": KEPT} if kept else {"color": BRANCH, "hatch": "///", "edgecolor": "white"}
