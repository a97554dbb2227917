"""Blocks and layers whose forward is the fused kernels', of the same parameters, names and outputs but for rounding.

Each is a subclass of the plain one, by whose forward it computes wherever the kernels do not run: on the CPU, in
float64, inside torch.func's transforms, traced for TorchScript or ONNX, with hooks on a layer inside.
``accelerate(model, training=True, experimental=True)`` swaps the plain ones for these.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.acceleration import enabled
from convnext.acceleration.gpu.depthwise_operator import depthwise, depthwise_norm
from convnext.acceleration.gpu.mlp_operator import linear_add, linear_gelu, linear_gelu_squares, mlp
from convnext.acceleration.gpu.patches_operator import cut, norm_patches
from convnext.acceleration.gpu.triton_runtime import DTYPES, runs_on
from convnext.acceleration.swapping import (
    Swap,
    compute_dtype,
    is_hooked,
    obstacle,
    parameters_of,
    patch_weight,
    plain_type,
)
from convnext.acceleration.swapping import takes_kernels as takes
from convnext.models.convnext import Block, ConvNeXt, IsotropicConvNeXt
from convnext.models.design import DesignBlock, DesignNetwork
from convnext.models.layers import (
    DepthwiseConv2d,
    GELU2d,
    GlobalResponseNorm,
    LayerNorm,
    LayerNorm2d,
    PatchConv2d,
    PointwiseLinear,
    to_nchw,
    to_nhwc,
)

KERNEL_SIZES = (3, 5, 7, 9, 11)
WHOLE = "convolution with its norm; MLP with the addition"


class FusedBlock(Block):
    """A block of ConvNeXt: convolution with its LayerNorm, then the MLP with LayerScale, drop path and addition."""

    plain_class = Block
    recompute = False  # GELU's argument in the backward pass rather than keep it

    def forward(self, x: Tensor) -> Tensor:
        if obstacle_in_block(self) or not takes_kernels(self, x):
            return super().forward(x)
        shortcut = to_nhwc(x)
        normalised = normalised_depthwise(shortcut, self.dwconv, self.norm)
        return to_nchw(add_mlp(shortcut, normalised, self.norm, self.grn, self))


class FusedDesignBlock(DesignBlock):
    """A block of the roadmap that ends in linear layer, GELU, linear layer, addition."""

    plain_class = DesignBlock
    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        if obstacle_in_mlp(self) or not takes_kernels(self, x):
            return super().forward(x)
        shortcut, x = to_nhwc(self.shortcut(x)), self.prenorm(x)
        norm = None
        if obstacle_in_mixing(self):
            x = to_nhwc(self.mix(x))
        else:
            norm = self.norm
            x = normalised_depthwise(to_nhwc(x), self.dwconv, norm)
        return self.final_act(to_nchw(add_mlp(shortcut, x, norm, nn.Identity(), self)))


class FusedDepthwiseConv2d(DepthwiseConv2d):
    """A depthwise convolution alone, where what stands behind it does not fuse with it."""

    plain_class = DepthwiseConv2d

    def forward(self, input: Tensor) -> Tensor:
        if obstacle_in_depthwise(self) or not takes_kernels(self, input):
            return super().forward(input)
        return to_nchw(depthwise(rows(to_nhwc(input)), self.weight, self.bias))


class FusedPatchConv2d(PatchConv2d):
    """A convolution of patches that do not overlap, as one matrix product."""

    plain_class = PatchConv2d

    def forward(self, input: Tensor) -> Tensor:
        if not takes_kernels(self, input):
            return super().forward(input)
        patches = cut(to_nhwc(input).to(compute_dtype(input)), self.stride[0])
        return to_nchw(F.linear(patches.flatten(3), patch_weight(self), self.bias))


class FusedDownsampling(nn.Sequential):
    """LayerNorm and the convolution of patches behind it: one pass over the map, and one matrix product."""

    plain_class = nn.Sequential

    def forward(self, input: Tensor) -> Tensor:
        norm, convolution = cast(Any, self)
        if obstacle_in_downsampling(self) or not takes_kernels(self, input):
            return super().forward(input)
        patches, _ = norm_patches(rows(to_nhwc(input)), convolution.stride[0], norm.eps, compute_dtype(input))
        weight, bias = folded_norm(patch_weight(convolution), convolution.bias, norm)
        return to_nchw(F.linear(patches, weight, bias))


def takes_kernels(module: nn.Module, x: Tensor) -> bool:
    """True if a module's kernels apply to a feature map (N, C, H, W) as things are now."""
    return enabled() and takes(x, parameters_of(module), lambda tensor: runs_on(tensor.device), DTYPES)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context for weights, which are combined in their own dtype."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def rows(x: Tensor) -> Tensor:
    """A map (N, H, W, C) as the kernels read it: contiguous, in the dtype that products compute in."""
    return x.to(compute_dtype(x)).contiguous()


