"""Blocks and layers whose training step on the CPU is computed by this package's C operators.

Each is a subclass of the plain module with the same parameters and the same outputs up to rounding. In evaluation,
without gradients, on small feature maps, and wherever :func:`takes_kernels` says no, it is the plain module.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.acceleration.cpu import add_branch as branch
from convnext.acceleration.cpu import bias_gelu, depthwise, layer_norm, mlp, native
from convnext.acceleration.swapping import Swap, compute_dtype, obstacle, patch_weight, plain_type, takes_kernels
from convnext.models.convnext import Block
from convnext.models.design import DesignBlock
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

MIN_VALUES = 10_000  # of a feature map whose patches are cut


class AcceleratedBlock(Block):
    """ConvNeXt's block: its MLP with LayerScale, stochastic depth and the addition is one operator."""

    plain_class = Block

    def forward(self, x: Tensor) -> Tensor:
        if not trains(self, x) or obstacle_in_block(self):
            return super().forward(x)
        shortcut = to_nhwc(x)  # (N, H, W, C)
        x = self.norm(to_nhwc(self.dwconv(x)))
        if isinstance(self.grn, nn.Identity):
            return to_nchw(add_mlp(shortcut, x, self))
        x = self.grn(linear_gelu(x, self.pwconv1))  # (N, H, W, 4 * C)
        return to_nchw(add_branch(shortcut, x, self))


class AcceleratedDesignBlock(DesignBlock):
    """The roadmap's block: its MLP, or its last linear layer, with LayerScale, stochastic depth and the addition."""

    plain_class = DesignBlock

    def forward(self, x: Tensor) -> Tensor:
        if not trains(self, x) or obstacle_at_end(self):
            return super().forward(x)
        shortcut = to_nhwc(self.shortcut(x))
        x = self.prenorm(x)  # (N, C, H, W), as the maps below
        has_mlp = obstacle_in_mlp(self) is None
        if self.spatial_first:
            x = self.mix(x)
            if has_mlp:
                return self.final_act(to_nchw(add_mlp(shortcut, to_nhwc(x), self)))
        x = to_nchw(linear_gelu(to_nhwc(x), self.pwconv1)) if has_mlp else self.widen(x)
        if not self.spatial_first:
            x = self.mix(x)
        return self.final_act(to_nchw(add_branch(shortcut, to_nhwc(x), self)))


class AcceleratedDepthwiseConv2d(DepthwiseConv2d):
    """The depthwise convolution; its gradients are this package's."""

    plain_class = DepthwiseConv2d

    def forward(self, input: Tensor) -> Tensor:
        stride, work = self.stride[0], input.numel() * self.weight[0].numel()
        if (
            trains(self, input)
            and is_large(work, depthwise.MIN_PRODUCTS)
            and depthwise.is_slow(input, self.weight, stride)
        ):
            return depthwise.depthwise_conv2d(input, self.weight, self.bias, stride)
        return super().forward(input)


class AcceleratedPatchConv2d(PatchConv2d):
    """The convolution of patches as a linear layer over their values, where torch's own has no AVX-512."""

    plain_class = PatchConv2d

    def forward(self, input: Tensor) -> Tensor:
        if trains(self, input) and is_large(input.numel(), MIN_VALUES):
            return to_nchw(F.linear(patches(to_nhwc(input), self.stride[0]), patch_weight(self), self.bias))
        return super().forward(input)


class AcceleratedLayerNorm(LayerNorm):
    """LayerNorm in bf16; in fp32 torch's own is as fast."""

    plain_class = LayerNorm

    def forward(self, input: Tensor) -> Tensor:
        return normalized(self, input) if takes_norm(self, input) else super().forward(input)


class AcceleratedLayerNorm2d(LayerNorm2d):
    """The same over the channels of (N, C, H, W)."""

    plain_class = LayerNorm2d

    def forward(self, input: Tensor) -> Tensor:
        return to_nchw(normalized(self, to_nhwc(input))) if takes_norm(self, input) else super().forward(input)


def training_swaps(model: nn.Module) -> Iterator[Swap]:
    """What can be swapped in a model on the CPU, and what cannot."""
    norm = "LayerNorm in bf16"
    for name, module in model.named_modules():
        kind = plain_type(module)
        if kind is Block:
            yield Swap(name, module, AcceleratedBlock, "MLP with the addition", obstacle_in_block(module))
        elif kind is DesignBlock:
            gain = "last linear layer with the addition" if obstacle_in_mlp(module) else "MLP with the addition"
            yield Swap(name, module, AcceleratedDesignBlock, gain, obstacle_at_end(module))
        elif kind is DepthwiseConv2d:
            reason = obstacle_in_depthwise(module)
            yield Swap(name, module, AcceleratedDepthwiseConv2d, "gradients of the depthwise convolution", reason)
        elif kind is PatchConv2d:
            reason = obstacle_in_patches(module)
            yield Swap(name, module, AcceleratedPatchConv2d, "linear layer over patches", reason)
        elif kind in (LayerNorm, LayerNorm2d):
            target = AcceleratedLayerNorm if kind is LayerNorm else AcceleratedLayerNorm2d
            yield Swap(name, module, target, norm, None)


