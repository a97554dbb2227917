"""What an evaluation writes and shows: readable with 2 classes and with 1000, whole, and the same twice."""

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from rich.console import Console
from torch import nn

from convnext.data import MemoryImages
from convnext.data.held_out import HeldOut
from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError
from convnext.evaluation.evaluating import Evaluation
from convnext.evaluation.evaluation_figures import draw_confusion, draw_reliability, shortened
from convnext.evaluation.evaluation_report import FILES, default_folder, document, table, write_evaluation
from convnext.inference.model import Model
from convnext.plotting import render
from convnext.training.metrics import Metrics, rows_of


def evaluation_of(classes: int, images: int, names: tuple[str, ...] = (), run: str = "runs/flowers") -> Evaluation:
    labels = torch.arange(images) % classes
    metrics = Metrics(
        rows_of(torch.randn(images, classes) + 3 * nn.functional.one_hot(labels, classes), labels), classes, (), 2
    )
    names = names or tuple(f"kind {i}" for i in range(classes))
    memory = MemoryImages(torch.zeros(images, 3, 1, 1, dtype=torch.uint8), labels)
    data = HeldOut("photos", "images held out in training", names, memory)
    preprocessing, folder = Preprocessing.published(32), Path(run)
    model = Model(run, "run", nn.Identity(), names, preprocessing, "best epoch", folder=folder)
    return Evaluation(model, data, metrics)


def shown(evaluation: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(evaluation))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("classes", [2, 10, 20, 21, 50, 51, 100, 1000])
def test_no_two_labels_of_the_confusion_matrix_overlap(classes: int) -> None:
    evaluation = evaluation_of(classes, 4 * classes, tuple(f"{i} with a rather long name" for i in range(classes)))
    figure = draw_confusion(
        evaluation.metrics.confusion.numpy(), evaluation.model.classes, "runs/a\nphotos\ntop-1 50 %"
    )
    figure.draw_without_rendering()
    axes = figure.axes[0]
    columns, rows = axes.get_xticklabels(), axes.get_yticklabels()
    for labels in (columns, rows):
        places = [label.get_position()[0 if labels is columns else 1] for label in labels]
        boxes = [
            label.get_window_extent() for label, place in zip(labels, places, strict=True) if -0.5 <= place <= classes
        ]
        assert 2 <= len(boxes) <= 50
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    counts = [text for text in axes.texts if text.get_text()]
    assert len(counts) == (np.count_nonzero(evaluation.metrics.confusion.numpy()) if classes <= 20 else 0)


def test_counts_are_light_on_dark_and_dark_on_light() -> None:
    figure = draw_confusion(np.array([[9, 1], [6, 4]]), ("a", "b"), "")
    colours = {text.get_text(): text.get_color() for text in figure.axes[0].texts if isinstance(text, Text)}
    assert colours == {"9": "white", "1": "black", "6": "white", "4": "black"}


def test_single_mistakes_among_a_thousand_classes_can_be_seen() -> None:
    counts = np.diag(np.full(1000, 50))
    before = np.asarray(
        Image.open(io.BytesIO(render(draw_confusion(counts, [""] * 1000, ""), "png"))).convert("L"), int
    )
    counts[200, 700] = 1
    after = np.asarray(Image.open(io.BytesIO(render(draw_confusion(counts, [""] * 1000, ""), "png"))).convert("L"), int)
    assert (before - after > 20).sum() > 10


def test_reliability_diagram_shows_the_bins() -> None:
    metrics = evaluation_of(5, 200).metrics
    figure = draw_reliability(metrics.calibration, metrics.ece, "runs/a")
    assert f"{metrics.ece:.4f}" in figure.get_suptitle()
    render(figure, "svg")
    upper, lower = figure.axes
    assert [bar.get_height() for bar in lower.patches] == [part.images for part in metrics.calibration if part.images]  # pyright: ignore
    assert [bar.get_height() for bar in upper.patches] == [part.accuracy for part in metrics.calibration if part.images]  # pyright: ignore


def test_files(tmp_path: Path) -> None:
    first, second = evaluation_of(3, 30), evaluation_of(3, 60)
    for evaluation in (first, second):
        write_evaluation(evaluation, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == json.loads(document(second)) == second.to_dict()
    assert np.sum(written["confusion"]) == 60
    with (tmp_path / "out" / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["kind 0", "kind 1", "kind 2"]
    assert [float(row["f1"]) for row in rows] == [scores["f1"] for scores in written["per_class"]]
    assert default_folder(first) == Path("runs/flowers/evaluation")
    library = replace(first, model=replace(first.model, name="timm/resnet18", folder=None))
    assert default_folder(library) == Path("runs/evaluation-timm-resnet18-photos")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*evaluation.json: "):
        write_evaluation(evaluation_of(2, 4), tmp_path / "file")


def test_a_thousand_classes_make_a_document_of_a_few_lines() -> None:
    text = document(evaluation_of(1000, 2000))
    assert len(text.splitlines()) < 30
    assert len(json.loads(text)["confusion"][999]) == 1000


def test_the_table_of_many_classes_has_the_worst() -> None:
    evaluation = evaluation_of(100, 1000)
    text = shown(evaluation)
    assert "the 30 classes with the lowest F1, of 100" in text
    worst = min(range(100), key=lambda label: evaluation.metrics.per_class[label].f1)
    assert f"kind {worst} " in text
    assert len(text.splitlines()) < 50
    assert "every class" in shown(evaluation_of(3, 30))
    assert "the 2 classes with images, of 1000" in shown(evaluation_of(1000, 2))


def test_names_that_other_programs_would_read_as_commands(tmp_path: Path) -> None:
    names = ("[red]a[/]", "$x_", 'quote", comma', "猫 " + "very " * 20 + "long")
    evaluation = evaluation_of(4, 40, names, run="runs/[b]$odd$ " + "long" * 30)
    write_evaluation(evaluation, tmp_path)
    text = shown(evaluation)
    assert "[red]a[/]" in text
    assert "$x_" in text
    with (tmp_path / "per_class.csv").open(newline="", encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == list(names)


@pytest.mark.parametrize(("text", "short"), [("abc", "abc"), ("abcdefghij", "abcd…hij"), ("a\n b", "a b")])
def test_shortened(text: str, short: str) -> None:
    assert shortened(text, 8) == short
