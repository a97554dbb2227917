"""`convnext predict`."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from convnext.cli.options import note
from convnext.errors import RunError, UsageError

if TYPE_CHECKING:
    from convnext.inference.classifier import Prediction

FEW = 12  # images that each get a table of their own on a terminal; of more, each gets a line


def predict(
    run: Positional[str],
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")],
    top: int = 5,
    out: Path | None = None,
    json: bool = False,
    batch: int = 32,
    device: str = "auto",
    trust: bool = False,
) -> None:
    """Say what images show: the most probable classes of each, with their probabilities.

    What cannot be read is named at the end, on stderr; the rest is answered, and the exit status is 1.

    Args:
        run: a run's folder; an exported file; a weights file or folder of any layout; VARIANT or VARIANT.TAG for the
            authors' published weights (convnext_tiny.in22k_in1k); or torchvision/NAME, timm/NAME for a library's.
        images: files, folders (all images below them), patterns in quotes ('photos/**/*.jpg'), or - for a list on
            standard input, a path a line.
        top: classes to name for each image.
        out: write the answers to this file, .csv, .json or .jsonl, whole or not at all.
        json: print the answers as a JSON list on stdout.
        batch: images at a time; it decides speed and memory only.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu; an exported file runs on the processor.
        trust: open a .pt2 file that was not exported here as well, though it can run any code.
    """
    if not images:
        raise UsageError("no images: name files, folders or patterns, or - for a list on standard input")
    from convnext.console import console_on, image_progress, say_warnings
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
    classifier = open_classifier(run, device, trust)
    say_warnings(classifier.notes, console_on(sys.stderr))
    done, unreadable = 0, []
    title = "" if sys.stdout.isatty() and not out and not json else str(run)
    with ExitStack() as stack:
        stack.enter_context(pillow_warnings())
        sinks: list[Callable[[Prediction], None]] = []
        if out:
            sinks.append(stack.enter_context(predictions_file(out, min(top, len(classifier.classes)))))
        if json:
            sinks.append(stack.enter_context(json_writer(sys.stdout.write)))
        if not sinks:
            sinks.append(printing(tables=len(first) <= FEW and sys.stdout.isatty()))
        count = None if "-" in images else len(first)
        show = stack.enter_context(image_progress(title, count))
        answers = stack.enter_context(closing(classifier.stream(chain(first, paths), top, batch, count, note)))
        try:
            for prediction in answers:
                for sink in sinks:
                    sink(prediction)
                if prediction.error:
                    unreadable.append(printable(f"{prediction.path}: {prediction.error}"))
                done += 1
                show(done)
        except KeyboardInterrupt:
            kept = f" {out} is as it was before." if out else ""
            raise KeyboardInterrupt(f"Interrupted after {done:,} images.{kept}") from None
    if out:
        note(f"Answers: {out}")
    say_warnings((f"no answer for {error}" for error in unreadable), console_on(sys.stderr))
    if unreadable:
        raise RunError(f"{len(unreadable):,} of {done:,} images could not be read, they are named above")


def printing(tables: bool) -> "Callable[[Prediction], None]":
    """What prints a prediction on stdout, as a table or as a line; one that has an error is left for the end."""
    from convnext.console import console_on
    from convnext.inference.output import line, table

    console = console_on(sys.stdout)

    def add(prediction: "Prediction") -> None:
        if not prediction.error:
            console.print(table(prediction)) if tables else print(line(prediction))

    return add
