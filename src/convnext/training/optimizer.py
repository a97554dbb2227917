"""AdamW with the recipe's parameter groups: weight decay, layer-wise learning rates, and the schedule."""

import math
from typing import Any

import torch
from torch import nn

from convnext.errors import UsageError
from convnext.models.convnext import StagedNetwork
from convnext.training.blocks import blocks
from convnext.training.recipe import Recipe

MIDDLE_GROUPS = 9  # of the paper's 12 groups, those of the third stage: its 27 blocks in threes


def adamw(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.AdamW:
    """AdamW with the recipe's values; each group's ``lr_scale`` multiplies the learning rate."""
    groups = parameter_groups(model, recipe)
    return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float, minimum: float) -> float:
    """The rate at ``step`` of ``steps``: linear from 0 to ``peak`` over the warm-up, then a half cosine to ``minimum``.

    As in the paper's code, the first step's rate is 0 and the last one of the warm-up has the peak.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters by layer group and by weight decay, from the input to the head.

    Raises:
        UsageError: the recipe has a layer decay, and the model no layer groups.
    """
    decayed = decayed_parameters(model)
    layers = layer_groups(model, recipe.layer_groups) if recipe.layer_decay < 1 else {}
    head = max(layers.values(), default=0)
    if layers and not head:
        raise UsageError(f"layer_decay is {recipe.layer_decay} and {recipe.model} has no layer groups: pass 1")
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        key = (layers.get(name, head), name not in decayed)
        weight_decay = recipe.weight_decay if name in decayed else 0.0
        lr_scale = recipe.layer_decay ** (head - key[0])
        group = groups.setdefault(key, {"params": [], "weight_decay": weight_decay, "lr_scale": lr_scale})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def decayed_parameters(model: nn.Module) -> set[str]:
    """The names of the parameters with weight decay: not biases, 1-d parameters, and the model's own exceptions."""
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # pyright: ignore[reportCallIssue]
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
    }


def layer_groups(model: nn.Module, by: str) -> dict[str, int]:
    """The group of each parameter by name, counted from the input; the head is in the last.

    A staged model has the paper's 12 groups and the head, with the third stage's blocks divided evenly over nine, or by
    ``block`` V2's: one group per block, a downsampling layer with the block after it. Others have one group per block.
    """
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, StagedNetwork):
        depths = [len(stage) for stage in model.stages]  # pyright: ignore[reportArgumentType]
        rule = paper_group if by == "group" else block_group
        return {name: rule(name, depths) for name in names}
    if hasattr(model, "group_matcher"):  # of isotropic models, and timm's
        from timm.models import group_parameters

        groups: Any = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # pyright: ignore
        return {name: groups[name] for name in names}
    return sequence_groups(names, [f"{name}." for name in blocks(model)])


def paper_group(name: str, depths: list[int]) -> int:
    """The paper's groups: downsampling layers 0, 2, 3, 12; stages 1, 2, 3 to 11, 12; the rest 13."""
    part, *position = name.split(".")
    if part == "downsample_layers":
        return (0, 2, 3, 12)[int(position[0])]
    if part == "stages":
        stage, block = int(position[0]), int(position[1])
        return (1, 2, 3 + block * MIDDLE_GROUPS // depths[2], 12)[stage]
    return 13


def block_group(name: str, depths: list[int]) -> int:
    """V2's groups for its smaller models: blocks counted from 1."""
    part, *position = name.split(".")
    if part == "downsample_layers":
        return sum(depths[: int(position[0])]) + 1
    if part == "stages":
        return sum(depths[: int(position[0])]) + int(position[1]) + 1
    return sum(depths) + 1


def sequence_groups(names: list[str], starts: list[str]) -> dict[str, int]:
    """One group per block in order; parameters before the first block are in group 0, those after the last follow."""
    groups, reached = {}, 0
    for name in names:
        number = next((i for i, start in enumerate(starts, 1) if name.startswith(start)), None)
        reached = max(reached, number or 0)
        after = min(reached, len(starts)) + 1 if reached else 0
        groups[name] = after if number is None else number
    return groups
