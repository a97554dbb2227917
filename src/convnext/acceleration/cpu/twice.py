"""Gradients of gradients, for operators whose gradients are in C."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def through(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Any, ...], grads: Any) -> tuple[Any, ...]:
    """Gradients with respect to the tensors among ``inputs``, through a plain form of the function.

    Args:
        function: of torch's own operators; an output may depend on none of the inputs.
        inputs: tensors, None and numbers.
        grads: what reaches each of the function's outputs; None for nothing.
    """
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() if isinstance(value, Tensor) else value for value in inputs]
        pairs = zip(function(*leaves), grads, strict=True)
        pairs = [pair for pair in pairs if pair[0].requires_grad and pair[1] is not None]
        outputs, weights = zip(*pairs, strict=True)
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        found = iter(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))
    return tuple(next(found) if isinstance(leaf, Tensor) else None for leaf in leaves)
