"""Why a loss is not finite: the first module whose output is not."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def first_bad_module(model: nn.Module, images: Tensor, autocast: AbstractContextManager[Any]) -> str:
    """Describe what first gives a value that is not finite in the forward pass of a batch (N, 3, H, W)."""
    if not torch.isfinite(images).all():
        return "the images themselves are not finite"
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return module.register_forward_hook(hook)

    hooks = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), autocast:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return "every module's output is finite, the loss itself is not"
    weights = model.get_submodule(found[0]).parameters()
    cause = "" if all(torch.isfinite(weight).all() for weight in weights) else ", whose weights are not finite"
    return f"the first module with an output that is not finite is {found[0]}{cause}"
