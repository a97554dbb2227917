"""The names of models that every command takes: the one place that tells what a name means."""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convnext.errors import UsageError
from convnext.models import is_reference
from convnext.models.convnext import VARIANTS
from convnext.weights.hub import fetch
from convnext.weights.pretrained import checkpoint
from convnext.weights.published import PUBLISHED, tags_of
from convnext.weights.reading import IN_FOLDERS, SUFFIXES, mode_of, weights_file

Kind = Literal["run", "weights", "exported", "published", "library", "architecture"]
EXPORTED_SUFFIXES = (".onnx", ".pt2", ".xml")
MAX_NAME = 255  # bytes that file systems take; with longer names, stat fails in other ways


@dataclass(frozen=True)
class ModelName:
    """A name of a model, parsed.

    Attributes:
        text: the name as the user gave it.
        kind: its meaning. ``run``: a folder that ``convnext train`` wrote. ``weights``: a weights file, or a folder as
            timm and transformers save it. ``exported``: an .onnx, .pt2 or .xml file. ``published``: ``VARIANT.TAG``,
            weights of the ConvNeXt authors. ``library``: ``torchvision/NAME``, ``timm/NAME`` or ``timm/NAME.TAG``.
            ``architecture``: what only ``create_model`` knows, such as ``VARIANT`` or ``roadmap_REGIME/STEP``.
    """

    text: str
    kind: Kind

    @property
    def path(self) -> Path:
        """The name as a path."""
        return Path(self.text)

    @property
    def model(self) -> str:
        """The name that ``create_model`` takes, without a tag of weights."""
        return self.text.partition(".")[0] if self.kind in ("published", "library") else self.text

    @property
    def tag(self) -> str | None:
        """The tag of the weights, where the name has one."""
        return self.text.partition(".")[2] or None if self.kind in ("published", "library") else None


def parse_name(name: str | Path) -> ModelName:
    """Tell what a name means; a file or folder that exists takes precedence over a model's name.

    What is nothing else is taken for a run folder, which opening it then does not find.

    Raises:
        UsageError: no file, folder or model can have this name.
    """
    text, path = str(name), Path(name)
    mode = mode_of(path)
    if mode is not None and stat.S_ISDIR(mode):
        is_run = (path / "recipe.json").exists() or not any((path / file).is_file() for file in IN_FOLDERS)
        return ModelName(text, "run" if is_run else "weights")
    if mode is None and len(text) > MAX_NAME:
        raise UsageError(f"a model's name has {len(text):,} characters, at most {MAX_NAME} are possible: check it")
    suffix = path.suffix.lower()
    if suffix in EXPORTED_SUFFIXES:
        return ModelName(text, "exported")
    if mode is not None or suffix in SUFFIXES:
        return ModelName(text, "weights")
    if is_reference(text):
        return ModelName(text, "library")
    base = text.partition(",")[0]
    if base in VARIANTS or base.startswith("roadmap_"):
        return ModelName(text, "architecture")
    if base.partition(".")[0] in VARIANTS:
        return ModelName(text, "published")
    return ModelName(text, "run")


def find_weights(name: str | Path, model: str | None = None) -> tuple[Path, tuple[str, ...]]:
    """The weights file that a name means, and remarks for the user; published weights are downloaded once.

    Args:
        name: a run folder, a weights file, a folder as timm and transformers save it, or ``VARIANT.TAG``. With
            ``model``, also a tag alone; a file that is called like a tag needs ``./`` before it.
        model: the name of the model that takes the weights.

    Raises:
        UsageError: there are no such weights, or the name means a model without a weights file.
        RunError: the weights could not be downloaded.
    """
    text = str(name)
    is_bare = not (set("./\\") & set(text)) and text not in VARIANTS and not Path(text).exists()
    if model and (is_bare or text in {tag for _, tag in PUBLISHED}):
        if not tags_of(model):
            raise UsageError(f"no weights at {text}, and none are published for {model}: pass a run folder or a file")
        row = checkpoint(model, text)
        return fetch(row.variant, row.tag), row.notes
    parsed = parse_name(name)
    if parsed.kind in ("run", "weights"):
        return weights_file(parsed.path), ()
    if parsed.model in VARIANTS:
        row = checkpoint(parsed.model, parsed.tag or True)
        return fetch(row.variant, row.tag), row.notes
    kinds = "a run folder, a weights file, a folder as timm and transformers save it, or VARIANT.TAG"
    raise UsageError(f"{text} has no weights file of this package: pass {kinds}")
