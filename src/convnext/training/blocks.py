"""The blocks of any model, and their recomputation in the backward pass."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from convnext.errors import UsageError
from convnext.models.layers import Stage


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """A model's blocks by name, in order: the outermost modules of a sequence whose classes are the model's own.

    Works for this package's models, torchvision's and timm's; in timm's, a stage counts as a block.
    """
    found: dict[str, nn.Module] = {}
    for parent, sequence in model.named_modules():
        if isinstance(sequence, nn.Sequential | nn.ModuleList) and not parent.startswith(tuple(f"{n}." for n in found)):
            for name, child in sequence.named_children():
                kind = getattr(type(child), "plain_class", type(child))  # the class before it was fused
                own = kind is not Stage and not kind.__module__.startswith("torch.nn")
                if own and any(True for _ in child.children()):
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
