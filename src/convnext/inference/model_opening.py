"""What a user names to evaluate or to predict with: the place that tells a run, a file and published weights apart."""

from pathlib import Path

from convnext.errors import UsageError
from convnext.inference.exported import is_exported, open_exported
from convnext.inference.library_models import open_published
from convnext.inference.trained import Trained, open_run
from convnext.inference.weights_model import open_file, open_tag
from convnext.models import is_reference
from convnext.models.convnext import VARIANTS
from convnext.weights.reading import IN_FOLDERS, SUFFIXES, mode_of

LONGEST_NAME = 255  # bytes that file systems take; beyond, looking for it fails in other ways


def is_published(name: str | Path) -> bool:
    """Whether a name means published weights, of this package's networks or of a library's; a path that is there goes
    first."""
    known = is_reference(str(name)) or str(name).partition(".")[0] in VARIANTS
    return known and not Path(name).exists()


def is_weights(name: str | Path) -> bool:
    """Whether a name means a weights file, there or not, or a folder with one that is no run's."""
    path = Path(name)
    if not path.is_dir():
        return path.is_file() or path.suffix in SUFFIXES
    return not (path / "recipe.json").exists() and any((path / file).is_file() for file in IN_FOLDERS)


def is_trained(name: str) -> bool:
    """Whether a name means a run, weights or an exported file rather than a network that is built by its name; a path
    that is there goes first."""
    of_networks = name in VARIANTS or is_reference(name) or name.startswith("roadmap_")
    path_or_tag = "/" in name or is_weights(name) or is_exported(name) or name.partition(".")[0] in VARIANTS
    return Path(name).exists() or (path_or_tag and not of_networks)


def open_trained(name: str | Path, trust: bool = False) -> Trained:
    """Open a trained network by what it is called.

    Args:
        name: a run's folder; an exported file (.onnx, .pt2, .xml); a weights file, or a folder as the hub's libraries
            save it; ``VARIANT`` or ``VARIANT.TAG`` for the authors' published weights, such as
            ``convnext_tiny.in22k_in1k``; or ``torchvision/NAME``, ``timm/NAME`` for a network with the weights that
            its library publishes.
        trust: open a ``.pt2`` file that was not exported here as well, though it can run any code.

    Raises:
        UsageError: there is no such run, file or network, or a file may run code and is not trusted.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    path = Path(name)
    if mode_of(path) is None and len(str(name)) > LONGEST_NAME:
        raise UsageError(f"no run, file or network has a name of {len(str(name)):,} characters: check the path")
    if is_published(name):
        return open_published(str(name)) if is_reference(str(name)) else open_tag(str(name))
    if is_exported(name):
        return open_exported(path, trust)
    return open_file(Path(name)) if is_weights(name) else open_run(Path(name))
