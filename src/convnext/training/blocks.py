"""The blocks of any model, and their recomputation in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from convnext.errors import UsageError


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """A model's blocks by name, in order: the outermost modules of a sequence whose classes are the model's own.

    Works for this package's models, torchvision's and timm's; in timm's, a stage counts as a block.
    """
    found: dict[str, nn.Module] = {}
    for parent, sequence in model.named_modules():
        if isinstance(sequence, nn.Sequential | nn.ModuleList) and not parent.startswith(tuple(f"{n}." for n in found)):
            for name, child in sequence.named_children():
                kind = getattr(type(child), "plain_class", type(child))  # the class before it was fused
                if not kind.__module__.startswith("torch.nn") and any(True for _ in child.children()):
                    found[f"{parent}.{name}" if parent else name] = child
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def checkpoint_blocks(model: nn.Module) -> None:
    """Save each block's input only, and recompute the block in the backward pass (gradient checkpointing).

    Raises:
        UsageError: the model has no blocks.
    """
    if hasattr(model, "set_grad_checkpointing"):  # timm's protocol
        model.set_grad_checkpointing()  # pyright: ignore[reportCallIssue]
        return
    found = blocks(model)
    if not found:
        raise UsageError(f"{type(model).__name__} has no blocks to recompute: leave --checkpoint-activations out")
    for block in found.values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Freeze BatchNorm's running statistics, which a recomputed block would update a second time."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
