"""The depthwise convolution of odd size, padded to keep the feature map's size at stride 1, with a fast backward.

Forward is torch's own, to the bit. The gradient of the weight is this package's C code. That of the input is a forward
convolution with the kernel rotated by 180 degrees: by the same C code where torch's convolutions are slow, else by
torch. At a stride, both are those of stride 1, of a gradient with zeros at the positions between.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convnext.acceleration.cpu import native
from convnext.acceleration.cpu.heap import empty
from convnext.acceleration.cpu.native import call, check_shapes, vector

# Of a convolution at stride 1; below, an operator called from Python takes longer than it saves.
MIN_PRODUCTS = 100_000 if native.SLOW_CONVOLUTIONS else 2_000_000


def is_slow(x: Tensor, weight: Tensor, stride: int) -> bool:
    """True if torch's backward is slower here than this one; with AVX2 that depends on the kernel.

    There a 3x3 is fast in torch on all but the smallest maps. A kernel that is larger than the map is slow, however
    little there is to do: 18 ms for 7x7 over 96 maps of 96 channels, 2x2 (`docs/performance.md`).
    """
    if native.SLOW_CONVOLUTIONS:
        return weight.shape[-1] > 3 or weight.shape[-1] > min(x.shape[2:])
    return stride == 1


@torch.library.custom_op("convnext::depthwise_conv2d", mutates_args=())
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """:func:`reference`; bf16 under autocast on the CPU.

    Args:
        x: (N, C, H, W); fast in channels_last memory.
        weight: (C, 1, k, k), k odd.
        bias: (C).
        stride: in both directions.

    Raises:
        UsageError: the weight is of another shape.
    """
    channels, multiplier, height, width = weight.shape
    fits = (multiplier, width) == (1, height) and height % 2 == 1 and x.shape[1] == channels
    check_shapes("depthwise_conv2d", fits, x, weight)
    return reference(x, weight, bias, stride)


@torch.library.custom_op("convnext::depthwise_gradient", mutates_args=())
def depthwise_gradient(x: Tensor, weight: Tensor, grad: Tensor, wants_x: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the convolution at stride 1 with respect to x, weight and bias, in the maps' dtype.

    They are the same to the bit for any number of threads, and summed in fp32.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, k, k), k odd.
        grad: with respect to the output, (N, C, H, W).
        wants_x: false to compute the last two only; the first is then empty.
    """
    x_grad, taps = x.new_empty(0), None
    if wants_x and native.SLOW_CONVOLUTIONS:
        x_grad, taps = empty((x.shape[0], *x.shape[2:], x.shape[1]), x.dtype).permute(0, 3, 1, 2), vector(weight)
    elif wants_x:
        x_grad = input_gradient(grad, weight)
    rows, grads = (maps.permute(0, 2, 3, 1).contiguous() for maps in (x, grad))  # (N, H, W, C)
    weight_grad, bias_grad = torch.empty(weight.shape), torch.empty(x.shape[1])
    values = rows, grads, taps, None if taps is None else x_grad, weight_grad, bias_grad
    call("depthwise_gradient", *values, *rows.shape, weight.shape[-1], x.dtype == torch.bfloat16)
    return x_grad, weight_grad.to(x.dtype), bias_grad.to(x.dtype)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """``conv2d(x, weight, bias, stride, padding=k // 2, groups=C)`` by torch; autocast leaves this one alone."""
    padding, channels = weight.shape[-1] // 2, weight.shape[0]
    strides, paddings = [stride] * 2, [padding] * 2
    return torch.ops.aten.convolution.default(x, weight, bias, strides, paddings, [1, 1], False, [0, 0], channels)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient with respect to the input at stride 1 by torch."""
    return reference(grad, weight.flip(2, 3))


def spread(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient of an output at a stride as that of the output at stride 1 that it was taken from: x's size."""
    if stride == 1:
        return grad
    whole = torch.zeros_like(x, dtype=grad.dtype)
    whole[:, :, ::stride, ::stride] = grad
    return whole


@depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return reference(x, weight, bias, stride)


@depthwise_gradient.register_fake
def _(x: Tensor, weight: Tensor, grad: Tensor, wants_x: bool = True) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    x_grad = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).permute(0, 3, 1, 2) if wants_x else x.new_empty(0)
    return x_grad, weight.new_empty(weight.shape), x.new_empty(x.shape[1])


def save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:  # noqa: ARG001
    """Save what :func:`backward` needs."""
    x, weight, _, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """Gradients with respect to x, weight and bias, each where it is wanted."""
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
    grad = spread(grad, x, ctx.stride)
    if not (wants_weight or wants_bias):
        return input_gradient(grad, weight) if wants_x else None, None, None, None
    x_grad, weight_grad, bias_grad = depthwise_gradient(x, weight, grad, wants_x)
    return x_grad if wants_x else None, weight_grad if wants_weight else None, bias_grad if wants_bias else None, None


depthwise_conv2d.register_autograd(backward, setup_context=save_for_backward)
depthwise_conv2d.register_autocast("cpu", torch.bfloat16)


@register_flop_formula(torch.ops.convnext.depthwise_conv2d)
def _(_: Any, weight: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    return 2 * math.prod(out_shape) * weight[-1] ** 2


@register_flop_formula(torch.ops.convnext.depthwise_gradient)
def _(x: Sequence[int], weight: Sequence[int], _: Any, wants_x: bool = True, **__: Any) -> int:
    return (2 + 2 * wants_x) * math.prod(x) * weight[-1] ** 2
