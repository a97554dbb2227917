"""Layers that the models share: norms, convolutions, stochastic depth, stages, initialisation.

Feature maps are (N, C, H, W) in channels_last memory, so that the (N, H, W, C) views taken here cost no copy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of each position, (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return to_nchw(super().forward(to_nhwc(input)))


class PointwiseLinear(nn.Linear):
    """A 1x1 convolution of (N, C, H, W), computed as a linear layer over its (N, H, W, C) view."""

    def forward(self, input: Tensor) -> Tensor:
        return to_nchw(super().forward(to_nhwc(input)))


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of odd size, (N, C, H, W) to (N, C, H / stride, W / stride)."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = True, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias)


class PatchConv2d(nn.Conv2d):
    """A convolution of patches that do not overlap: its stride is its kernel size."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, patch_size, patch_size, bias=bias)


class SameConv2d(nn.Conv2d):
    """A 2x2 convolution of stride 1 that keeps the size; an odd number of zeros comes right and below."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(in_channels, out_channels, 2, padding=(dilation + 1) // 2, dilation=dilation)

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input)
        return x[:, :, 1:, 1:] if self.dilation[0] % 2 else x


class GELU2d(nn.GELU):
    """GELU of (N, C, H, W), computed on its (N, H, W, C) view: torch rounds differently in other layouts."""

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
        """The factor of each sample's branch, (samples) in the dtype of ``like``; None where all are 1."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        return like.new_empty(samples).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Stage(nn.Sequential):
    """Blocks in order.

    With ``grad_checkpointing`` only the input of each block is saved for the backward pass, which recomputes the block.
    """

    grad_checkpointing = False

    def forward(self, input: Tensor) -> Tensor:
        for block in self:
            input = self.run(block, input)
        return input

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Compute one block."""
        if not self.grad_checkpointing or not torch.is_grad_enabled():
            return block(x)
        if torch.compiler.is_compiling() or not any(isinstance(module, _BatchNorm) for module in block.modules()):
            return checkpoint(block, x, use_reentrant=False)
        return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_batch_norm(block)))


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Freeze BatchNorm's running statistics, which a recomputed block would update a second time."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count


def downsampling_convolution(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    """The 2x2 convolution between two stages: of stride 2, or of stride 1 and dilated where the size is kept."""
    if stride == 2:
        return PatchConv2d(in_channels, out_channels, 2)
    return SameConv2d(in_channels, out_channels, dilation)


def layer_scale(dim: int, init_value: float | None) -> nn.Parameter | None:
    """LayerScale's ``gamma`` (C) at its initial value; None for none."""
    return nn.Parameter(torch.full((dim,), float(init_value))) if init_value else None


def drop_path_rates(maximum: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly over the blocks, from 0 at the first to ``maximum`` at the last, one list per stage."""
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
