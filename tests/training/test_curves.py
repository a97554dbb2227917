"""The curves of a run: what they show, for one epoch and for hundreds, and the files."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from convnext.errors import RunError
from convnext.training.curves import draw, write_curves

TITLE = "convnext_tiny on flowers"


def metrics(epochs: int, averaged: bool = False) -> list[dict[str, Any]]:
    """Rows as of metrics.jsonl: the best epoch is the last but one, where there are two."""
    rows = []
    for epoch in range(1, epochs + 1):
        top1 = 90 * (1 - math.exp(-5 * epoch / epochs)) - (1 if epoch == epochs > 1 else 0)
        row = {"epoch": epoch, "lr": 4e-3 / epoch, "train_loss": 3 / epoch, "loss": 2 / epoch, "top1": top1}
        row |= {"top5": min(100.0, top1 + 9), "images_per_second": 900.0, "seconds": 2.0}
        rows.append(row | ({"model_top1": top1 + 1} if averaged else {}))
    return rows


def lines(figure: Figure) -> dict[str, list[list[float]]]:
    """The points of every line by its label."""
    found = [line for axes in figure.axes for line in axes.get_lines()]
    return {str(line.get_label()): [list(map(float, pair)) for pair in line.get_xydata()] for line in found}  # pyright: ignore


def labels_out_of_view(axes: Axes) -> list[Text]:
    """Labels of ticks beyond the ends of their axis, which are not drawn."""
    hidden = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:
                hidden += [tick.label1, tick.label2]
    return hidden


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("epochs", [1, 2, 12, 600])
def test_every_metric_is_shown_on_axes_that_fit(epochs: int, averaged: bool) -> None:
    rows = metrics(epochs, averaged)
    figure = draw(rows, TITLE)
    shown = lines(figure)
    named = {"top1": "top-1", "top5": "top-5", "loss": "held out", "lr": "learning rate"}
    named |= {"train_loss": "training (with the recipe's smoothing and mixing)"}
    named |= {"model_top1": "top-1 without averaging"} if averaged else {}
    for name, label in named.items():
        assert shown[label] == [[row["epoch"], row[name]] for row in rows]
    assert ("top-1 without averaging" in shown) == averaged
    best = max(rows, key=lambda row: row["top1"])  # of the weights that are saved, which are the averaged ones
    assert shown[f"best: {best['top1']:.2f} % at epoch {best['epoch']}"] == [[best["epoch"], best["top1"]]]

    accuracy, losses, rate = figure.axes
    units = [axes.get_ylabel() for axes in (accuracy, losses, rate)] + [rate.get_xlabel()]
    assert units == ["held-out accuracy, %", "cross-entropy, nats", "learning rate", "epoch"]
    low, high = rate.get_xlim()
    assert low < 1 <= epochs < high
    assert all(float(tick).is_integer() for tick in rate.get_xticks())
    assert all(0 <= tick <= 100 for tick in accuracy.get_yticks())


@pytest.mark.parametrize("epochs", [1, 2, 12, 600])
@pytest.mark.parametrize(
    "title",
    [
        TITLE,
        pytest.param("timm/" + "deit_tiny_distilled_patch16_224 " * 4, marks=pytest.mark.slow),
        pytest.param("a $ of_{ folder", marks=pytest.mark.slow),
    ],
)
def test_texts_do_not_overlap_and_stay_inside(epochs: int, title: str) -> None:
    figure = draw(metrics(epochs, averaged=True), title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = figure.findobj(Text)
    hidden = [label for axes in figure.axes for label in labels_out_of_view(axes)]
    texts = [text for text in texts if text.get_visible() and text.get_text() and text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    assert len(boxes) > 10
    for (text, box), (other, beside) in itertools.combinations(boxes, 2):
        assert not box.overlaps(beside), f"{text!r} overlaps {other!r}"
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text


def test_files(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    path = write_curves(tmp_path, metrics(12), TITLE)
    image = Image.open(path)
    assert image.width >= 1000
    assert image.convert("L").getextrema() != (255, 255)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "curves.svg"]
    svg = (tmp_path / "curves.svg").read_bytes()
    assert b"<svg" in svg
    write_curves(tmp_path, metrics(12), TITLE)
    assert (tmp_path / "curves.svg").read_bytes() == svg
    assert dict(matplotlib.rcParams) == before
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(RunError, match=r"run/curves\.png"):
        write_curves(tmp_path / "run", metrics(1), TITLE)


def test_matplotlibs_global_state_is_not_loaded() -> None:
    code = "import sys, convnext.training.curves; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
