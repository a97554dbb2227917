"""The recipe's network: built, and prepared for training."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from convnext.acceleration.accelerate import accelerate, acceleration_report
from convnext.data.preprocessing import Preprocessing
from convnext.data.sources import NAMES
from convnext.errors import UsageError
from convnext.models import create_model, is_reference
from convnext.training.recipe import Recipe


def build(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network, freshly initialised.

    Raises:
        UsageError: the network is unknown, or the recipe's images are too small for it.
    """
    image_size = min(recipe.image_size, recipe.evaluation_size)
    if is_reference(recipe.model):
        return create_model(recipe.model, num_classes=num_classes, image_size=image_size)
    options = {"stem_stride": recipe.stem_stride, "layer_scale_init_value": recipe.layer_scale}
    options = {name: value for name, value in options.items() if value is not None}
    head = {"num_classes": num_classes, "head_init_scale": recipe.head_init_scale}
    model = create_model(recipe.model, drop_path_rate=recipe.drop_path, **head, **options)
    smallest = model.smallest_image
    if isinstance(smallest, int) and image_size < smallest:
        raise UsageError(
            f"image size {image_size} is too small for {recipe.model} (needs at least {smallest}): pass "
            f"--image-size {smallest} or more"
        )
    return model


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """How images are prepared for the recipe's network in evaluation: those that come in memory are not cropped."""
    prepare = Preprocessing.whole if recipe.data in NAMES else Preprocessing.published
    return prepare(recipe.evaluation_size)


def smallest_batch(model: nn.Module) -> int:
    """Images that a network needs at once in training: BatchNorm has no statistics of one image."""
    return 2 if any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules()) else 1


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """A network's blocks by name, in order: the outermost modules in a sequence that are of the network's own classes.

    Works for this package's networks, torchvision's and timm's alike; of timm's, a stage counts as a block.
    """
    found: dict[str, nn.Module] = {}
    for parent, sequence in model.named_modules():
        if isinstance(sequence, nn.Sequential | nn.ModuleList) and not parent.startswith(tuple(f"{n}." for n in found)):
            for name, child in sequence.named_children():
                kind = getattr(type(child), "plain_class", type(child))  # what it was before it was fused
                own = not kind.__module__.startswith("torch.nn")
                if own and any(True for _ in child.children()):
                    found[f"{parent}.{name}" if parent else name] = child
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def accelerate_blocks(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Have the model trained by kernels where there are some; ``fuse`` takes those that no GPU has measured yet.

    Raises:
        UsageError: ``fuse`` is set, and the device has no such kernels, or the model has nothing that they compute.
    """
    from convnext.acceleration.gpu.triton_runtime import runs_on

    if recipe.fuse and not runs_on(device):
        raise UsageError(f"fuse needs an NVIDIA GPU and Triton, and this trains on {device.type}: leave --fuse out")
    accelerate(model, training=True, experimental=recipe.fuse)
    report = acceleration_report(model)
    if recipe.fuse and not report.swapped:
        raise UsageError(f"there is nothing to fuse in this model ({report}): leave --fuse out")


def checkpoint_blocks(model: nn.Module) -> None:
    """Have every block keep its input only, and compute its inside again in the backward pass.

    Raises:
        UsageError: the network has no blocks that can be told apart.
    """
    if hasattr(model, "set_grad_checkpointing"):  # timm's own way, which is finer
        model.set_grad_checkpointing()  # pyright: ignore[reportCallIssue]
        return
    found = blocks(model)
    if not found:
        raise UsageError(f"{type(model).__name__} has no blocks to recompute: leave --checkpoint-activations out")
    for block in found.values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Hold BatchNorm's running statistics, which a block that is computed again would move a second time."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
