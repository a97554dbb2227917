"""What an evaluation leaves for a reader: a table on the terminal; figures, numbers and scores by class in a folder."""

import csv
import io
import json
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from convnext.console import table_of
from convnext.evaluation.evaluating import Evaluation
from convnext.files import write_atomically
from convnext.quantities import per_second
from convnext.training.run import data_name

SHOWN = 30  # classes in the terminal's table
FILES = ("evaluation.json", "per_class.csv", "confusion.png", "confusion.svg", "reliability.png", "reliability.svg")


def default_folder(evaluation: Evaluation) -> Path:
    """``RUN/evaluation``; ``runs/evaluation-NAME-DATA`` for a network with its library's weights."""
    model = evaluation.model
    if model.folder is not None:
        return model.folder / "evaluation"
    return Path("runs") / f"evaluation-{model.name.replace('/', '-')}-{data_name(evaluation.data.name)}"


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write :data:`FILES` into a folder, each whole or not at all; what an earlier evaluation left is replaced."""
    from convnext.evaluation.evaluation_figures import draw_confusion, draw_reliability
    from convnext.plotting import shortened, write_figure

    metrics, classes = evaluation.metrics, evaluation.model.classes
    title = "\n".join(
        (
            shortened(evaluation.model.name, 56),
            shortened(f"{evaluation.data.name}: {metrics.images:,} {evaluation.data.part}", 56),
            f"top-1 {metrics.top1:.2f} %",
        )
    )
    confusion = draw_confusion(metrics.confusion.numpy(), classes, title)
    reliability = draw_reliability(metrics.calibration, metrics.ece, title)
    write_atomically(folder / "evaluation.json", document(evaluation) + "\n")
    write_atomically(folder / "per_class.csv", scores_by_class(evaluation))
    write_figure(confusion, folder / "confusion")
    write_figure(reliability, folder / "reliability")


def document(evaluation: Evaluation) -> str:
    """The evaluation as JSON, a line a key: indented, a matrix of 1000 classes would have a million lines."""
    rows = (f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in evaluation.to_dict().items())
    return "{\n" + ",\n".join(rows) + "\n}"


def scores_by_class(evaluation: Evaluation) -> str:
    """The scores of every class as CSV, in the network's order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("label", "precision", "recall", "f1", "support"))
    for label, scores in zip(evaluation.model.classes, evaluation.metrics.per_class, strict=True):
        writer.writerow((label, *scores))
    return text.getvalue()


def table(evaluation: Evaluation) -> Group:
    """The evaluation for a terminal: the figures of the whole, then the classes, the worst ones first where many."""
    return Group(summary(evaluation), class_table(evaluation))


def summary(evaluation: Evaluation) -> Table:
    """The figures of the whole."""
    metrics, data = evaluation.metrics, evaluation.data
    unreadable = f" ({len(metrics.unreadable)} more cannot be read)" if metrics.unreadable else ""
    view = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (
        ("network", f"{evaluation.model.name} ({evaluation.model.weights})"),
        ("data", f"{data.name}: {metrics.images:,} {data.part}{unreadable}"),
        ("top-1", f"{metrics.top1:.2f} %"),
        ("top-5", f"{metrics.top5:.2f} %"),
        ("loss", f"{metrics.loss:.4f}"),
        ("calibration error", f"{metrics.ece:.4f}"),
        ("images/s", per_second(metrics.images_per_second)),
    ):
        view.add_row(name, Text(value))
    return view


def class_table(evaluation: Evaluation) -> Table:
    """Scores by class: all in the network's order, or of many the worst by F1; and what each is mostly taken for."""
    metrics, classes = evaluation.metrics, evaluation.model.classes
    chosen = [label for label, scores in enumerate(metrics.per_class) if scores.support]
    title = "every class"
    if len(chosen) > SHOWN:
        chosen = sorted(chosen, key=lambda label: metrics.per_class[label].f1)[:SHOWN]
        title = f"the {SHOWN} classes with the lowest F1, of {len(classes)}"
    elif len(chosen) < len(classes):
        title = f"the {len(chosen)} classes with images, of {len(classes)}"
    view = table_of(title)
    view.add_column("class", overflow="fold")
    for name in ("precision", "recall", "F1", "images"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("mostly mistaken for", overflow="fold")
    for label in chosen:
        scores, mistakes = metrics.per_class[label], metrics.confusion[label].clone()
        mistakes[label] = 0
        other = int(mistakes.argmax())
        mistaken = f"{classes[other]} ({mistakes[other]})" if mistakes[other] else ""
        figures = (f"{value:.3f}" for value in scores[:3])
        view.add_row(Text(classes[label]), *figures, f"{scores.support:,}", Text(mistaken))
    return view
