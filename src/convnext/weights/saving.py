"""Weights out, in the layout that the next tool wants."""

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
from convnext.weights import config_timm, config_transformers
from convnext.weights.architecture import Architecture, architecture_of
from convnext.weights.description import Description, default_preprocessing
from convnext.weights.layouts import TIMM, TIMM_CONV_MLP, TORCHVISION, TRANSFORMERS, to_official
from convnext.weights.loading import check_fit
from convnext.weights.reading import SUFFIXES, TORCH_SUFFIXES
from convnext.weights.weights_file import Opened

LayoutName = Literal["official", "timm", "torchvision", "transformers"]
TORCHVISION_BUILDERS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
FOLDER_FILES = {
    "timm": {"model.safetensors", "config.json"},
    "transformers": {"model.safetensors", "config.json", "preprocessor_config.json"},
}


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        paths: the files.
        opens_with: the line of Python that opens them where they are meant for.
        notes: what should be said of them.
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
        model: a ConvNeXt: of this package, or of timm or torchvision.
        path: a file; its suffix decides its format: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` for torch's. For
            ``transformers`` a folder, for ``timm`` either: the folder has what it takes to build the network besides.
        layout: ``official`` (the authors' and this package's), ``timm``, ``torchvision`` or ``transformers``.
        classes: names of the classes, in the order of the logits, to be kept with the weights.
        preprocessing: how images are prepared, likewise; the published way for 224 px unless given.

    Raises:
        UsageError: the network is no ConvNeXt, or one that the layout has no form for; or the path does not fit it.
        RunError: the disk is full, or the folder cannot be written to.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    official = to_official(state)
    if official is None or any(tensor.is_meta for tensor in state.values()):
        raise UsageError(
            f"a ConvNeXt with its values is needed, {type(model).__name__} arrived: save its own state dict"
        )
    architecture = architecture_of(official.weights)
    check_fit(official.weights, architecture.meta_weights(), Path(type(model).__name__))
    norm = next(module for name, module in model.named_modules() if name in ("norm", "head.norm", "classifier.0"))
    names = None if classes is None else tuple(classes)
    if names is not None and len(names) != architecture.num_classes:
        raise UsageError(f"{len(names)} names of classes for a classifier of {architecture.num_classes}: give one each")
    description = Description(names, preprocessing, norm_eps=getattr(norm, "eps", None))
    return write(official.weights, architecture, description, Path(path), layout)


def convert(opened: Opened, path: str | Path, layout: LayoutName) -> Saved:
    """Write an opened weights file in another layout; values and precision stay as they are.

    Raises:
        UsageError: the layout has no form for the network, or the path does not fit it.
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
    check_form(architecture, layout)
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
    """The documents that a layout's library keeps beside the weights, by file name; and what should be said of them."""
    preprocessing = description.preprocessing or default_preprocessing(architecture)
    if layout == "timm":
        return {"config.json": config_timm.write(architecture, description.classes, preprocessing)}, ()
    if layout != "transformers":
        return {}, ()
    notes: tuple[str, ...] = ()
    classes = description.classes or class_names(architecture.num_classes)  # timm knows ImageNet's by itself
    if classes and not description.classes:
        notes = (f"the {len(classes)} classes have no names: ImageNet's are written, which has as many",)
    if architecture.in_channels != 3:
        given = f"the network takes {architecture.in_channels}: prepare images without them"
        notes = (*notes, f"transformers' image processors and pipelines give 3 channels, {given}")
    norm_eps = description.norm_eps or architecture.norm_eps
    config = config_transformers.write_config(architecture, classes, preprocessing.image_size, norm_eps)
    preprocessor = config_transformers.write_preprocessor(preprocessing)
    return {"config.json": config, "preprocessor_config.json": preprocessor}, notes


def in_layout(weights: dict[str, Tensor], architecture: Architecture, layout: LayoutName) -> dict[str, Tensor]:
    """Official weights under the names and in the shapes of a layout."""
    if layout == "official":
        return weights
    if layout == "transformers":
        # Its classifier stands beside the network, which then has a prefix.
        prefix = ("convnextv2." if architecture.grn else "convnext.") if architecture.num_classes else ""
        tensors = TRANSFORMERS.from_official(weights)
        return {name if name.startswith("classifier.") else prefix + name: value for name, value in tensors.items()}
    if layout == "torchvision":
        return TORCHVISION.from_official(weights)
    return (TIMM_CONV_MLP if config_timm.has_conv_mlp(architecture) else TIMM).from_official(weights)


def check_form(architecture: Architecture, layout: LayoutName) -> None:
    """Refuse networks that a layout's library cannot build.

    Raises:
        UsageError: the message names what it has not.
    """
    if layout == "timm":
        config_timm.model_args(architecture)
    elif layout == "transformers":
        config_transformers.check(architecture)
    elif layout == "torchvision":
        odd = {
            "isotropic networks": architecture.is_isotropic,
            "V2": architecture.grn,
            "V1 without layer scale": not architecture.layer_scale and not architecture.grn,
            f"kernel size {architecture.kernel_size}": architecture.kernel_size != 7,
            f"stems of stride {architecture.stem_stride}": architecture.stem_stride != 4
            and not architecture.is_isotropic,
            f"images of {architecture.in_channels} channels": architecture.in_channels != 3,
            "networks without a classifier": architecture.num_classes == 0,
        }
        if found := [what for what, holds in odd.items() if holds]:
            raise UsageError(f"torchvision has no {' and no '.join(found)}: convert to official or timm")


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
    """Whether a folder holds nothing but what a conversion to the same layout writes."""
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
    where = str(path)
    if layout == "transformers":
        kind = "AutoModelForImageClassification" if architecture.num_classes else "AutoModel"
        return f"transformers.{kind}.from_pretrained({where!r})"
    if layout == "timm" and path.suffix not in SUFFIXES:
        return f"timm.create_model({'local-dir:' + where!r}, pretrained=True)"
    if layout == "timm":
        arguments = {"num_classes": architecture.num_classes, **config_timm.model_args(architecture)}
        options = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"timm.create_model({config_timm.timm_name(architecture)!r}, {options}, checkpoint_path={where!r})"
    if layout == "torchvision":
        variant, classes = architecture.variant, architecture.num_classes
        read = f"safetensors.torch.load_file({where!r})" if path.suffix == ".safetensors" else f"torch.load({where!r})"
        if variant in TORCHVISION_BUILDERS:
            return f"torchvision.models.{variant}(num_classes={classes}).load_state_dict({read})"
        widths = [architecture.width * 2**i for i in range(4)] + [None]
        stages = zip(widths, widths[1:], architecture.depths, strict=False)
        blocks = ", ".join(f"CNBlockConfig({width}, {after}, {depth})" for width, after, depth in stages)
        return f"torchvision.models.convnext.ConvNeXt([{blocks}], num_classes={classes}).load_state_dict({read})"
    return f"convnext.load({where!r})"
