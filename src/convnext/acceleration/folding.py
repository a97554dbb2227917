"""Fold a model's constants into the layers beside them, which changes outputs by rounding only.

LayerScale is folded into the linear layer before it, the affine part of a LayerNorm or a BatchNorm into the layer after
it where that pads nothing, and a BatchNorm into the layer before it. Sums are in float64.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from convnext.acceleration.swapping import restore
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.design import DesignBlock, DesignNetwork

Layer = nn.Conv2d | nn.Linear
Norm = nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d


def can_fold(model: nn.Module) -> bool:
    """True for the models whose constants can be folded: this package's."""
    return isinstance(model, ConvNeXt | IsotropicConvNeXt | DesignNetwork)


def folded(model: nn.Module) -> nn.Module:
    """A copy of a model for inference with its constants folded; of another package's model, a copy.

    Args:
        model: left as it is.
    """
    model = restore(copy.deepcopy(model)).eval().requires_grad_(False)
    if isinstance(model, ConvNeXt | IsotropicConvNeXt | DesignNetwork):
        for module in list(model.modules()):
            if isinstance(module, Block):
                fold_block(module)
            elif isinstance(module, DesignBlock):
                fold_design_block(module)
            elif isinstance(module, nn.Sequential):
                fold_sequence(module)
        model.norm = fold_into_next(model.norm, model.head)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def fold_block(block: Block) -> None:
    """Fold a block of ConvNeXt."""
    fold_into_next(block.norm, block.pwconv1)
    if block.gamma is not None:
        scale_output(block.pwconv2, block.gamma.double(), None)
        block.gamma = None


def fold_design_block(block: DesignBlock) -> None:
    """Fold a block of the roadmap."""
    block.norm = fold_into_previous(block.dwconv, block.norm)
    block.pwnorm1 = fold_into_previous(block.pwconv1, block.pwnorm1)
    block.pwnorm2 = fold_into_previous(block.pwconv2, block.pwnorm2)
    if block.spatial_first and isinstance(block.spatial_act, nn.Identity):
        block.norm = fold_into_next(block.norm, block.pwconv1)
    if not block.spatial_first:
        block.prenorm = fold_into_next(block.prenorm, block.pwconv1)
    if block.gamma is not None and isinstance(block.pwnorm2, nn.Identity):
        scale_output(cast(Layer, block.pwconv2), block.gamma.double(), None)
        block.gamma = None


def fold_sequence(layers: nn.Sequential) -> None:
    """Fold every norm of a sequence into the layer before it or, failing that, after it."""
    for i in range(1, len(layers)):
        layers[i] = fold_into_previous(layers[i - 1], layers[i])
        layers[i - 1] = fold_into_next(layers[i - 1], layers[i])


def fold_into_previous(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Fold a BatchNorm into the layer before it; returns what is left of the norm."""
    if not (isinstance(layer, Layer) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)):
        return norm
    scale_output(layer, *affine(norm))
    return nn.Identity()


def fold_into_next(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Fold the affine part of a norm into the layer after it; returns what is left of the norm."""
    # The zeros of padding are put beside the norm's output, not its input.
    is_foldable = isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding == (0, 0)
    )
    if not is_foldable or not isinstance(norm, Norm) or norm.weight is None:
        return norm
    scale_input(cast(Layer, layer), *affine(norm))
    if not isinstance(norm, nn.LayerNorm):
        return nn.Identity()
    norm.weight = norm.bias = None  # pyright: ignore[reportAttributeAccessIssue]
    norm.elementwise_affine = False
    return norm


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """The factor and the shift (C) of a norm in evaluation; of a LayerNorm, those after its normalisation."""
    scale, shift = norm.weight.double(), norm.bias.double()
    if isinstance(norm, nn.LayerNorm):
        return scale, shift
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = scale / (variance + norm.eps).sqrt()
    return scale, shift - mean * scale


def scale_input(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Make a layer of x that layer of ``scale * x + shift``, per channel of x."""
    weight = layer.weight.double()
    shape = (-1, *[1] * (weight.ndim - 2))
    moved = (weight * shift.view(shape)).flatten(1).sum(1)
    set_weights(layer, weight * scale.view(shape), moved if layer.bias is None else layer.bias.double() + moved)


def scale_output(layer: Layer, scale: Tensor, shift: Tensor | None) -> None:
    """Make a layer ``scale * layer + shift``, per channel of its output; a shift of None is 0."""
    weight, bias = layer.weight.double(), layer.bias
    weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    if bias is not None:
        shift = scale * bias.double() + (0 if shift is None else shift)
    set_weights(layer, weight, shift)


def set_weights(layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer other weights, of its own dtype and memory layout."""
    new = torch.empty_like(layer.weight).copy_(weight)
    layer.weight = nn.Parameter(new, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(new.dtype), requires_grad=False)
