"""An exported file as a trained network: what `load`, `predict`, `evaluate` and `benchmark` open it by."""

import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from convnext.data.imagenet import class_names, folder_names
from convnext.data.preprocessing import EVAL_CROP, MEAN, STD, Preprocessing
from convnext.errors import ConvNeXtError, RunError, UsageError, reason
from convnext.exporting.card import Card, read_card
from convnext.exporting.formats import AOTI, FORMATS, SUFFIXES, TORCH, Format
from convnext.exporting.job_types import Loaded
from convnext.exporting.pt2 import is_package
from convnext.exporting.runtime import RuntimeNetwork
from convnext.exporting.trust import check_trust
from convnext.inference.trained import Trained
from convnext.weights.reading import instead, is_file


def is_exported(name: str | Path) -> bool:
    """Whether a name means an exported file, there or not."""
    return Path(name).suffix.lower() in SUFFIXES and not Path(name).is_dir()


def open_exported(path: Path, trust: bool = False) -> Trained:
    """Open an exported file in its runtime.

    Args:
        path: an ``.onnx`` file, a ``.pt2`` file of torch.export or AOTInductor, or OpenVINO's ``.xml``.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Raises:
        UsageError: there is no such file, it is of no network for images, its runtime is not installed, or it may run
            code and is not trusted.
        RunError: it is damaged, or for another kind of machine.
    """
    if not is_file(path):
        raise UsageError(f"no exported file {path}{instead(path)}: check the path (now in {Path.cwd()})")
    kind = format_of(path)
    kind.check_runtime()
    if not kind.is_data:
        check_trust(path, trust)
    try:
        loaded = kind.load(path)
        card = read_card(loaded.metadata)
    except ConvNeXtError:
        raise
    except Exception as error:  # of a runtime, whose kinds are many
        raise damaged(path, error) from error
    notes: tuple[str, ...] = ()
    if card is None:
        card, notes = card_of_stranger(path, kind, loaded)
    network = RuntimeNetwork(path.resolve(), kind.runtime, card, loaded.call, reopened)
    known = bool(card.classes) and class_names(len(card.classes)) == card.classes
    return Trained(
        str(path),
        network,
        card.classes,
        card.preprocessing,
        weights=f"{card.model}, {card.precision}, {card.format} file by {kind.runtime}",
        aliases=partial(folder_names, len(card.classes)) if known else dict,
        notes=(*card.notes, *notes),
        runtime=kind.runtime,
        trained_on=card.data,
    )


def reopened(path: Path) -> nn.Module:
    """The network in a file that was opened in another process before, and trusted there."""
    return open_exported(path, trust=True).model


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix; ``.pt2`` is two.

    Raises:
        RunError: it is damaged.
    """
    suffix = path.suffix.lower()
    if suffix != TORCH.suffix:
        return next(one for one in FORMATS.values() if one.suffix == suffix)
    try:
        return AOTI if is_package(path) else TORCH
    except (OSError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> RunError:
    """The error for a file that its runtime cannot open."""
    return RunError(f"cannot open {path} ({reason(error)}): it is damaged or of another kind, export or copy it again")


def card_of_stranger(path: Path, kind: Format, loaded: Loaded) -> tuple[Card, tuple[str, ...]]:
    """What can be told of a file that this package did not write.

    Raises:
        UsageError: it does not take images and give a number a class.
    """
    shape, dtype = loaded.input
    channels = shape[1] if len(shape) == 4 else None
    if dtype != "float32" or channels not in (1, 3) or (shape[2] or 0) != (shape[3] or 0):
        raise UsageError(
            f"{path} is of another network: it takes {dtype} {list(shape)}, needs float32 images (N, 3, H, W), square, "
            "and nothing else"
        )
    size = shape[2] or 224
    try:
        with torch.inference_mode():
            outputs = loaded.call(torch.zeros(shape[0] or 1, channels, size, size))
    except Exception as error:
        raise UsageError(
            f"{path} is of another network: it fails on an image of {size} px ({reason(error)})"
        ) from error
    if outputs.ndim != 2 or not outputs.is_floating_point():
        raise UsageError(f"{path} is of another network: it gives {list(outputs.shape)}, needs logits (N, classes)")
    mean, std = (MEAN, STD) if channels == 3 else ((sum(MEAN) / 3,), (sum(STD) / 3,))
    count = outputs.shape[1]
    names = class_names(count)
    card = Card(
        kind.name,
        "unknown precision",
        "network of another maker",
        names or tuple(f"class {label}" for label in range(count)),
        Preprocessing(size, EVAL_CROP, mean=mean, std=std),
        batch=shape[0],
        size=shape[2],
    )
    named = "ImageNet's classes are taken" if names else f"they are called by their numbers ({count})"
    return card, (
        f"{path} was not written by this package: it has no names for its classes, {named}; its outputs are taken for "
        f"logits, and images are prepared as the published networks' for {size} px",
    )