def normalised_depthwise(x: Tensor, convolution: nn.Conv2d, norm: Any) -> Tensor:
    """The depthwise convolution of (N, H, W, C), normalised; the affine part of the norm is left to what follows."""
    return depthwise_norm(rows(x), convolution.weight, convolution.bias, norm.eps)[0]


def add_mlp(shortcut: Tensor, x: Tensor, norm: Any, grn: nn.Module, block: Any) -> Tensor:
    """The end of a block, (N, H, W, C): ``shortcut + drop_path(gamma * pwconv2(grn(gelu(pwconv1(affine(x))))))``.

    The affine part of the norm lies in the first layer's weights, gamma in the last one's.

    Args:
        shortcut: (N, H, W, C).
        x: (N, H, W, B), normalised if there is a norm.
        norm: the LayerNorm whose affine part is still to come, or None.
        grn: GRN, or the identity.
        block: what has the linear layers or 1x1 convolutions ``pwconv1`` and ``pwconv2``, ``gamma``, ``drop_path`` and
            ``recompute``.
    """
    first, last, gamma, dtype = block.pwconv1, block.pwconv2, block.gamma, compute_dtype(x)
    x = rows(x)
    with without_autocast(x):
        weight1, bias1 = folded_norm(first.weight.flatten(1), first.bias, norm)
        weight2, bias2 = last.weight.flatten(1), last.bias
        if isinstance(grn, GlobalResponseNorm):
            bias2 = bias2 + weight2 @ grn.beta.flatten()
        if gamma is not None:
            weight2, bias2 = gamma[:, None] * weight2, gamma * bias2
        weight1, weight2 = weight1.to(dtype), weight2.to(dtype)
        keep = block.drop_path.factors(len(x), x.new_empty(0, dtype=torch.float32))
        out = torch.promote_types(shortcut.dtype, dtype if gamma is None else gamma.dtype)
        shortcut = shortcut.to(out).contiguous()
        if isinstance(grn, GlobalResponseNorm):
            hidden, squares = linear_gelu_squares(x, weight1, bias1, recompute=block.recompute)
            return linear_add(hidden, weight2, bias2, shortcut, keep, response(squares, grn))
        if len(weight2) == x.shape[-1]:
            return mlp(x, weight1, bias1, weight2, bias2, shortcut, keep, recompute=block.recompute)
        hidden = linear_gelu(x, weight1, bias1, recompute=block.recompute)
        return linear_add(hidden, weight2, bias2, shortcut, keep)


def folded_norm(weight: Tensor, bias: Any, norm: Any) -> tuple[Tensor, Any]:
    """Weight (D, B) and bias of a linear layer with the affine part of the norm before it.

    Of B values, the norm's come again and again: those of the positions of a patch.
    """
    if norm is None or norm.weight is None:
        return weight, bias
    with without_autocast(weight):
        times = weight.shape[1] // len(norm.weight)
        if norm.bias is not None:
            moved = weight @ norm.bias.repeat(times)
            bias = moved if bias is None else bias + moved
        return weight * norm.weight.repeat(times), bias


def response(squares: Tensor, grn: GlobalResponseNorm) -> Tensor:
    """What GRN multiplies each sample's channels with, (N, D), from the sums of their squares, (N, D) in fp32."""
    norm = squares.clamp(min=1e-30).sqrt()  # whose slope at 0 would be infinite
    return 1 + grn.gamma.flatten() * (norm / (norm.mean(-1, keepdim=True) + grn.eps))


def obstacle_in_block(block: Block) -> str | None:
    """Why a block of ConvNeXt cannot be fused as it is now."""
    return obstacle_in_depthwise(block.dwconv) or obstacle(
        block, norm=LayerNorm, pwconv1=nn.Linear, act=nn.GELU, grn=(nn.Identity, GlobalResponseNorm), pwconv2=nn.Linear
    )


