"""What a recipe's ``weights`` means: a file, a run's folder, or published weights by their tag."""

import os
from dataclasses import dataclass
from pathlib import Path

from convnext.errors import UsageError, unknown_name
from convnext.weights.hub import fetch
from convnext.weights.published import PUBLISHED, published, tags_of
from convnext.weights.reading import weights_file


@dataclass(frozen=True)
class Resolved:
    """A weights file, and what should be said of it."""

    path: Path
    notes: tuple[str, ...] = ()


def resolve(name: str, variant: str) -> Resolved:
    """The file that ``name`` means for a network; published weights are downloaded where they are not at hand.

    Args:
        name: a tag of the published weights (``in1k``, ``in22k``, ...), a weights file, or a run's folder. A file or
            folder that is called like a tag needs ``./`` before it.
        variant: the network's name.

    Raises:
        UsageError: it is neither; the nearest tags are listed.
        RunError: the download failed.
    """
    if name in {tag for _, tag in PUBLISHED}:
        return Resolved(fetch(variant, name), published(variant, name).notes)
    path = Path(name)
    if path.exists() or "/" in name or os.sep in name or path.suffix:
        return Resolved(weights_file(path))
    tags = tags_of(variant)
    if not tags:
        raise UsageError(
            f"no weights at {name}, and none are published for {variant}: give a weights file or a run's folder"
        )
    raise unknown_name("weights", name, tags, "Or give the path of a weights file or a run's folder.")
