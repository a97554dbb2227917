"""`export`: a trained model written as a file for another runtime, and checked there before it is kept."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convnext.environment import installed_version
from convnext.errors import ConvNeXtError, RunError, UsageError, reason
from convnext.exporting.calibration import images_to_calibrate, images_to_check
from convnext.exporting.check import CheckResult, check
from convnext.exporting.formats import ExportRequest, Format, WrittenFiles, find_format
from convnext.exporting.staging import move_all, staging_folder
from convnext.inference.card import Card
from convnext.inference.exported import open_exported
from convnext.inference.model import Model, resolve
from convnext.inference.trust import remember
from convnext.models import is_reference
from convnext.models.cost import cost

DYNAMIC = "dynamic"
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")  # whose versions a file records
MIN_SIZE = 32  # pixels a side, for models that do not name theirs


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        path: the file that a user names.
        files: all files of the export.
        card: metadata of the file.
        checked: comparison with the model.
        on: description of the images of the comparison.
        bytes: of all files.
        seconds: that the export took.
        notes: remarks for the user.
    """

    path: Path
    files: tuple[Path, ...]
    card: Card
    checked: CheckResult
    on: str
    bytes: int
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the document of ``convnext export --json``."""
        card = self.card
        return {
            "path": str(self.path),
            "files": [str(path) for path in self.files],
            "format": card.format,
            "precision": card.precision,
            "model": card.model,
            "classes": len(card.classes),
            "batch": card.batch or DYNAMIC,
            "size": card.size or DYNAMIC,
            "with_preprocessing": card.with_preprocessing,
            "input": card.input,
            "output": card.output,
            "bytes": self.bytes,
            "checked_on": self.on,
            **asdict(self.checked),
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
        }


def export(
    run: str | Path,
    format: str,
    *,
    out: str | Path | None = None,
    precision: str = "fp32",
    batch: int | str = DYNAMIC,
    size: int | str | None = None,
    with_preprocessing: bool = False,
    images: str | Path | None = None,
) -> ExportResult:
    """Write a trained model as a file for another runtime.

    The file is opened in that runtime and compared with the model on real images before it takes its name. An older
    file of that name stays until then.

    Args:
        run: what :func:`convnext.load` opens, except exported files.
        format: onnx; torch, a program of torch.export; or openvino.
        out: the file; by default beside the run's or the weights file.
        precision: fp32; bf16; or int8, calibrated with the run's training images or those of ``images``.
        batch: images per call, or dynamic for any number.
        size: height and width in pixels, by default the model's, or dynamic for any.
        with_preprocessing: take images (N, H, W, 3) in uint8, RGB, resized and cropped, and give probabilities.
        images: a folder of images for the check and for int8 calibration, instead of the run's.

    Raises:
        UsageError: an argument is unknown, arguments do not go together, or a package is not installed.
        RunError: the file differs from the model by more than its precision explains, or cannot be written.
    """
    start = time.perf_counter()
    kind = find_format(format, precision)
    kind.check_packages(precision)
    shape = {"batch": to_dimension("batch", batch), "size": None if size is None else to_dimension("size", size)}
    folder = None if images is None else Path(images)
    model = resolve(run)
    if model.exported:
        raise UsageError(f"{run} is an exported file: export the run or the weights that it was made from")
    default = kind.default_path(model.name, model.folder, precision)
    place = default if out is None else kind.check_path(Path(out))
    card = make_card(model, kind, precision, with_preprocessing, **shape)
    calibration = images_to_calibrate(model, card.preprocessing, folder) if precision == "int8" else None
    some, on = images_to_check(model, card.preprocessing, folder, calibration is not None)
    with staging_folder(place) as staging:
        request = ExportRequest(model.module, card, staging / place.name, calibration)
        written = write(kind, request)
        opened = open_exported(request.path, trust=True)
        checked = check(model.module, opened, some)
        del opened
        notes = (*model.notes, *written.notes)
        if not kind.is_data and not remember(request.path):
            notes += ("it opens with --trust only, because the cache cannot be written",)
        files = move_all(written.paths, place.parent)
    total = sum(path.stat().st_size for path in files)
    return ExportResult(place, tuple(files), card, checked, on, total, time.perf_counter() - start, notes)


def write(kind: Format, request: ExportRequest) -> WrittenFiles:
    """Write a file; raise RunError for whatever the libraries that write it raise."""
    try:
        return kind.write(request)
    except (ConvNeXtError, MemoryError):
        raise
    except Exception as error:
        model = request.card.model
        raise RunError(f"{model} could not be written as {kind.name} ({reason(error)}): no file is left") from error


def to_dimension(name: str, value: int | str) -> int:
    """Return an argument as a number; 0 for dynamic.

    Raises:
        UsageError: it is neither dynamic nor a whole number from 1.
    """
    if value == DYNAMIC:
        return 0
    try:
        number = 0 if isinstance(value, bool) else int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"{name} is {value!r}, needs a whole number from 1, or {DYNAMIC}")
    return number


def make_card(
    model: Model, kind: Format, precision: str, with_preprocessing: bool, batch: int, size: int | None
) -> Card:
    """Return the metadata of the file; a batch or size of 0 is dynamic, a size of None the model's own.

    Raises:
        UsageError: the model does not go with the arguments.
    """
    classes, preprocessing = model.classes, model.preprocessing
    if not classes and (with_preprocessing or precision == "int8"):
        option = "--with-preprocessing gives probabilities" if with_preprocessing else "int8 is checked by class"
        raise UsageError(f"{option}, and {model.name} has no classifier: leave it out, or train one")
    smallest = getattr(model.module, "smallest_image", MIN_SIZE)
    if size and size < smallest:
        raise UsageError(f"size is {size}, needs {smallest} or more for this model, or {DYNAMIC}")
    if size is None:
        size = preprocessing.image_size
    elif size:
        preprocessing = replace(preprocessing, image_size=size)
    return Card(
        kind.name,
        precision,
        model_name(model),
        classes,
        preprocessing,
        with_preprocessing,
        batch or None,
        size or None,
        smallest,
        cost(model.module, preprocessing.image_size).macs,
        model.notes,
        model.data,
        {name: version for name in PACKAGES if (version := installed_version(name))},
    )


def model_name(model: Model) -> str:
    """Return the model's name."""
    if model.recipe is not None:
        return model.recipe.model
    return model.name if is_reference(model.name) else model.weights.partition(",")[0]