def obstacle_in_mlp(block: DesignBlock) -> str | None:
    """Why the end of a block of the roadmap cannot be fused as it is now."""
    if not block.spatial_first:
        return "its spatial convolution stands between the 1x1 layers"
    linear = (PointwiseLinear, nn.Conv2d)
    return obstacle(
        block, pwnorm1=nn.Identity, pwnorm2=nn.Identity, pointwise_act=GELU2d, pwconv1=linear, pwconv2=linear
    )


def obstacle_in_mixing(block: DesignBlock) -> str | None:
    """Why the convolution of a block of the roadmap cannot be fused with its norm."""
    return obstacle_in_depthwise(block.dwconv) or obstacle(block, norm=LayerNorm2d, spatial_act=nn.Identity)


def obstacle_in_depthwise(convolution: Any) -> str | None:
    """Why a convolution has no kernel."""
    if plain_type(convolution) is not DepthwiseConv2d:
        return "its spatial convolution is not depthwise"
    if convolution.stride != (1, 1):
        return "its depthwise convolution strides"
    if (
        convolution.kernel_size[0] not in KERNEL_SIZES
        or convolution.padding_mode != "zeros"
        or convolution.dilation != (1, 1)
    ):
        return f"a depthwise convolution of {convolution.kernel_size[0]}x{convolution.kernel_size[0]} has no kernel"
    return "dwconv has hooks" if is_hooked(convolution) else None


def obstacle_in_patches(convolution: Any) -> str | None:
    """Why a convolution is no matrix product of patches."""
    if plain_type(convolution) is PatchConv2d and convolution.stride == convolution.kernel_size:
        return None
    return "its patches overlap" if type(convolution) is nn.Conv2d else f"it is {type(convolution).__name__}"


def obstacle_in_downsampling(layers: Any) -> str | None:
    """Why a sequence is not LayerNorm and a convolution of patches, free of hooks."""
    if len(layers) != 2 or type(layers[0]) is not LayerNorm2d:
        return "no LayerNorm stands before its convolution"
    if any(is_hooked(layer) for layer in layers):
        return "a layer inside has hooks"
    return obstacle_in_patches(layers[1])


def fused_swaps(model: nn.Module) -> Iterator[Swap]:
    """What can be swapped in a model on a GPU, and what cannot."""
    if not isinstance(model, ConvNeXt | IsotropicConvNeXt | DesignNetwork):
        yield Swap("", model, type(model), "", f"{type(model).__name__} is not a model of this package")
        return
    modules: dict[str, Any] = dict(model.named_modules())
    for name, module in modules.items():
        if plain_type(module) is Block:
            yield Swap(name, module, FusedBlock, WHOLE, obstacle_in_block(module))
        elif plain_type(module) is DesignBlock:
            yield from design_block_swaps(name, module)
    if isinstance(model, IsotropicConvNeXt):
        yield from downsampling_swaps("stem", model.stem)
    else:
        for i, layer in enumerate(model.downsample_layers):
            yield from downsampling_swaps(f"downsample_layers.{i}", layer)


def design_block_swaps(name: str, block: DesignBlock) -> Iterator[Swap]:
    """Of a block of the roadmap: all of it, its end, its convolution, or nothing."""
    alone, end = obstacle_in_mixing(block), obstacle_in_mlp(block)
    gain = WHOLE if alone is None else f"MLP with the addition, but not the norm before it: {alone}"
    yield Swap(name, block, FusedDesignBlock, gain, end)
    if (alone or end) and obstacle_in_depthwise(block.dwconv) is None:
        yield Swap(f"{name}.dwconv", block.dwconv, FusedDepthwiseConv2d, "convolution alone", None)


def downsampling_swaps(name: str, layer: nn.Module) -> Iterator[Swap]:
    """A LayerNorm with the convolution after it, or each convolution of patches by itself."""
    if plain_type(layer) is nn.Sequential and obstacle_in_downsampling(layer) is None:
        yield Swap(name, layer, FusedDownsampling, "norm that writes patches, matrix product", None)
        return
    for inside, module in layer.named_modules(prefix=name):
        if isinstance(module, nn.Conv2d):
            yield Swap(inside, module, FusedPatchConv2d, "matrix product of patches", obstacle_in_patches(module))
