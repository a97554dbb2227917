"""What a user names to evaluate or to predict with: the one place that tells a run from a network of a library."""

from pathlib import Path

from convnext.deploy.published import open_published
from convnext.deploy.trained import Trained, open_run
from convnext.errors import UsageError
from convnext.models import is_reference


def is_published(name: str | Path) -> bool:
    """Whether a name means a library's network with its published weights; a run's folder of that name goes first."""
    return is_reference(str(name)) and not (Path(name) / "recipe.json").exists()


def open_trained(name: str | Path) -> Trained:
    """Open a run's folder, or ``torchvision/NAME``, ``timm/NAME`` with the weights that their library publishes.

    Raises:
        UsageError: there is no such run or network.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    if is_published(name):
        return open_published(str(name))
    if Path(name).is_file():
        raise UsageError(f"{name} is a file: name a run's folder, or torchvision/NAME, timm/NAME")
    return open_run(Path(name))
