"""`fuse` and `unfuse`: swap a network's blocks for those whose forward is the GPU's fused kernels, and back."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convnext.acceleration.gpu.modules import (
    FusedBlock,
    FusedDepthwiseConv2d,
    FusedDesignBlock,
    FusedDownsampling,
    FusedPatchConv2d,
    obstacle_in_block,
    obstacle_in_depthwise,
    obstacle_in_downsampling,
    obstacle_in_mixing,
    obstacle_in_mlp,
    obstacle_in_patches,
)
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.design import DesignBlock, DesignNetwork

FUSED = (FusedBlock, FusedDesignBlock, FusedDepthwiseConv2d, FusedDownsampling, FusedPatchConv2d)
WHOLE = "convolution with its norm; MLP with the addition"


@dataclass(frozen=True)
class Fusion:
    """What :func:`fuse` did to a network; ``print`` it for a line a module.

    Attributes:
        fused: modules that were swapped, by name, each with what is fused in it.
        left: modules that stay as they are, each with the reason.
    """

    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"fused: {name}: {what}" for name, what in self.fused.items()]
        return "\n".join(lines + [f"left: {name}: {why}" for name, why in self.left.items()])


def fuse(model: nn.Module, *, recompute: bool = False) -> Fusion:
    """Swap a network's blocks and downsampling layers, in place, for those that the fused kernels compute on a GPU.

    Parameters stay the same objects under the same names, so that optimizers, checkpoints and hooks on blocks go on
    working; outputs and gradients differ by rounding. Wherever the kernels do not run, and with
    ``CONVNEXT_KERNELS=off``, a swapped module computes exactly what it did before. Swap before activation checkpointing
    and ``torch.compile`` are set up.

    Args:
        model: this package's network; of others, nothing is swapped.
        recompute: compute the values before GELU again in the backward pass rather than keep them: a fifth more
            arithmetic in training, for two thirds less memory in a block of V1.

    Returns:
        What was swapped and what was left, and why.
    """
    fusion = Fusion()
    if not isinstance(model, ConvNeXt | IsotropicConvNeXt | DesignNetwork):
        fusion.left["the network"] = f"{type(model).__name__} is no network of this package"
        return fusion
    for name, module in list(model.named_modules()):
        if isinstance(module, Block):
            reason = obstacle_in_block(module)
            swap(fusion, name, module, FusedBlock, WHOLE, reason)
        elif isinstance(module, DesignBlock):
            fuse_design_block(fusion, name, module)
    layers = (
        {"stem": model.stem}
        if isinstance(model, IsotropicConvNeXt)
        else {f"downsample_layers.{i}": layer for i, layer in enumerate(model.downsample_layers)}
    )
    for name, layer in layers.items():
        fuse_downsampling(fusion, name, layer)
    for module in model.modules():
        if isinstance(module, FusedBlock | FusedDesignBlock):
            module.recompute = recompute
    return fusion


def unfuse(model: nn.Module) -> None:
    """Undo :func:`fuse`."""
    for module in model.modules():
        if isinstance(module, FUSED):
            vars(module).pop("recompute", None)
            module.__class__ = module.plain_class  # pyright: ignore[reportAttributeAccessIssue]


def fuse_design_block(fusion: Fusion, name: str, block: DesignBlock) -> None:
    """Swap what there is in a block of the roadmap: all of it, its end, its convolution, or nothing."""
    alone, end = obstacle_in_mixing(block), obstacle_in_mlp(block)
    what = WHOLE if alone is None else f"MLP with the addition, but not the norm before it: {alone}"
    swap(fusion, name, block, FusedDesignBlock, what, end)
    if (alone or end) and obstacle_in_depthwise(block.dwconv) is None:
        swap(fusion, f"{name}.dwconv", block.dwconv, FusedDepthwiseConv2d, "convolution alone", None)


def fuse_downsampling(fusion: Fusion, name: str, layer: nn.Module) -> None:
    """Swap a LayerNorm with the convolution behind it, or every convolution of patches by itself."""
    if isinstance(layer, nn.Sequential) and obstacle_in_downsampling(layer) is None:
        swap(fusion, name, layer, FusedDownsampling, "norm that writes patches, matrix product", None)
        return
    for inside, module in layer.named_modules(prefix=name):
        if isinstance(module, nn.Conv2d):
            swap(fusion, inside, module, FusedPatchConv2d, "matrix product of patches", obstacle_in_patches(module))


def swap(fusion: Fusion, name: str, module: nn.Module, kind: Any, what: str, reason: str | None) -> None:
    """Make a module one of a fused kind, unless there is a reason against it."""
    if reason is None and "forward" in vars(module):
        reason = "its forward was replaced"
    if reason is None:
        module.__class__ = kind
        fusion.fused[name] = what
    else:
        fusion.left[name] = reason
