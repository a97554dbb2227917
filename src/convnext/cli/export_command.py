"""`convnext export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from convnext.cli.options import Json, ModelName, note, print_json, warn

if TYPE_CHECKING:
    from convnext.exporting.export_job import ExportResult


def export(
    model: ModelName,
    format: Literal["onnx", "torch", "openvino"],
    out: Path | None = None,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    batch: str = "dynamic",
    size: str | None = None,
    with_preprocessing: bool = False,
    images: Path | None = None,
    json: Json = False,
) -> None:
    """Write a trained model as a file for another runtime, with its classes and preprocessing inside.

    The file is opened in that runtime and compared with the model on real images before it takes its name. Predict,
    evaluate and benchmark accept it like a run folder.

    Args:
        format: onnx (.onnx); torch, a program of torch.export (.pt2); or openvino (.xml and .bin).
        out: the file; by default in the run folder, or beside the weights file.
        precision: fp32; bf16; or int8, calibrated with the run's training images or with --images.
        batch: images per call, or dynamic for any number.
        size: height and width in pixels, by default the model's, or dynamic for any.
        with_preprocessing: take images (N, H, W, 3) in uint8, RGB, resized and cropped; give probabilities.
        images: a folder of images for the check and for int8 calibration, instead of the run's.
    """
    from convnext.exporting.export_job import export

    result = export(
        model,
        format,
        out=out,
        precision=precision,
        batch=batch,
        size=size,
        with_preprocessing=with_preprocessing,
        images=images,
    )
    warn(result.notes)
    if json:
        print_json(result.to_dict())
        return
    for line in summarize(result):
        note(line)


def summarize(result: "ExportResult") -> Iterator[str]:
    """Yield lines about an export: what was written, and how it compares with the model."""
    from convnext.quantities import duration, per_second

    card, checked = result.card, result.checked
    figures = f"largest difference {checked.difference:.2g} of the largest output"
    if checked.agreement is not None:
        figures += f", first class the same on {100 * checked.agreement:.1f} %"
    size = f"{result.bytes / 1e6:.1f} MB, {duration(result.seconds)}"
    yield f"{card.model} as {card.format}, {card.precision}: {', '.join(map(str, result.files))} ({size})"
    yield f"Input: {card.input}"
    yield f"Output: {card.output}"
    yield f"On {checked.images} {result.on}: {figures}"
    rates = per_second(checked.images_per_second), per_second(checked.original_images_per_second)
    yield f"{rates[0]} images/s, the model itself {rates[1]} (speedup {checked.times_as_fast:.2f}x)"
