"""A run folder opened: the trained network with its classes, and how images are prepared for it."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.files import read_json
from convnext.models import is_reference
from convnext.training.build import build_model, preprocessing_of
from convnext.training.checkpoint import RunFolder
from convnext.training.recipe import Recipe

NEEDED = ("data", "model", "image_size", "layer_scale", "stem_stride", "val_fraction")  # what evaluation goes by


@dataclass(frozen=True)
class Trained:
    """A trained network, and what it takes to use it.

    Attributes:
        name: the run's folder, the weights file, or the published weights' name.
        model: the network in evaluation mode, on the CPU: prepared images to logits.
        classes: the names of its classes, in the order of its logits.
        preprocessing: how pictures are prepared for it.
        weights: which weights these are, in words.
        folder: the run's folder; None where the weights are a library's.
        recipe: the run's recipe; None where the weights are a library's.
        aliases: gives other names of the classes, with their places among the logits.
        notes: what should be said to who uses it.
        runtime: what computes it in place of torch, or of its eager mode: an exported file's; None for a network.
        trained_on: what tells the images that an exported file's run held out; empty where that is not known.
    """

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: str
    folder: Path | None = None
    recipe: Recipe | None = None
    aliases: Callable[[], Mapping[str, int]] = dict
    notes: tuple[str, ...] = ()
    runtime: str | None = None
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_gradients(self) -> bool:
        """Whether the network can be differentiated: an exported file only infers."""
        return has_gradients(self.model)

    def device_name(self, asked: str) -> str:
        """The device to use where ``asked`` was asked for: an exported file runs on the processor.

        Raises:
            UsageError: another was asked for.
        """
        if self.runtime is None:
            return asked
        if asked not in ("auto", "cpu"):
            raise UsageError(
                f"{self.name} is an exported file, which runs on the processor here: leave out --device {asked}"
            )
        return "cpu"


def has_gradients(model: nn.Module) -> bool:
    """Whether a network has weights to differentiate by, as an exported file has not."""
    return next(model.parameters(), None) is not None


def open_run(folder: Path) -> Trained:
    """Open a run folder: the network with the weights of its best epoch.

    Raises:
        UsageError: there is no such folder, or it is no run.
        RunError: no epoch of the run is finished, a file is damaged, or another version of this package wrote it.
    """
    if not folder.is_dir():
        raise UsageError(f"no run folder {folder}{nearby_runs(folder)}")
    if not (folder / "recipe.json").is_file():
        raise UsageError(f"{folder} is no run, it has no recipe.json: name a folder that `convnext train` wrote")
    recipe, classes = read_recipe(folder), read_classes(folder)
    path = RunFolder(folder).best
    if not path.exists():
        raise RunError(f"{folder} has no finished epoch yet (no {path.name}): let the training go on")
    model = build_unfilled(recipe, len(classes))
    try:
        weights = safetensors.torch.load_file(path)
        # Copied: as they lie in a file, out of step with the processor's vectors, they are half as fast.
        model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot read {path}, it is damaged ({error}): train again, or fetch the file again") from error
    except RuntimeError as error:
        differences = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise RunError(
            f"{path} does not fit {recipe.model} with {len(classes)} classes as recipe.json and classes.json have it "
            f"({differences}): a file is of another run, or of another version of this package"
        ) from error
    return Trained(
        name=str(folder),
        model=model.eval(),
        classes=classes,
        preprocessing=read_preprocessing(folder, recipe),
        weights="best epoch of the run",
        folder=folder,
        recipe=recipe,
    )


def build_unfilled(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network for weights to be put into: initial ones would take longer to draw than a file to read.

    A network of a library is built in full: it may have tensors that are not among its weights.
    """
    if is_reference(recipe.model):
        return build_model(recipe, num_classes)
    with torch.device("meta"):
        return build_model(recipe, num_classes)


def nearby_runs(folder: Path) -> str:
    """The runs beside a folder that is not there, for a message."""
    try:
        runs = sorted(path.parent for path in folder.parent.glob("*/recipe.json"))
    except OSError:
        runs = []
    if not runs:
        return f": check the path (now in {Path.cwd()})"
    return f": there {'is' if len(runs) == 1 else 'are'} {', '.join(map(str, runs[:8]))}{', ...' if runs[8:] else ''}"


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run."""
    path = folder / "recipe.json"
    written = read_json(path)
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(written) - known):
        raise RunError(
            f"{path} has fields that this version does not know ({', '.join(unknown)}): it was written by "
            f"{version_of(folder)}; install that version or a newer one"
        )
    if missing := [name for name in NEEDED if name not in written]:
        raise RunError(f"{path} lacks {', '.join(missing)}: it was written by {version_of(folder)}, or changed since")
    try:
        return Recipe.from_dict(written)
    except (TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def read_preprocessing(folder: Path, recipe: Recipe) -> Preprocessing:
    """How images are prepared for a run's network; by its recipe, where the run is of before this was recorded."""
    path = RunFolder(folder).preprocessing
    if not path.exists():
        return preprocessing_of(recipe)
    try:
        return Preprocessing.from_dict(read_json(path))
    except UsageError as error:
        raise RunError(
            f"{path} is damaged or of a newer version ({error}): move it away to take what recipe.json implies"
        ) from error


def version_of(folder: Path) -> str:
    """The version of this package that wrote a run, as far as is known."""
    path = folder / "environment.json"
    versions = read_json(path).get("versions") if path.exists() else None
    version = versions.get("convnext") if isinstance(versions, dict) else None
    return f"convnext {version}" if version else "another version of convnext"


def read_classes(folder: Path) -> tuple[str, ...]:
    """The names of a run's classes."""
    path = folder / "classes.json"
    try:
        classes = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} ({error}): it is written when a training begins, so train again") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{path} is damaged: it needs a list of names")
    return tuple(classes)
