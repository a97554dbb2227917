"""Layer-wise learning rates: the group of every parameter, counted from the input."""

from typing import Any

from torch import nn

from convnext.models.convnext import IsotropicConvNeXt, StagedNetwork
from convnext.training.build import blocks

MIDDLE_GROUPS = 9  # of the paper's 12 groups, those of the third stage: its 27 blocks in threes


def layer_groups(model: nn.Module, by: str) -> dict[str, int]:
    """The group of each parameter by name; the head is in the last.

    Args:
        model: a staged network gets the paper's groups; others (isotropic, references) a group for each block.
        by: ``group``: the paper's 12 groups and the head, with the third stage's blocks, however many, divided evenly
            over nine; or ``block``, V2's: every block by itself, a downsampling layer with the block behind it.
    """
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, StagedNetwork):
        depths = [len(stage) for stage in model.stages]  # pyright: ignore[reportArgumentType]
        rule = paper_group if by == "group" else block_group
        return {name: rule(name, depths) for name in names}
    if hasattr(model, "group_matcher"):  # timm's networks say it themselves
        from timm.models import group_parameters

        groups: Any = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # pyright: ignore
        return {name: groups[name] for name in names}
    starts = [f"{name}." for name in blocks(model)]
    return sequence_groups(names, starts, first=["stem."] if isinstance(model, IsotropicConvNeXt) else [])


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
    """V2's groups for its smaller networks: blocks counted from 1."""
    part, *position = name.split(".")
    if part == "downsample_layers":
        return sum(depths[: int(position[0])]) + 1
    if part == "stages":
        return sum(depths[: int(position[0])]) + int(position[1]) + 1
    return sum(depths) + 1


def sequence_groups(names: list[str], starts: list[str], first: list[str]) -> dict[str, int]:
    """A group for each block in order; what comes before the first is in group 0, what comes after the last behind."""
    groups, reached = {}, 0
    for name in names:
        number = next((i for i, start in enumerate(starts, 1) if name.startswith(start)), None)
        if number is not None:
            reached = max(reached, number)
        stem = name.startswith(tuple(first)) if first else reached == 0
        groups[name] = number if number is not None else 0 if stem else min(reached, len(starts)) + 1
    return groups
