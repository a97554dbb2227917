"""Layers that the networks share: norms, pointwise and stochastic layers, initialisation.

Maps are (N, C, H, W), kept in channels_last memory, so that the (N, H, W, C) views taken here cost no copy.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext.acceleration.cpu import add_branch as branch
from convnext.acceleration.cpu import bias_gelu, depthwise, layer_norm, mlp
from convnext.acceleration.eligibility import SLOW_CONVOLUTIONS, compute_dtype, is_fast

LEAST_VALUES = 10_000  # of a map whose patches are cut


def to_nhwc(x: Tensor) -> Tensor:
    """View (N, C, H, W) as (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """View (N, H, W, C) as (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension of (..., C); eps 1e-6 as in the paper's code."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        tensors, least = (input, self.weight, self.bias), layer_norm.LEAST_VALUES
        # In fp32 torch's own is as fast.
        wanted = self.training and self.weight.requires_grad and input.dtype == torch.bfloat16
        if is_fast(tensors, wanted=wanted, work=input.numel(), least=least):
            return layer_norm.layer_norm(*tensors, self.eps, compute_dtype(input))[0]
        return super().forward(input)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of each position of a map (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return to_nchw(super().forward(to_nhwc(input)))


class PointwiseLinear(nn.Linear):
    """A 1x1 convolution of a map (N, C, H, W), computed as a linear layer over its (N, H, W, C) view."""

    def forward(self, input: Tensor) -> Tensor:
        return to_nchw(super().forward(to_nhwc(input)))


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of odd size, (N, C, H, W) to (N, C, H / stride, W / stride).

    It trains faster on the CPU than torch's. Its output, parameters and state dict are those of ``nn.Conv2d``, whose
    forward it is wherever it is not faster.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = True, stride: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(channels, channels, kernel_size, stride, padding, groups=channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        stride = self.stride[0]
        tensors, wanted = (input, self.weight), self.training and self.weight.requires_grad
        work, least = input.numel() * self.weight[0].numel(), depthwise.LEAST_PRODUCTS
        if is_fast(tensors, wanted=wanted, work=work, least=least) and depthwise.is_slow(*tensors, stride):
            return depthwise.depthwise_conv2d(input, self.weight, self.bias, stride)
        return super().forward(input)


class PatchConv2d(nn.Conv2d):
    """A convolution of patches that do not overlap; trains faster on the CPU than torch's where that has no AVX-512.

    There it is a linear layer over the patches' values. Parameters and state dict are those of ``nn.Conv2d``.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, patch_size, patch_size, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        wanted = self.training and self.weight.requires_grad and SLOW_CONVOLUTIONS and input.ndim == 4
        if is_fast((input, self.weight), wanted=wanted, work=input.numel(), least=LEAST_VALUES):
            return to_nchw(F.linear(patches(to_nhwc(input), self.stride[0]), patch_weight(self), self.bias))
        return super().forward(input)


def patches(x: Tensor, size: int) -> Tensor:
    """The values of patches that do not overlap, (N, H, W, C) to (N, H / size, W / size, size * size * C)."""
    samples, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size].reshape(samples, rows, size, columns, size, channels)
    return x.transpose(2, 3).flatten(3)


def patch_weight(convolution: nn.Conv2d) -> Tensor:
    """Its weight as a matrix (D, size * size * C), as :func:`patches` lays out its input."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1)


class GELU2d(nn.GELU):
    """GELU of a map (N, C, H, W), computed on its (N, H, W, C) view: torch rounds differently from layout to layout."""

    def forward(self, input: Tensor) -> Tensor:
        return to_nchw(super().forward(to_nhwc(input)))


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's GRN over (N, H, W, C): ``gamma * (x * Nx) + beta + x`` (arXiv 2301.00808, section 3.2).

    ``Nx`` is each channel's L2 norm over the positions, divided by the mean of those norms over the channels.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)  # (N, 1, 1, C)
        response = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)
        return self.gamma * (x * response) + self.beta + x


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for whole samples with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors(x.shape[0], x)  # len() would fix the batch of an exported graph
        return x if factors is None else x * factors.view(-1, *(1,) * (x.ndim - 1))

    def factors(self, samples: int, like: Tensor) -> Tensor | None:
        """What each sample's branch is multiplied with, (samples) in another tensor's dtype; None for ones."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        return like.new_empty(samples).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def add_mlp(
    shortcut: Tensor,
    x: Tensor,
    first: nn.Module,
    act: nn.Module,
    last: nn.Module,
    gamma: Tensor | None,
    drop_path: DropPath,
) -> Tensor:
    """A residual branch from its first linear layer on: ``shortcut + drop_path(gamma * last(act(first(x))))``.

    Args:
        shortcut: (N, C, H, W).
        x: (N, B, H, W), or (N, H, W, B) for an ``nn.Linear``.
        first: to (N, D, H, W) or (N, H, W, D).
        act: the activation.
        last: to (N, C, H, W) or (N, H, W, C).
        gamma: LayerScale, (C).
        drop_path: stochastic depth.
    """
    if is_linear(first) and is_linear(last) and isinstance(act, nn.GELU):
        layers = (first.weight, first.bias, last.weight, last.bias)
        tensors = (shortcut, x, *layers) + (() if gamma is None else (gamma,))
        wanted = last.training and first.weight.requires_grad and last.weight.requires_grad
        work, dtype = x.numel() // first.in_features * first.out_features, compute_dtype(x)
        if is_fast(tensors, wanted=wanted, work=work, least=mlp.LEAST_VALUES) and mlp.computes(dtype):
            out = torch.promote_types(shortcut.dtype, dtype if gamma is None else gamma.dtype)
            keep = drop_path.factors(len(x), last.bias)
            values = to_nhwc(shortcut), as_rows(x, first), *layers, gamma, keep
            return to_nchw(mlp.residual_mlp(*values, dtype, out)[0])
    return add_branch(shortcut, linear_gelu(x, first, act), last, gamma, drop_path)


