"""`convnext predict`."""

import sys
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.cli.options import Device, ImageNames, Json, ModelName, Top, Trust, note, report_unreadable, show, warn
from convnext.errors import UsageError

if TYPE_CHECKING:
    from convnext.inference.classifier import Prediction

FEW = 12  # images that each get a table of their own on a terminal; of more, each gets a line


def predict(
    model: ModelName,
    images: ImageNames,
    top: Top = 5,
    out: Path | None = None,
    json: Json = False,
    batch: int = 32,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Predict the classes of images: the most probable ones of each, with their probabilities.

    Images that cannot be read are named at the end, on stderr; the others are predicted, and the exit status is 1.

    Args:
        out: write the predictions to this file, .csv, .json or .jsonl, whole or not at all.
        batch: images per batch; it decides speed and memory only.
    """
    if not images:
        raise UsageError("no images: name files, folders or patterns, or - for a list on standard input")
    from convnext.console import image_progress
    from convnext.inference.classifier import open_classifier
    from convnext.inference.inputs import expand_paths, pillow_warnings
    from convnext.inference.output import check_out, json_writer, predictions_file, printable

    if out:
        check_out(out)
    paths = expand_paths(images, sys.stdin)
    first = list(islice(paths, FEW + 1))
    if not first:
        raise UsageError("no images: standard input lists none")
    if "-" not in images:
        first += paths
    classifier = open_classifier(model, device, trust)
    warn(classifier.notes)
    done, unreadable = 0, []
    title = "" if sys.stdout.isatty() and not out and not json else model
    with ExitStack() as stack:
        stack.enter_context(pillow_warnings())
        files = [predictions_file(out, min(top, len(classifier.classes)))] if out else []
        files += [json_writer(sys.stdout.write)] if json else []
        printer = print_table if len(first) <= FEW and sys.stdout.isatty() else print_line
        sinks = [stack.enter_context(file) for file in files] or [printer]
        count = None if "-" in images else len(first)
        progress = stack.enter_context(image_progress(title, count))
        predictions = stack.enter_context(closing(classifier.stream(chain(first, paths), top, batch, count, note)))
        try:
            for prediction in predictions:
                for sink in sinks:
                    sink(prediction)
                if prediction.error:
                    unreadable.append(printable(f"{prediction.path}: {prediction.error}"))
                done += 1
                progress(done)
        except KeyboardInterrupt:
            kept = f" {out} is as it was before." if out else ""
            raise KeyboardInterrupt(f"Interrupted after {done:,} images.{kept}") from None
    if out:
        note(f"Predictions: {out}")
    report_unreadable("no prediction", unreadable, done)


def print_table(prediction: "Prediction") -> None:
    """Print a prediction as a table; one with an error is left for the end."""
    from convnext.inference.output import table

    if not prediction.error:
        show(table(prediction))


def print_line(prediction: "Prediction") -> None:
    """Print a prediction as a line; one with an error is left for the end."""
    from convnext.inference.output import line

    if not prediction.error:
        print(line(prediction))
