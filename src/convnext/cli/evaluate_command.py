"""`convnext evaluate`."""

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from convnext.cli.options import note


def evaluate(
    run: Positional[str],
    data: Positional[str | None] = None,
    out: Path | None = None,
    json: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int = -1,
    trust: bool = False,
) -> None:
    """Evaluate a trained network: accuracy, loss, scores by class, confusion matrix, calibration, images a second.

    Writes evaluation.json, per_class.csv, and confusion and reliability as .png and .svg.

    Args:
        run: a run's folder; an exported file; a weights file or folder of any layout; VARIANT or VARIANT.TAG for the
            authors' published weights (convnext_tiny.in22k_in1k); or torchvision/NAME, timm/NAME for a library's.
        data: None for the images that the run held out; or digits, cifar10, cifar100, imagenet:PATH, or the path of a
            folder of images: of one with val/ or test/ that part, else all its images.
        out: folder for the files; None for RUN/evaluation, or runs/evaluation-NAME-DATA for published weights.
        json: print the evaluation as JSON on stdout.
        batch_size: images at a time, in each process; it decides speed and memory only.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu; an exported file runs on the processor.
        precision: fp32, bf16 or fp16 (autocast), or auto: bf16 on a GPU that has it; an exported file has its own.
        workers: reading processes; 0 for none, -1 for one a core, at most 8.
        trust: open a .pt2 file that was not exported here as well, though it can run any code.
    """
    from convnext.console import console_on, say_warnings
    from convnext.evaluation.evaluating import evaluate
    from convnext.evaluation.evaluation_report import default_folder, document, table, write_evaluation
    from convnext.training.distributed import is_main_rank

    evaluation = evaluate(
        run, data, batch_size=batch_size, device=device, precision=precision, workers=workers, trust=trust
    )
    if not is_main_rank():
        return
    unreadable = (f"skipped, cannot be read: {error}" for error in evaluation.metrics.unreadable)
    say_warnings([*evaluation.model.notes, *evaluation.data.notes, *unreadable], console_on(sys.stderr))
    folder = out or default_folder(evaluation)
    write_evaluation(evaluation, folder)
    if json:
        print(document(evaluation))
    else:
        console_on(sys.stdout).print(table(evaluation))
    note(f"Figures, evaluation.json and per_class.csv: {folder}")