def is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a linear one with a bias."""
    return isinstance(layer, nn.Linear) and layer.bias is not None


def linear_gelu(x: Tensor, linear: nn.Module, act: nn.Module) -> Tensor:
    """``act(linear(x))``, in training on the CPU by one pass for bias and GELU."""
    if is_linear(linear) and isinstance(act, nn.GELU):
        work, least = x.numel() // linear.in_features * linear.out_features, bias_gelu.LEAST_VALUES
        wanted = linear.training and linear.weight.requires_grad
        if is_fast((x, linear.weight, linear.bias), wanted=wanted, work=work, least=least):
            hidden = bias_gelu.bias_gelu(F.linear(as_rows(x, linear), linear.weight), linear.bias)
            return to_nchw(hidden) if isinstance(linear, PointwiseLinear) else hidden
    return act(linear(x))


def add_branch(shortcut: Tensor, x: Tensor, last: nn.Module, gamma: Tensor | None, drop_path: DropPath) -> Tensor:
    """The end of a residual branch: ``shortcut + drop_path(gamma * last(x))``, (N, C, H, W).

    Args:
        shortcut: (N, C, H, W).
        x: the input of the branch's last layer, (N, D, H, W), or (N, H, W, D) for an ``nn.Linear``.
        last: that layer, to (N, C, H, W) or (N, H, W, C).
        gamma: LayerScale, (C).
        drop_path: stochastic depth.
    """
    if is_linear(last):
        tensors = (shortcut, x, last.weight, last.bias) + (() if gamma is None else (gamma,))
        wanted, work = last.training and last.weight.requires_grad, shortcut.numel()
        if is_fast(tensors, wanted=wanted, work=work, least=branch.LEAST_VALUES):
            weight, bias, dtype = last.weight, last.bias, compute_dtype(x)
            if gamma is not None:
                weight, bias = branch.scale_rows(weight, gamma, dtype), gamma * bias
            x = F.linear(as_rows(x, last), weight)
            out = torch.promote_types(shortcut.dtype, dtype if gamma is None else gamma.dtype)
            return to_nchw(branch.add_branch(to_nhwc(shortcut), x, bias, drop_path.factors(len(x), bias), out))
    x = last(x)
    if type(last) is nn.Linear:
        x = to_nchw(x)
    if gamma is not None:
        x = gamma.view(-1, 1, 1) * x
    return shortcut + drop_path(x)


def as_rows(x: Tensor, linear: nn.Linear) -> Tensor:
    """A linear layer's input with its channels last."""
    return to_nhwc(x) if isinstance(linear, PointwiseLinear) else x


def drop_path_rates(maximum: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that grow linearly over the blocks, from 0 at the first to ``maximum`` at the last, one list a stage."""
    rates = iter(torch.linspace(0, maximum, sum(depths), device="cpu").tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def init_weights(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for convolutions and linear layers, biases 0, as the paper's code does."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def classifier_head(channels: int, num_classes: int, init_scale: float) -> nn.Module:
    """The last linear layer, its initial weights scaled by ``init_scale``; the identity for ``num_classes=0``."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(channels, num_classes)
    init_weights(head)
    with torch.no_grad():
        head.weight.mul_(init_scale)
    return head
