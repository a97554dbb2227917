"""`convnext export`."""

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from convnext.cli.options import note, print_json


def export(
    run: Positional[str],
    format: Literal["onnx", "torch", "openvino"],
    out: Path | None = None,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    batch: str = "dynamic",
    size: str | None = None,
    with_preprocessing: bool = False,
    images: Path | None = None,
    json: bool = False,
) -> None:
    """Write a trained network as a file for another runtime, with its labels and preprocessing inside.

    The file is opened in that runtime and compared with the network on real images before it takes its name. Predict,
    evaluate and benchmark take it like a run's folder.

    Args:
        run: a run's folder; a weights file or folder of any layout; VARIANT or VARIANT.TAG for the authors' published
            weights (convnext_tiny.in22k_in1k); or torchvision/NAME, timm/NAME for a library's.
        format: onnx (.onnx); torch, a program of torch.export (.pt2); or openvino (.xml and .bin).
        out: the file; None for the run's folder, or beside the weights file.
        precision: fp32; bf16; or int8, calibrated with the run's training images or with --images.
        batch: images at a time, or dynamic for any number.
        size: pixels a side, or dynamic for any height and width; None for the network's own.
        with_preprocessing: take pictures (N, H, W, 3), uint8 in RGB, resized and cut already; give probabilities.
        images: a folder of images to check on, and to calibrate int8 with, in place of the run's.
        json: print what was done as JSON on stdout.
    """
    from convnext.console import console_on, say_warnings
    from convnext.exporting.export_job import export
    from convnext.exporting.export_summary import summary

    exported = export(
        run,
        format,
        out=out,
        precision=precision,
        batch=batch,
        size=size,
        with_preprocessing=with_preprocessing,
        images=images,
    )
    say_warnings(exported.notes, console_on(sys.stderr))
    if json:
        print_json(exported.to_dict())
        return
    for line in summary(exported):
        note(line)
