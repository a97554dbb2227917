"""Open a weights file by itself: the model that it is of, its classes, and the preprocessing of its images."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import safetensors
import torch
from torch import Tensor, nn

from convnext.data.preprocessing import EVAL_CROP, MEAN, STD, Preprocessing
from convnext.errors import RunError, UsageError, printable, reason
from convnext.files import read_json
from convnext.weights.hub_configs import read_timm_config, read_transformers_config, read_transformers_preprocessor
from convnext.weights.layouts import DINOV3, to_official
from convnext.weights.loading import check_fit, reshaped, unused_notes
from convnext.weights.reading import BEST, IN_FOLDERS, is_safetensors, read_weights, weights_file
from convnext.weights.shapes import Architecture, architecture_of

METADATA = "convnext"  # this package's entry in the metadata of a safetensors file


@dataclass(frozen=True)
class Description:
    """The purpose of a weights file; None where it is not known.

    Attributes:
        classes: names of the classes, in the order of the logits.
        preprocessing: of the images.
        norm_eps: epsilon of the final norm.
    """

    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    norm_eps: float | None = None

    @classmethod
    def read(cls, classes: Any, preprocessing: Preprocessing | None = None, norm_eps: Any = None) -> Self:
        """Create a description from a document's values.

        Raises:
            TypeError, ValueError, OverflowError: a value is not what it should be.
        """
        if classes is not None:
            if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
                raise TypeError("the class names are not a list of strings")
            classes = tuple(classes)
        if norm_eps is not None and not 0 <= (norm_eps := float(norm_eps)) <= 1:  # nor NaN
            raise ValueError(f"the norm's epsilon is {norm_eps}, needs a number from 0 to 1")
        return cls(classes, preprocessing, norm_eps)

    def metadata(self) -> dict[str, str]:
        """The description as the metadata of a safetensors file."""
        document = {
            "classes": self.classes,
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_dict(),
            "norm_eps": self.norm_eps,
        }
        known = {name: value for name, value in document.items() if value is not None}
        return {"format": "pt"} | ({METADATA: json.dumps(known)} if known else {})


@dataclass(frozen=True)
class Opened:
    """The weights of a file under their official names, and their purpose.

    Attributes:
        path: the file.
        layout: the file's layout.
        weights: the tensors, in the file's precision.
        architecture: of the model.
        description: classes, preprocessing and norm, as far as the file or those beside it state them.
        notes: warnings for the user.
    """

    path: Path
    layout: str
    weights: dict[str, Tensor]
    architecture: Architecture
    description: Description
    notes: tuple[str, ...]

    def build(self) -> nn.Module:
        """Build the model with these weights, in evaluation mode."""
        with torch.device("meta"):  # no initial values: they would be overwritten
            model = self.architecture.build()
        model.to_empty(device="cpu").load_state_dict(self.weights)
        norm = model.get_submodule("norm")
        assert isinstance(norm, nn.LayerNorm)
        norm.eps = self.description.norm_eps or norm.eps
        return model.eval()


def open_weights(path: str | Path) -> Opened:
    """Open a weights file of any layout that this package knows.

    Args:
        path: a weights file, a run folder, or a folder of timm or transformers.

    Raises:
        UsageError: there is no such file, or it is of no ConvNeXt.
        RunError: the file is damaged, or it holds Python objects or values that are not finite.
    """
    path = weights_file(Path(path))
    read, notes = read_weights(path)
    official = to_official(read)
    if official is None:
        if run := model_of_run(path):
            raise UsageError(f"{run}, which is no ConvNeXt")
        some = ", ".join(map(printable, list(read)[:3]))
        raise UsageError(
            f"{path} is of no ConvNeXt in a layout that is known; its tensors are named {some}, ... Build its model "
            "and call convnext.load_weights, or pass a run folder"
        )
    try:
        architecture = architecture_of(official.weights)
        own = architecture.meta_weights()
        weights = {name: reshaped(tensor, own.get(name)) for name, tensor in official.weights.items()}
        weights, norm_notes = with_final_norm(weights, own, path)
        check_fit(weights, own, path)
    except UsageError as error:
        if run := model_of_run(path):
            raise UsageError(f"{run}, which differs from every ConvNeXt that other layouts describe") from error
        raise UsageError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    description = describe(path)
    if description.norm_eps is None:
        description = replace(description, norm_eps=official.norm_eps)
    if description.classes and architecture.num_classes != len(description.classes):
        raise UsageError(
            f"{path} has a classifier of {architecture.num_classes} classes, and {len(description.classes)} names of "
            "classes beside it: they are of different models"
        )
    notes = (*notes, *unused_notes(official, path), *norm_notes)
    if official.layout.startswith(DINOV3.name):
        notes = (*notes, f"{path.name} is DINOv3's: its licence has conditions of its own")
    return Opened(path, official.layout, weights, architecture, description, notes)


def model_of_run(path: Path) -> str:
    """Name the model of a run's weights, for a message; "" if they are of no run."""
    recipe = path.with_name("recipe.json")
    if path.name != BEST or not recipe.is_file():
        return ""
    model = read_json(recipe).get("model")
    return f"the run in {path.parent} is of {model}" if model else ""