def trains(module: nn.Module, x: Tensor) -> bool:
    """True if a module computes a training step by the C operators now."""
    if not (module.training and torch.is_grad_enabled()):
        return False
    layers: Any = (module.pwconv1, module.pwconv2) if isinstance(module, Block | DesignBlock) else (module,)
    parameters = []
    for layer in layers:
        if not layer.weight.requires_grad:
            return False
        parameters += [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return takes_kernels(x, parameters, is_on_cpu, native.NATIVE_DTYPES) and native.available()


def is_on_cpu(tensor: Tensor) -> bool:
    """True for a tensor on the CPU."""
    return tensor.is_cpu


def is_large(work: int, minimum: int) -> bool:
    """True if an operator saves more than its call from Python costs; a compiled one costs less, at any size."""
    return torch.compiler.is_compiling() or work >= minimum


def takes_norm(norm: LayerNorm, x: Tensor) -> bool:
    """True if a LayerNorm's input is large and in bf16."""
    return x.dtype == torch.bfloat16 and trains(norm, x) and is_large(x.numel(), layer_norm.MIN_VALUES)


def normalized(norm: LayerNorm, x: Tensor) -> Tensor:
    """The LayerNorm of (N, H, W, C), in the dtype that a linear layer wants."""
    return layer_norm.layer_norm(x, norm.weight, norm.bias, norm.eps, compute_dtype(x))[0]


def add_mlp(shortcut: Tensor, x: Tensor, block: Any) -> Tensor:
    """The end of a block from its first linear layer on, (N, H, W, C), of a shortcut (N, H, W, C) and x (N, H, W, B).

    Args:
        shortcut: what the branch is added to.
        x: the branch.
        block: what has the linear layers ``pwconv1`` and ``pwconv2`` with GELU between them, ``gamma`` and
            ``drop_path``.
    """
    first, last, gamma, dtype = block.pwconv1, block.pwconv2, block.gamma, compute_dtype(x)
    if is_large(hidden_values(x, first), mlp.MIN_VALUES) and mlp.computes(dtype):
        out = torch.promote_types(shortcut.dtype, dtype if gamma is None else gamma.dtype)
        layers = first.weight, first.bias, last.weight, last.bias
        return mlp.residual_mlp(shortcut, x, *layers, gamma, block.drop_path.factors(len(x), last.bias), dtype, out)[0]
    return add_branch(shortcut, linear_gelu(x, first), block)


def linear_gelu(x: Tensor, linear: Any) -> Tensor:
    """GELU of a linear layer over (N, H, W, B): one pass for bias and GELU."""
    if is_large(hidden_values(x, linear), bias_gelu.MIN_VALUES):
        return bias_gelu.bias_gelu(F.linear(x, linear.weight), linear.bias)
    return F.gelu(F.linear(x, linear.weight, linear.bias))


def add_branch(shortcut: Tensor, x: Tensor, block: Any) -> Tensor:
    """The end of a block from its last linear layer on, (N, H, W, C); as :func:`add_mlp`, for x (N, H, W, D)."""
    weight, bias, gamma = block.pwconv2.weight, block.pwconv2.bias, block.gamma
    if not is_large(shortcut.numel(), branch.MIN_VALUES):
        x = F.linear(x, weight, bias)
        return shortcut + block.drop_path(x if gamma is None else gamma * x)
    dtype = compute_dtype(x)
    out = torch.promote_types(shortcut.dtype, dtype if gamma is None else gamma.dtype)
    if gamma is not None:
        weight, bias = (gamma[:, None] * weight).to(dtype), gamma * bias
    return branch.add_branch(shortcut, F.linear(x, weight), bias, block.drop_path.factors(len(x), bias), out)


def hidden_values(x: Tensor, linear: nn.Linear) -> int:
    """Values of a linear layer's output."""
    return x.numel() // linear.in_features * linear.out_features


def patches(x: Tensor, size: int) -> Tensor:
    """The values of patches that do not overlap, (N, H, W, C) to (N, H / size, W / size, size * size * C)."""
    samples, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size].reshape(samples, rows, size, columns, size, channels)
    return x.transpose(2, 3).flatten(3)


def obstacle_in_block(block: nn.Module) -> str | None:
    """The reason why the MLP of ConvNeXt's block cannot be computed by the operators."""
    grn = nn.Identity, GlobalResponseNorm
    return obstacle(block, pwconv1=nn.Linear, act=nn.GELU, grn=grn, pwconv2=nn.Linear)


def obstacle_at_end(block: nn.Module) -> str | None:
    """The same of the end of the roadmap's block."""
    return obstacle(block, pwconv2=PointwiseLinear, pwnorm2=nn.Identity)


def obstacle_in_mlp(block: nn.Module) -> str | None:
    """The same of what comes before that end: the first linear layer with GELU."""
    return obstacle(block, pwconv1=PointwiseLinear, pwnorm1=nn.Identity, pointwise_act=GELU2d)


def obstacle_in_depthwise(convolution: Any) -> str | None:
    """The reason why torch's gradients of a depthwise convolution are as fast, or are the only ones."""
    if (convolution.padding_mode, convolution.dilation) != ("zeros", (1, 1)):
        return f"its padding is {convolution.padding_mode}, its dilation {convolution.dilation}"
    if convolution.stride[0] != 1 and not native.SLOW_CONVOLUTIONS:
        return "torch's gradients of a convolution with a stride are as fast with AVX-512"
    return None


def obstacle_in_patches(convolution: Any) -> str | None:
    """The reason why a convolution is not computed as a linear layer over patches."""
    if convolution.stride != convolution.kernel_size or convolution.padding != (0, 0):
        return "its patches overlap or are padded"
    return None if native.SLOW_CONVOLUTIONS else "torch's convolution is as fast with AVX-512"
