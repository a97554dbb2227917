"""The optimiser's parameter groups and the learning rate at each step."""

import math

import torch
from torch import nn

from convnext.models.layers import GlobalResponseNorm
from convnext.training.recipe import Recipe


def adamw(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.AdamW:
    """AdamW in the recipe's terms, with weight decay on the group of parameters that gets it."""
    decayed, exempt = decay_groups(model)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay and without: none on biases, 1-d parameters and GRN, whose parameters are 4-d."""
    grn = {id(p) for module in model.modules() if isinstance(module, GlobalResponseNorm) for p in module.parameters()}
    decayed, exempt = [], []
    for name, parameter in model.named_parameters():
        free = parameter.ndim <= 1 or name.endswith(".bias") or id(parameter) in grn
        (exempt if free else decayed).append(parameter)
    return decayed, exempt


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, minimum: float) -> float:
    """The rate at ``step`` of ``steps``: linear from 0 to ``peak`` over the warm-up, then a half cosine to ``minimum``.

    As in the paper's code, the first step's rate is 0 and the last one of the warm-up has the peak.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))