def with_final_norm(
    weights: dict[str, Tensor], own: dict[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Add the final norm, which masked pre-training and backbones lack, with its initial values; and a note on it."""
    absent = [name for name in own if name.startswith("norm.") and name not in weights]
    dtype = next(iter(weights.values())).dtype
    initial = {
        name: torch.full(own[name].shape, float(name.endswith("weight")), dtype=dtype, device="cpu") for name in absent
    }
    return weights | initial, (f"{path.name} has no final norm: it keeps its initial values",) if absent else ()


def describe(path: Path) -> Description:
    """Read a file's purpose: from the files that its library writes beside it, else from its own metadata.

    Raises:
        RunError: one of these is damaged.
    """
    classes, config = path.with_name("classes.json"), path.with_name("config.json")
    if path.name == BEST and classes.is_file():
        with understanding(classes):
            found = Description.read(json.loads(classes.read_text(encoding="utf-8")))
        preprocessing = path.with_name("preprocessing.json")
        if preprocessing.is_file():
            with understanding(preprocessing):
                found = replace(found, preprocessing=Preprocessing.from_dict(read_json(preprocessing)))
        return found
    if path.name in IN_FOLDERS and config.is_file():
        return describe_by_config(config)
    with understanding(path):
        document = json.loads(metadata_of(path))
        preprocessing = document.get("preprocessing")
        known = None if preprocessing is None else Preprocessing.from_dict(preprocessing)
        return Description.read(document.get("classes"), known, document.get("norm_eps"))


def describe_by_config(path: Path) -> Description:
    """Read the ``config.json`` of timm or transformers, and the latter's ``preprocessor_config.json``."""
    with understanding(path):
        config = read_json(path)
        if "architecture" in config:
            return Description.read(*read_timm_config(config))
        if "model_type" not in config:
            return Description()
        classes, norm_eps = read_transformers_config(config)
        found = Description.read(classes, norm_eps=norm_eps)
    beside = path.with_name("preprocessor_config.json")
    if not beside.is_file():
        return found
    with understanding(beside):
        return replace(found, preprocessing=read_transformers_preprocessor(read_json(beside)))


def metadata_of(path: Path) -> str:
    """This package's entry in the metadata of a safetensors file; an empty document if there is none."""
    if not is_safetensors(path):
        return "{}"
    with safetensors.safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(METADATA, "{}")


def default_preprocessing(architecture: Architecture) -> Preprocessing:
    """The published preprocessing for 224 px, with the model's number of channels."""
    if architecture.in_channels == 1:
        return Preprocessing(224, EVAL_CROP, mean=(sum(MEAN) / 3,), std=(sum(STD) / 3,))
    return Preprocessing.published(224)


@contextmanager
def understanding(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged document into one that names the file."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RunError(
            f"cannot understand {path}: {reason(error)}. Repair it, or move the weights away from it"
        ) from error
