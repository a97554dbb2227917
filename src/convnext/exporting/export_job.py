"""`export`: a trained network in, a file for another runtime out, checked there before it is called done."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convnext.environment import installed_version
from convnext.errors import ConvNeXtError, RunError, UsageError, reason
from convnext.exporting.calibration import images_to_calibrate, images_to_check, resized
from convnext.exporting.check import Checked, check
from convnext.exporting.formats import Format, format_named
from convnext.exporting.job_types import Order
from convnext.exporting.places import put, workshop
from convnext.exporting.request import batch_of, place_for, size_of
from convnext.files import read_json
from convnext.inference.card import Card
from convnext.inference.exported import open_exported
from convnext.inference.model_opening import open_trained
from convnext.inference.runtime import RuntimeModel
from convnext.inference.trained import Trained
from convnext.inference.trust import remember
from convnext.models import is_reference
from convnext.models.cost import cost

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")  # whose versions a file records
SMALLEST = 32  # pixels a side of the images of networks that do not say it


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        path: the file that a user names.
        files: all that belong to it.
        card: what it says of itself.
        checked: how it compares with the network.
        on: which images it was compared on, in words.
        bytes: of all files.
        seconds: that it took.
        notes: what should be said to who uses it.
    """

    path: Path
    files: tuple[Path, ...]
    card: Card
    checked: Checked
    on: str
    bytes: int
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The export as plain data: the document of ``convnext export --json``."""
        card = self.card
        return {
            "path": str(self.path),
            "files": [str(path) for path in self.files],
            "format": card.format,
            "precision": card.precision,
            "model": card.model,
            "classes": len(card.classes),
            "batch": card.batch or "dynamic",
            "size": card.size or "dynamic",
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
    batch: int | str = "dynamic",
    size: int | str | None = None,
    with_preprocessing: bool = False,
    images: str | Path | None = None,
) -> Exported:
    """Write a trained network as a file for another runtime.

    The file is opened in that runtime and compared with the network on real images before it takes its name: a file
    that is there is one that computes the same. One that was there before stays until then.

    Args:
        run: what :func:`convnext.load` opens, but for exported files.
        format: onnx; torch, a program of torch.export; or openvino.
        out: the file; beside the run's or file's weights by default.
        precision: fp32; bf16; or int8, calibrated with the run's training images or those of ``images``.
        batch: images at a time, or dynamic for any number.
        size: pixels a side, the network's own by default, or dynamic for any height and width.
        with_preprocessing: take pictures (N, H, W, 3), uint8 in RGB, resized and cut already, and give probabilities.
        images: a folder of images to check on, and to calibrate int8 with, in place of the run's.

    Raises:
        UsageError: a word is unknown, words do not go together, or a package is not installed.
        RunError: the file differs from the network by more than its precision explains, or cannot be written.
    """
    start = time.perf_counter()
    kind = format_named(format, precision)
    kind.check(precision)
    count, side = batch_of(batch), size_of(size)
    folder = None if images is None else Path(images)
    trained = open_trained(run)
    if trained.runtime:
        raise UsageError(f"{run} is exported already: export the run or the weights that it was made of")
    place = place_for(trained, kind, precision, None if out is None else Path(out))
    card = card_for(trained, kind, precision, count, side, with_preprocessing)
    calibration = images_to_calibrate(trained, card.preprocessing, folder) if precision == "int8" else None
    some, on = images_to_check(trained, card.preprocessing, folder, calibration is not None)
    with workshop(place) as made:
        order = Order(trained.model, card, made / place.name, calibration)
        try:
            written = kind.write(order)
        except (ConvNeXtError, MemoryError):
            raise
        except Exception as error:  # of the libraries that write it, at any depth
            raise RunError(
                f"{card.model} could not be written as {kind.name} ({reason(error)}): no file is left"
            ) from error
        opened = open_exported(order.path, trust=True)
        assert isinstance(opened.model, RuntimeModel)
        checked = check(trained.model, opened.model, some)
        del opened
        if not kind.is_data and not remember(order.path):
            written = written._replace(
                notes=(*written.notes, "it opens with --trust alone: the cache cannot be written")
            )
        files = put(written.files, place.parent)
    total = sum(path.stat().st_size for path in files)
    notes = (*trained.notes, *written.notes)
    return Exported(place, tuple(files), card, checked, on, total, time.perf_counter() - start, notes)


def card_for(
    trained: Trained, kind: Format, precision: str, batch: int | None, size: int | None, with_preprocessing: bool
) -> Card:
    """What the file is to say of itself.

    Args:
        trained: the network.
        kind: the format.
        precision: of the weights.
        batch: images at a time; None for any number.
        size: pixels a side; 0 for the network's own, None for any.
        with_preprocessing: whether it takes pictures.

    Raises:
        UsageError: the network does not go with them.
    """
    model, classes = trained.model, trained.classes
    for what, asked in (("--with-preprocessing gives probabilities", with_preprocessing),
                        ("int8 is judged by the first class", precision == "int8")):  # fmt: skip
        if asked and not classes:
            raise UsageError(f"{what}, and {trained.name} has no classifier: leave it out, or train one")
    smallest = getattr(model, "smallest_image", SMALLEST)
    if size and size < smallest:
        raise UsageError(f"size is {size}, too small for this network: needs {smallest} or more, or dynamic")
    preprocessing = resized(trained.preprocessing, size or None)
    if size == 0:
        size = preprocessing.image_size
    return Card(
        kind.name,
        precision,
        model_name(trained),
        classes,
        preprocessing,
        with_preprocessing,
        batch,
        size,
        smallest,
        cost(model, preprocessing.image_size).macs,
        trained.notes,
        data_of(trained),
        {name: version for name in PACKAGES if (version := installed_version(name))},
    )


def model_name(trained: Trained) -> str:
    """What the network is called."""
    if trained.recipe is not None:
        return trained.recipe.model
    return trained.name if is_reference(trained.name) else trained.weights.partition(",")[0]


def data_of(trained: Trained) -> dict[str, Any]:
    """What tells the images that a run held out from those that it was trained on, wherever they lie."""
    record = None if trained.folder is None else trained.folder / "data.json"
    if trained.recipe is None or record is None or not record.exists():
        return {}
    images = read_json(record).get("images")
    return {"images": images, "val_fraction": trained.recipe.val_fraction} if images else {}
