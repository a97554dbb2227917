"""Constants of a network multiplied into the layers beside them, where that changes outputs by rounding alone.

Folded are LayerScale into the linear layer before it, the affine part of a LayerNorm or a BatchNorm into the layer
behind it where that pads nothing, and a BatchNorm into the layer before it. Sums are in float64.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.design import DesignBlock, DesignNetwork

Layer = nn.Conv2d | nn.Linear


def folded(model: nn.Module) -> nn.Module:
    """A copy of a network for inference with its constants folded; of other networks than this package's, as it is.

    Args:
        model: left as it is.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(model, ConvNeXt | IsotropicConvNeXt | DesignNetwork):
        for module in model.modules():
            if isinstance(module, Block):
                fold_block(module)
            elif isinstance(module, DesignBlock):
                fold_design_block(module)
        if isinstance(model, ConvNeXt | DesignNetwork):
            for layer in model.downsample_layers:
                if isinstance(layer, nn.Sequential):
                    fold_sequence(layer)
        model.norm = behind(model.norm, model.head)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def fold_block(block: Block) -> None:
    """A block of ConvNeXt."""
    behind(block.norm, block.pwconv1)
    if block.gamma is not None:
        absorb_behind(block.pwconv2, block.gamma.double(), None)
        block.gamma = None


def fold_design_block(block: DesignBlock) -> None:
    """A block of the roadmap."""
    block.norm = before(block.dwconv, block.norm)
    block.pwnorm1 = before(block.pwconv1, block.pwnorm1)
    block.pwnorm2 = before(block.pwconv2, block.pwnorm2)
    if block.spatial_first and isinstance(block.spatial_act, nn.Identity):
        block.norm = behind(block.norm, block.pwconv1)
    if not block.spatial_first:
        block.prenorm = behind(block.prenorm, block.pwconv1)
    if block.gamma is not None and isinstance(block.pwnorm2, nn.Identity):
        absorb_behind(cast(Layer, block.pwconv2), block.gamma.double(), None)
        block.gamma = None
    if isinstance(block.shortcut, nn.Sequential):
        fold_sequence(block.shortcut)


def fold_sequence(layers: nn.Sequential) -> None:
    """Every norm of a sequence into the layer before it or, failing that, behind it."""
    for i in range(1, len(layers)):
        layers[i] = before(layers[i - 1], layers[i])
        layers[i - 1] = behind(layers[i - 1], layers[i])


def before(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Fold a BatchNorm into the layer before it; returns what is left of it."""
    if not (isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)):
        return norm
    absorb_behind(layer, *affine(norm))
    return nn.Identity()


def behind(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Fold the affine part of a norm into the layer behind it; returns what is left of the norm."""
    if isinstance(layer, nn.Conv2d):
        foldable = layer.groups == 1 and layer.padding == (0, 0)  # padding with zeros comes behind the norm
    else:
        foldable = isinstance(layer, nn.Linear)
    if not foldable or not isinstance(norm, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d) or norm.weight is None:
        return norm
    absorb_before(cast(Layer, layer), *affine(norm))
    if not isinstance(norm, nn.LayerNorm):
        return nn.Identity()
    norm.weight = norm.bias = None  # pyright: ignore[reportAttributeAccessIssue]
    norm.elementwise_affine = False
    return norm


def affine(norm: nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a norm in evaluation multiplies by and adds, (C) each; of a LayerNorm, behind its normalisation."""
    scale, shift = norm.weight.double(), norm.bias.double()
    if isinstance(norm, nn.LayerNorm):
        return scale, shift
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = scale / (variance + norm.eps).sqrt()
    return scale, shift - mean * scale


def absorb_before(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """The layer of ``scale * x + shift``, per channel of x."""
    weight = layer.weight.double()
    shape = (-1, *[1] * (weight.ndim - 2))
    moved = (weight * shift.view(shape)).flatten(1).sum(1)
    replace(layer, weight * scale.view(shape), moved if layer.bias is None else layer.bias.double() + moved)


def absorb_behind(layer: Layer, scale: Tensor, shift: Tensor | None) -> None:
    """``scale * layer + shift``, per channel of its output; a shift of None is 0."""
    weight, bias = layer.weight.double(), layer.bias
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    if bias is not None:
        shift = scale * bias.double() + (0 if shift is None else shift)
    replace(layer, weight, shift)


def replace(layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer other weights, of its own dtype and memory layout."""
    new = torch.empty_like(layer.weight).copy_(weight)
    layer.weight = nn.Parameter(new, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(new.dtype), requires_grad=False)
