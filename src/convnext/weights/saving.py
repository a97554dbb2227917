"""Save weights in the layout of another library, with the files that it keeps beside them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import Tensor, nn

from convnext.data.imagenet import class_names
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError, unknown_name
from convnext.files import is_vacant, read_json, write_atomically, write_json
from convnext.weights.hub_configs import (
    check_supported,
    timm_builder,
    timm_config,
    transformers_config,
    transformers_preprocessor,
)
from convnext.weights.layouts import TIMM, TIMM_CONV_MLP, TORCHVISION, TRANSFORMERS, to_official
from convnext.weights.loading import check_fit, reshaped
from convnext.weights.reading import SUFFIXES, TORCH_SUFFIXES
from convnext.weights.shapes import Architecture, architecture_of
from convnext.weights.weights_file import Description, Opened, default_preprocessing

LayoutName = Literal["official", "timm", "torchvision", "transformers"]
CONV_MLP = {"atto", "femto", "pico", "nano"}  # sizes that timm builds with 1x1 convolutions for linear layers
TORCHVISION_BUILDERS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
FOLDER_FILES = {
    "timm": {"model.safetensors", "config.json"},
    "transformers": {"model.safetensors", "config.json", "preprocessor_config.json"},
}


@dataclass(frozen=True)
class Saved:
    """The result of :func:`save_weights`.

    Attributes:
        paths: the files.
        opens_with: the line of Python that opens them in the layout's library.
        notes: warnings for the user.
    """

    paths: tuple[Path, ...]
    opens_with: str
    notes: tuple[str, ...] = ()


def save_weights(
    model: nn.Module,
    path: str | Path,
    layout: LayoutName = "official",
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Saved:
    """Save a ConvNeXt's weights in the layout of a library.

    Args:
        model: a ConvNeXt of this package, timm or torchvision.
        path: a file; its suffix decides its format: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` for torch's. For
            ``transformers`` a folder, for ``timm`` either: from the folder the library builds the model.
        layout: ``official`` (the authors' and this package's), ``timm``, ``torchvision`` or ``transformers``.
        classes: names of the classes, in the order of the logits, saved with the weights.
        preprocessing: of the images, saved likewise; the published one for 224 px by default.

    Raises:
        UsageError: the model is no ConvNeXt, or one that the layout's library cannot build; or the path does not fit.
        RunError: the disk is full, or the folder cannot be written to.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    official = to_official(state)
    if official is None or any(tensor.is_meta for tensor in state.values()):
        raise UsageError(
            f"a ConvNeXt with its values is needed, {type(model).__name__} arrived: save its own state dict"
        )
    architecture = architecture_of(official.weights)
    own = architecture.meta_weights()
    weights = {name: reshaped(tensor, own.get(name)) for name, tensor in official.weights.items()}
    check_fit(weights, own, Path(type(model).__name__))
    norm = next(module for name, module in model.named_modules() if name in ("norm", "head.norm", "classifier.0"))
    names = None if classes is None else tuple(classes)
    if names is not None and len(names) != architecture.num_classes:
        raise UsageError(f"{len(names)} names of classes for a classifier of {architecture.num_classes}: give one each")
    description = Description(names, preprocessing, norm_eps=getattr(norm, "eps", None))
    return write(weights, architecture, description, Path(path), layout)


def convert(opened: Opened, path: str | Path, layout: LayoutName) -> Saved:
    """Write an opened weights file in another layout; values and precision stay as they are.

    Raises:
        UsageError: the layout's library cannot build the model, or the path does not fit.
        RunError: the disk is full, or the folder cannot be written to.
    """
    if Path(path).resolve() in (opened.path.resolve(), opened.path.parent.resolve()):
        raise UsageError(f"{path} is what is to be converted itself: choose another name")
    return write(opened.weights, opened.architecture, opened.description, Path(path), layout)


def write(
    weights: dict[str, Tensor], architecture: Architecture, description: Description, path: Path, layout: LayoutName
) -> Saved:
    """Write official weights in a layout: to a file, or to a folder with the library's configuration."""
    if layout not in get_args(LayoutName):
        raise unknown_name("layout", layout, get_args(LayoutName))
    check_supported(architecture, layout)
    documents, notes = configuration(architecture, description, layout)
    target = target_of(path, layout)
    if target.suffix in TORCH_SUFFIXES and (description.classes or description.preprocessing):
        kept = "end the name in .safetensors to keep them"
        notes = (*notes, f"{target.name} holds the weights alone, without names of classes and preprocessing: {kept}")
    tensors = in_layout(weights, architecture, layout)
    write_atomically(target, encoded(tensors, target, layout, description))
    files = [path / name for name in documents] if target.parent == path else []
    for file in files:
        write_json(file, documents[file.name])
    return Saved((target, *files), opens_with(architecture, path, layout), notes)


def configuration(
    architecture: Architecture, description: Description, layout: LayoutName
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """The documents that a layout's library keeps beside the weights, by file name; and notes on them."""
    preprocessing = description.preprocessing or default_preprocessing(architecture)
    if layout == "timm":
        return {"config.json": timm_config(architecture, description.classes, preprocessing)}, ()
    if layout != "transformers":
        return {}, ()
    notes: tuple[str, ...] = ()
    classes = description.classes or class_names(architecture.num_classes)  # timm knows ImageNet's by itself
    if classes and not description.classes:
        notes = (f"the {len(classes)} classes have no names: ImageNet's are written, which has as many",)
    if architecture.in_channels != 3:
        given = f"the model takes {architecture.in_channels}: prepare images without them"
        notes = (*notes, f"transformers' image processors and pipelines give 3 channels, {given}")
    norm_eps = description.norm_eps or architecture.norm_eps
    return {
        "config.json": transformers_config(architecture, classes, preprocessing.image_size, norm_eps),
        "preprocessor_config.json": transformers_preprocessor(preprocessing),
    }, notes


def in_layout(weights: dict[str, Tensor], architecture: Architecture, layout: LayoutName) -> dict[str, Tensor]:
    """Convert official weights to the names and shapes of a layout."""
    if layout == "official":
        return weights
    if layout == "torchvision":
        return TORCHVISION.from_official(weights)
    if layout == "timm":
        has_conv_mlp = (architecture.variant or "").partition("_")[2] in CONV_MLP
        return (TIMM_CONV_MLP if has_conv_mlp else TIMM).from_official(weights)
    # With a classifier, the model stands beside it, under a prefix.
    prefix = ("convnextv2." if architecture.grn else "convnext.") if architecture.num_classes else ""
    tensors = TRANSFORMERS.from_official(weights)
    return {name if name.startswith("classifier.") else prefix + name: value for name, value in tensors.items()}


def target_of(path: Path, layout: LayoutName) -> Path:
    """The weights file that is meant by a path: itself, or ``model.safetensors`` in the folder.

    Raises:
        UsageError: the layout needs a folder, or a file of a known suffix, or the folder has other things in it.
    """
    if path.suffix in SUFFIXES and not path.is_dir():
        if layout == "transformers":
            raise UsageError(
                f"transformers opens a folder, {path} is a file's name: name a folder, {path.with_suffix('')}"
            )
        return path
    if layout in ("official", "torchvision"):
        raise UsageError(f"{path} does not say its format: end it in one of {', '.join(SUFFIXES)}")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, a folder is needed: choose another name")
    if not is_vacant(path) and not is_ours_to_replace(path, layout):
        raise UsageError(f"{path} has other files in it: choose a new folder")
    return path / "model.safetensors"


def is_ours_to_replace(folder: Path, layout: LayoutName) -> bool:
    """True if a folder holds nothing but the files of an earlier conversion to the same layout."""
    if {entry.name for entry in folder.iterdir()} - FOLDER_FILES[layout]:
        return False
    config = folder / "config.json"
    return not config.exists() or ("architecture" in read_json(config)) == (layout == "timm")


def encoded(
    tensors: dict[str, Tensor], target: Path, layout: LayoutName, description: Description
) -> bytes | memoryview:
    """The content of a weights file in the format of its suffix."""
    if target.suffix == ".safetensors":
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return safetensors.torch.save(plain, description.metadata())
    buffer = io.BytesIO()
    torch.save({"model": tensors} if layout == "official" else tensors, buffer)
    return buffer.getbuffer()


def opens_with(architecture: Architecture, path: Path, layout: LayoutName) -> str:
    """The line of Python that opens what was written."""
    where, classes = str(path), architecture.num_classes
    if layout == "official":
        return f"convnext.load({where!r})"
    if layout == "transformers":
        return f"transformers.AutoModel{'ForImageClassification' if classes else ''}.from_pretrained({where!r})"
    if layout == "timm":
        if path.suffix not in SUFFIXES:
            return f"timm.create_model({'local-dir:' + where!r}, pretrained=True)"
        name, arguments = timm_builder(architecture)
        options = ", ".join(f"{key}={value!r}" for key, value in ({"num_classes": classes} | arguments).items())
        return f"timm.create_model({name!r}, {options}, checkpoint_path={where!r})"
    read = f"safetensors.torch.load_file({where!r})" if path.suffix == ".safetensors" else f"torch.load({where!r})"
    if architecture.variant in TORCHVISION_BUILDERS:
        return f"torchvision.models.{architecture.variant}(num_classes={classes}).load_state_dict({read})"
    widths = [*architecture.size["dims"], None]
    stages = zip(widths, widths[1:], architecture.depths, strict=False)
    blocks = ", ".join(f"CNBlockConfig({width}, {after}, {depth})" for width, after, depth in stages)
    return f"torchvision.models.convnext.ConvNeXt([{blocks}], num_classes={classes}).load_state_dict({read})"
