"""What a user names to look inside: a run, weights, or a network by its name, which is then untrained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from convnext.data.imagenet import class_names
from convnext.data.preprocessing import Preprocessing
from convnext.errors import UsageError
from convnext.inference.model_opening import is_published, is_trained, open_trained
from convnext.inference.trained import Trained
from convnext.models import create_model, is_reference, list_models
from convnext.models.convnext import VARIANTS
from convnext.training.build import build_model
from convnext.weights.pretrained import checkpoint
from convnext.weights.shapes import architecture_of

SEED = 0  # of the weights of untrained networks
IMAGE_SIZE = 224  # px that an untrained network is shown


@dataclass(frozen=True)
class Studied:
    """A network to look inside.

    Attributes:
        name: what it was asked for by.
        model: in evaluation mode, on the CPU.
        classes: names, in the order of its logits; none where it has no classifier.
        preprocessing: how pictures are prepared for it.
        trained: what was opened; None where the network is untrained.
        notes: what should be said to who uses it.
    """

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    trained: Trained | None
    notes: tuple[str, ...] = ()


def is_built(name: str) -> bool:
    """Whether a name means a network that is built with initial weights; a path that is there goes first.

    ``timm/NAME.TAG`` names weights, ``timm/NAME`` does not.
    """
    return not Path(name).exists() and ((is_reference(name) and "." not in name) or name in list_models())


def open_studied(name: str, *, published: bool = False, trust: bool = False) -> Studied:
    """A network by what it is called.

    Args:
        name: what :func:`convnext.load` opens, or a network's name, such as ``roadmap_micro/kernel_7``.
        published: take ``convnext_tiny`` or ``torchvision/resnet50`` for the network with the weights published for
            it, as `convnext predict` does, rather than for an untrained one.
        trust: open a ``.pt2`` file that was not exported here as well, though it can run any code.

    Raises:
        UsageError: there is no such run, file or network.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    if not is_built(name) or (published and is_published(name)):
        opened = open_trained(name, trust)
        return Studied(name, opened.model, opened.classes, opened.preprocessing, opened, opened.notes)
    model = seeded(lambda: create_model(name))
    note = f"{name} is untrained (seed {SEED}): for a trained one, name a run, a weights file or VARIANT.TAG"
    return Studied(name, model, class_names(1000) or (), Preprocessing.published(IMAGE_SIZE), None, (note,))


def seeded(create: Callable[[], nn.Module]) -> nn.Module:
    """A network with the initial weights of :data:`SEED`, in evaluation mode; other random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return create().eval()


def untrained_twin(studied: Studied) -> nn.Module:
    """The same network with initial weights.

    Raises:
        UsageError: it is not known how it is built.
    """
    trained = studied.trained
    if trained is None:
        return studied.model
    if trained.recipe is not None:
        recipe, number = trained.recipe, len(trained.classes)
        return seeded(lambda: build_model(recipe, number))
    if is_reference(studied.name):
        return seeded(lambda: create_model(studied.name.partition(".")[0]))
    try:
        architecture = architecture_of(studied.model.state_dict())
    except UsageError as error:
        raise UsageError(f"{studied.name} has no untrained counterpart that is known ({error})") from error
    return seeded(architecture.build)


def untrained_and_trained(studied: Studied) -> list[tuple[str, nn.Module]]:
    """A network untrained and, where it is, trained; each with the word for it."""
    untrained = ("untrained", untrained_twin(studied))
    return [untrained] if studied.trained is None else [untrained, ("trained", studied.model)]


def without_weights(name: str) -> tuple[nn.Module, int]:
    """A model by name with the image size it was trained at, or 224 px; published weights are not downloaded.

    Raises:
        UsageError: there is no such run, file or model.
    """
    variant, _, tag = name.partition(".")
    if variant in VARIANTS and tag and not Path(name).exists():
        row = checkpoint(variant, tag)
        with torch.device("meta"):
            return create_model(variant, num_classes=row.classes), row.image_size
    if is_trained(name):
        opened = open_trained(name)
        return opened.model, opened.preprocessing.image_size
    with torch.device("meta"):
        return create_model(name), IMAGE_SIZE
