"""Run folders read back: recipe, classes, preprocessing, and the model with the weights of its best epoch."""

import dataclasses
import json
from difflib import get_close_matches
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from convnext.data.preprocessing import Preprocessing
from convnext.errors import RunError, UsageError
from convnext.files import read_json
from convnext.models import is_reference, list_models
from convnext.training.build import build_model, preprocessing_of
from convnext.training.checkpoint import RunFolder
from convnext.training.recipe import Recipe

NEEDED = ("data", "model", "image_size", "layer_scale", "stem_stride", "val_fraction")  # what evaluation goes by


def check_run(folder: Path) -> None:
    """Refuse a folder that is not a training run."""
    if not folder.is_dir():
        models = get_close_matches(str(folder), list_models(), n=3)
        similar = f"; did you mean the model {', '.join(models)}?" if models else ""
        raise UsageError(f"no run folder {folder}{runs_beside(folder)}{similar}")
    if not (folder / "recipe.json").is_file():
        raise UsageError(
            f'{folder} is not a training run (recipe.json is missing): pass a folder created by "convnext train"'
        )


def runs_beside(folder: Path) -> str:
    """The runs beside a folder that does not exist, for a message."""
    try:
        runs = sorted(path.parent for path in folder.parent.glob("*/recipe.json"))
    except OSError:
        runs = []
    if not runs:
        return f": check the path (now in {Path.cwd()})"
    return f": there {'is' if len(runs) == 1 else 'are'} {', '.join(map(str, runs[:8]))}{', ...' if runs[8:] else ''}"


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run."""
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


def version_of(folder: Path) -> str:
    """The version of this package that wrote a run, for a message."""
    path = folder / "environment.json"
    versions = read_json(path).get("versions") if path.exists() else None
    version = versions.get("convnext") if isinstance(versions, dict) else None
    return f"convnext {version}" if version else "another version of convnext"


def read_classes(folder: Path) -> tuple[str, ...]:
    """Read the class names of a run."""
    path = folder / "classes.json"
    try:
        classes = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} ({error}): it is written when a training begins, so train again") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{path} is damaged: it needs a list of names")
    return tuple(classes)


def read_preprocessing(folder: Path, recipe: Recipe) -> Preprocessing:
    """Read how images are prepared for a run's model; old runs do not record it, their recipe implies it."""
    path = RunFolder(folder).preprocessing
    if not path.exists():
        return preprocessing_of(recipe)
    try:
        return Preprocessing.from_dict(read_json(path))
    except UsageError as error:
        raise RunError(
            f"{path} is damaged or of a newer version ({error}): move it away to take what recipe.json implies"
        ) from error


def load_best(folder: Path, recipe: Recipe, num_classes: int) -> nn.Module:
    """Build the model of a run with the weights of its best epoch, in evaluation mode."""
    path = RunFolder(folder).best
    if not path.exists():
        raise RunError(f"{folder} has no finished epoch yet (no {path.name}): resume the training")
    if is_reference(recipe.model):  # it may have tensors that are not in its state dict
        model = build_model(recipe, num_classes)
    else:
        with torch.device("meta"):  # drawing initial weights takes longer than reading a file
            model = build_model(recipe, num_classes)
    try:
        weights = safetensors.torch.load_file(path)
        # Copied: at their offsets in the file, out of step with the CPU's vectors, they are half as fast.
        model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot read {path}, it is damaged ({error}): train again, or copy the file again") from error
    except RuntimeError as error:
        differences = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise RunError(
            f"{path} does not fit {recipe.model} with {num_classes} classes as recipe.json and classes.json have it "
            f"({differences}): a file is of another run, or of another version of this package"
        ) from error
    return model.eval()
