"""`Model`, the record of a model that a user named, and `resolve`, which opens it for every command."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from convnext.data.imagenet import class_names, folder_names
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.files import read_json
from convnext.inference.exported import open_exported
from convnext.inference.library_models import load_pretrained
from convnext.inference.runs import check_run, load_best, read_classes, read_preprocessing, read_recipe
from convnext.inference.runtime import RuntimeModel
from convnext.models import create_model
from convnext.models.cost import cost
from convnext.training.build import build_model
from convnext.training.recipe import Recipe
from convnext.weights.hub import fetch
from convnext.weights.names import Kind, ModelName, parse_name
from convnext.weights.pretrained import checkpoint
from convnext.weights.published import tags_of
from convnext.weights.weights_file import Opened, default_preprocessing, open_weights

SEED = 0  # of initial weights
DEFAULT_IMAGE_SIZE = 224  # pixels, of models without trained weights

Weights = Literal["trained", "named", "none"]


@dataclass(frozen=True)
class Model:
    """A model with what it takes to use it; :func:`resolve` makes it from a name.

    Attributes:
        name: the name that the user gave.
        kind: the kind of the name, see :class:`ModelName`; None for a module that was passed as such.
        module: in evaluation mode, on the CPU: normalised images (N, C, H, W) to logits (N, classes), or to features
            where there are no classes.
        classes: class names in the order of the logits; empty where there is no classifier.
        preprocessing: from an image to a normalised tensor.
        weights: a description of the weights.
        is_trained: False for initial weights.
        build: builds the same architecture with initial weights; None where the architecture is not known.
        folder: of the training run; None for other kinds.
        recipe: of the training run; None for other kinds.
        data: identifies the images that were held out in the training, wherever they are; empty where not known.
        aliases: other names of the classes, with their indices.
        notes: remarks for the user.
    """

    name: str
    kind: Kind | None
    module: nn.Module = field(repr=False)
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: str
    is_trained: bool = True
    build: Callable[[], nn.Module] | None = None
    folder: Path | None = None
    recipe: Recipe | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    aliases: Callable[[], Mapping[str, int]] = dict
    notes: tuple[str, ...] = ()

    @property
    def exported(self) -> RuntimeModel | None:
        """The module of an exported file, with its card and runtime; None for other kinds."""
        return self.module if isinstance(self.module, RuntimeModel) else None

    @property
    def has_gradients(self) -> bool:
        """True if the module can be differentiated; an exported file only infers."""
        return has_gradients(self.module)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the model is made for."""
        return self.preprocessing.image_size

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.exported.card.macs if self.exported else cost(self.module, self.image_size).macs

    def device_name(self, device: str) -> str:
        """The device to use where ``device`` was requested."""
        if self.exported is None:
            return device
        if device not in ("auto", "cpu"):
            raise UsageError(f"{self.name} is an exported file, which runs on the CPU: leave out --device {device}")
        return "cpu"

    def untrained(self) -> nn.Module:
        """The same architecture with initial weights, in evaluation mode."""
        if not self.is_trained:
            return self.module
        if self.build is None:
            raise UsageError(
                f"{self.name} has no known architecture, so none without training: name the run or the weights file "
                "that it was exported from"
            )
        return with_initial_weights(self.build)


def check_classes(name: str, classes: Sequence[str]) -> None:
    """Refuse a model without a classifier, whose module gives features."""
    if not classes:
        raise UsageError(
            f"{name or 'the model'} has no classifier, it gives features: train one on them "
            "(convnext train FOLDER --weights FILE)"
        )


def has_gradients(module: nn.Module) -> bool:
    """True if a module has parameters to differentiate by."""
    return next(module.parameters(), None) is not None


def with_initial_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module, in evaluation mode, with weights of :data:`SEED`; other random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build().eval()


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module without weights, in evaluation mode."""
    with torch.device("meta"):
        return build().eval()


def resolve(name: str | Path, weights: Weights = "trained", *, trust: bool = False) -> Model:
    """Open a model by its name, which means the same in every command.

    Args:
        name: a run folder, whose best epoch is taken; an exported file (.onnx, .pt2, .xml); a weights file of any
            layout, or a folder as timm and transformers save it; ``VARIANT.TAG`` for weights of the ConvNeXt authors,
            such as ``convnext_tiny.in22k_in1k``; ``torchvision/NAME``, ``timm/NAME`` or ``timm/NAME.TAG``; or what
            else ``create_model`` builds, such as ``convnext_tiny`` or ``roadmap_micro/kernel_7``.
        weights: ``trained`` if the command needs trained weights: the name of an architecture then means its published
            weights. ``named`` for those that the name has: an architecture gets initial ones. ``none`` to read and
            download as little as possible: the module is on the meta device, except that of an exported file.
        trust: open a ``.pt2`` file that was not exported here, though it can run any code.

    Raises:
        UsageError: there is no such model, it has no trained weights, or a file may run code and is not trusted.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    parsed = parse_name(name)
    if parsed.kind == "run":
        return open_run(parsed, weights)
    if parsed.kind == "weights":
        return from_weights(parsed, open_weights(parsed.path), None, weights)
    if parsed.kind == "exported":
        return from_exported(parsed, open_exported(parsed.path, trust))
    if weights == "trained" or (weights == "named" and parsed.tag):
        return open_library_model(parsed) if parsed.kind == "library" else open_published(parsed)
    return open_untrained(parsed, weights)


