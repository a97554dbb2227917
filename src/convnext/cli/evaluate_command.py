"""`convnext evaluate`."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from convnext.cli.options import Device, Json, ModelName, Trust, note, show, warn


def evaluate(
    model: ModelName,
    data: Positional[str | None] = None,
    out: Path | None = None,
    json: Json = False,
    batch_size: int = 64,
    device: Device = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    workers: int = -1,
    trust: Trust = False,
) -> None:
    """Evaluate a trained model: accuracy, loss, scores by class, confusion matrix, calibration, images/s.

    Writes evaluation.json, per_class.csv, and confusion and reliability as .png and .svg.

    Args:
        data: None for the images that the run held out; or digits, cifar10, cifar100, imagenet:PATH, or a folder of
            images: of one with val/ or test/ that part, else all its images.
        out: folder for the files; None for RUN/evaluation, or runs/evaluation-NAME-DATA for other models.
        batch_size: images per batch and rank; it decides speed and memory only.
        precision: fp32, bf16 or fp16 (autocast), or auto: bf16 on a GPU that has it; an exported file has its own.
        workers: dataloader workers; 0 for none, -1 for one per core, at most 8.
    """
    from convnext.evaluation.evaluating import evaluate
    from convnext.evaluation.evaluation_report import default_folder, document, table, write_evaluation
    from convnext.training.distributed import is_main_rank

    evaluation = evaluate(
        model, data, batch_size=batch_size, device=device, precision=precision, workers=workers, trust=trust
    )
    if not is_main_rank():
        return
    unreadable = (f"skipped, cannot be read: {error}" for error in evaluation.metrics.unreadable)
    warn([*evaluation.model.notes, *evaluation.data.notes, *unreadable])
    folder = out or default_folder(evaluation)
    write_evaluation(evaluation, folder)
    print(document(evaluation)) if json else show(table(evaluation))
    note(f"Figures, evaluation.json and per_class.csv: {folder}")
