"""The optimiser's parameter groups and the learning rate at each step."""

import math
from typing import Any

import torch
from torch import nn

from convnext.errors import UsageError
from convnext.models.layers import GlobalResponseNorm
from convnext.training.layer_groups import layer_groups
from convnext.training.recipe import Recipe


def adamw(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.AdamW:
    """AdamW in the recipe's terms; each group's ``lr_scale`` is its part of the learning rate."""
    groups = parameter_groups(model, recipe)
    return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters by layer group and by weight decay, from the input to the head.

    Raises:
        UsageError: layer-wise rates are asked for, and the network's layers cannot be told apart.
    """
    decayed = decayed_parameters(model)
    layers = layer_groups(model, recipe.layer_groups) if recipe.layer_decay < 1 else {}
    head = max(layers.values(), default=0)
    if layers and not head:
        raise UsageError(f"layer_decay is {recipe.layer_decay} and {recipe.model} has no groups of layers: pass 1")
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        key = (layers.get(name, head), name not in decayed)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "weight_decay": recipe.weight_decay if name in decayed else 0.0,
                "lr_scale": recipe.layer_decay ** (head - key[0]),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def decayed_parameters(model: nn.Module) -> set[str]:
    """The names of the parameters with weight decay.

    None on biases, 1-d parameters, GRN's, which are 4-d, and what a reference itself exempts.
    """
    grn = [name for name, module in model.named_modules() if isinstance(module, GlobalResponseNorm)]
    exempt = {f"{name}.{parameter}" for name in grn for parameter in ("gamma", "beta")}
    if hasattr(model, "no_weight_decay"):
        exempt |= set(model.no_weight_decay())  # pyright: ignore[reportCallIssue]
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
    }


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, minimum: float) -> float:
    """The rate at ``step`` of ``steps``: linear from 0 to ``peak`` over the warm-up, then a half cosine to ``minimum``.

    As in the paper's code, the first step's rate is 0 and the last one of the warm-up has the peak.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))