def open_run(name: ModelName, weights: Weights) -> Model:
    """A training run, with the weights of its best epoch."""
    folder = name.path
    check_run(folder)
    recipe, classes = read_recipe(folder), read_classes(folder)
    build = partial(build_model, recipe, len(classes))
    record = folder / "data.json"
    images = read_json(record).get("images") if record.exists() else None
    return Model(
        name.text,
        name.kind,
        on_meta(build) if weights == "none" else load_best(folder, recipe, len(classes)),
        classes,
        read_preprocessing(folder, recipe),
        weights="best epoch of the run",
        build=build,
        folder=folder,
        recipe=recipe,
        data={"images": images, "val_fraction": recipe.val_fraction} if images else {},
    )


def open_published(name: ModelName) -> Model:
    """Weights of the ConvNeXt authors: those of the tag, or the best ones of the variant for 224 px."""
    if not name.tag and not tags_of(name.model):
        on_meta(partial(create_model, name.model))  # for its error where there is no such model
        raise UsageError(
            f"{name.text} has no trained weights, none are published for it: train it (convnext train DATA --model "
            f"{name.text}) and name the run folder"
        )
    row = checkpoint(name.model, name.tag or True)
    opened = open_weights(fetch(row.variant, row.tag))
    full = ModelName(f"{row.variant}.{row.tag}", "published")
    return from_weights(full, opened, Preprocessing.published(row.image_size), "trained", row.notes)


def from_weights(
    name: ModelName,
    opened: Opened,
    preprocessing: Preprocessing | None,
    weights: Weights,
    notes: tuple[str, ...] = (),
) -> Model:
    """Weights of a file, with the classes and preprocessing that it or the files beside it name.

    Classes default to ImageNet's, if it has as many; preprocessing to the published one for 224 px.
    """
    architecture, classes = opened.architecture, opened.description.classes
    channels, count = architecture.in_channels, architecture.num_classes
    if channels not in (1, 3):
        raise UsageError(
            f"{name.text} takes images of {channels} channels, and image files have 3 or 1: use the module itself, "
            f"convnext.create_model(..., in_chans={channels}) with convnext.load_weights"
        )
    if classes is None:
        known = class_names(count)
        classes = known or tuple(f"class {label}" for label in range(count))
        if count and not known:
            notes = (*notes, f"{name.text} has no names for its classes ({count}): they are called by their numbers")
    preprocessing = opened.description.preprocessing or preprocessing
    if preprocessing is None:
        preprocessing = default_preprocessing(architecture)
        notes = (*notes, f"{name.text} does not say how images are prepared: as for the published models at 224 px")
    return Model(
        name.text,
        name.kind,
        on_meta(architecture.build) if weights == "none" else opened.build(),
        classes,
        preprocessing,
        weights=f"{architecture.name}, {opened.layout} layout",
        build=architecture.build,
        aliases=partial(folder_names, count) if opened.description.classes is None else dict,
        notes=(*opened.notes, *notes),
    )


def open_library_model(name: ModelName) -> Model:
    """A model of torchvision or timm with the weights that its library publishes."""
    module, classes, preprocessing, weights = load_pretrained(name.text)
    return Model(
        name.text,
        name.kind,
        module,
        classes,
        preprocessing,
        weights,
        build=partial(create_model, name.model),
        aliases=partial(folder_names, len(classes)),
    )


def from_exported(name: ModelName, module: RuntimeModel) -> Model:
    """An exported file, opened in its runtime."""
    card = module.card
    is_imagenet = bool(card.classes) and class_names(len(card.classes)) == card.classes
    return Model(
        name.text,
        name.kind,
        module,
        card.classes,
        card.preprocessing,
        weights=f"{card.model}, {card.precision}, {card.format} file by {module.runtime}",
        data=card.data,
        aliases=partial(folder_names, len(card.classes)) if is_imagenet else dict,
        notes=card.notes,
    )


def open_untrained(name: ModelName, weights: Weights) -> Model:
    """An architecture with initial weights, or with none on the meta device; nothing is downloaded."""
    row = checkpoint(name.model, name.tag) if name.kind == "published" and name.tag else None
    count = row.classes if row else 1000
    build = partial(create_model, name.model, **({"num_classes": count} if row else {}))
    note = f"{name.text} is untrained (seed {SEED}): for a trained one, name a run, a weights file or VARIANT.TAG"
    return Model(
        name.text,
        name.kind,
        on_meta(build) if weights == "none" else with_initial_weights(build),
        class_names(count) or (),
        Preprocessing.published(row.image_size if row else DEFAULT_IMAGE_SIZE),
        weights=f"initial, seed {SEED}",
        is_trained=False,
        build=build,
        notes=() if weights == "none" else (note,),
    )
