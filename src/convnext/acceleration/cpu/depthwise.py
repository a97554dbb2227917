"""The depthwise convolution (odd size, padding that keeps the map's size at stride 1) with a fast backward on the CPU.

Forward is torch's own, to the bit. The gradient with respect to the weight is the C code beside this file, in fp32 and
bf16, where a compiler built it, and torch's own elsewhere. The one with respect to the input is a forward convolution
with the kernel turned by 180 degrees: by the same C code where torch's is slow, else by torch. At a stride, both are
those of stride 1, of a gradient with zeros at the positions between.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convnext.acceleration.cpu import native as build
from convnext.acceleration.cpu.heap import empty
from convnext.acceleration.cpu.native import NATIVE_DTYPES, call, library, vector
from convnext.errors import UsageError

# Of a convolution at stride 1; below, an operator written in Python takes longer than it saves.
MIN_PRODUCTS = 100_000 if build.SLOW_CONVOLUTIONS else 2_000_000


def is_slow(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether torch's backward is slower here than this one; with AVX2 that depends on the kernel.

    There a 3x3 is fast in torch on all but the smallest maps. A kernel that is larger than the map is slow, however
    little there is to do: 18 ms for 7x7 over 96 maps of 96 channels, 2x2 (`docs/performance.md`).
    """
    if build.SLOW_CONVOLUTIONS:
        return weight.shape[-1] > 3 or weight.shape[-1] > min(x.shape[2:])
    return stride == 1


@torch.library.custom_op("convnext::depthwise_conv2d", mutates_args=())
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """``conv2d(x, weight, bias, stride, padding=k // 2, groups=C)``; bf16 under autocast on the CPU.

    Args:
        x: (N, C, H, W); fast in channels_last memory.
        weight: (C, 1, k, k), k odd.
        bias: (C).
        stride: in both directions.

    Raises:
        UsageError: the weight is of another shape.
    """
    channels, multiplier, height, width = weight.shape
    if (multiplier, width) != (1, height) or height % 2 == 0 or x.shape[1] != channels:
        raise UsageError(
            f"a weight of {tuple(weight.shape)} for maps of {tuple(x.shape)}: needs (C, 1, k, k) with k odd and the "
            "maps' channels"
        )
    return convolve(x, weight, bias, stride)


@torch.library.custom_op("convnext::depthwise_gradient", mutates_args=())
def depthwise_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the convolution at stride 1 with respect to x, weight and bias, in the maps' dtype.

    The same to the bit for any number of threads.

    Args:
        x: the convolution's input, (N, C, H, W).
        weight: (C, 1, k, k), k odd.
        grad: the gradient with respect to its output, (N, C, H, W).
    """
    native = native_for(x, grad)
    if native is None or not build.SLOW_CONVOLUTIONS:
        return input_gradient(grad, weight), *weight_gradient(x, grad, weight.shape[-1])
    x_grad = empty((x.shape[0], *x.shape[2:], x.shape[1]), x.dtype).permute(0, 3, 1, 2)
    return x_grad, *native_gradient(native, x, grad, weight.shape[-1], weight, x_grad)


@torch.library.custom_op("convnext::depthwise_weight_gradient", mutates_args=())
def depthwise_weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Those with respect to weight (C, 1, k, k) and bias (C) alone."""
    return weight_gradient(x, grad, kernel_size)


def weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The same, outside of the operator."""
    native = native_for(x, grad)
    if native is None:
        return plain_weight_gradient(x, grad, kernel_size)
    return native_gradient(native, x, grad, kernel_size)


def plain_weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The same by torch: the reference."""
    channels, padding = x.shape[1], kernel_size // 2
    weight = x.new_empty((channels, 1, kernel_size, kernel_size))  # only its shape is used
    _, weight_grad, bias_grad = torch.ops.aten.convolution_backward.default(
        grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0], channels, [False, True, True]
    )
    return weight_grad.contiguous(), bias_grad


def native_for(x: Tensor, grad: Tensor) -> ctypes.CDLL | None:
    """The library with the C code, where that computes with these maps."""
    fits = x.device.type == "cpu" and x.dtype == grad.dtype and x.dtype in NATIVE_DTYPES
    return library() if fits else None


def native_gradient(
    native: ctypes.CDLL,
    x: Tensor,
    grad: Tensor,
    kernel_size: int,
    weight: Tensor | None = None,
    x_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Those with respect to weight and bias by the C code, summed in fp32; and with ``weight``, ``x_grad`` is written.

    Raises:
        RunError: there is no memory for the sums.
    """
    x, grad = (maps.permute(0, 2, 3, 1).contiguous() for maps in (x, grad))  # (N, H, W, C)
    samples, height, width, channels = x.shape
    weight_grad = torch.empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    bias_grad = torch.empty(channels, dtype=torch.float32)
    taps = None if weight is None else vector(weight)
    values = x, grad, taps, x_grad, weight_grad, bias_grad, samples, height, width, channels, kernel_size
    call(native, "depthwise_gradient", *values, x.dtype == torch.bfloat16)
    return weight_grad.to(x.dtype), bias_grad.to(x.dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """torch's convolution with padding that keeps the map's size at stride 1; autocast leaves this one alone."""
    padding, channels = weight.shape[-1] // 2, weight.shape[0]
    strides, paddings = [stride] * 2, [padding] * 2
    return torch.ops.aten.convolution.default(x, weight, bias, strides, paddings, [1, 1], False, [0, 0], channels)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient with respect to the input."""
    return convolve(grad, weight.flip(2, 3))


def spread(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient of an output at a stride as that of the output at stride 1 that it was taken from: x's size."""
    if stride == 1:
        return grad
    whole = torch.zeros_like(x, dtype=grad.dtype)
    whole[:, :, ::stride, ::stride] = grad
    return whole


@depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return convolve(x, weight, bias, stride)


@depthwise_gradient.register_fake
def _(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    x_grad = x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).permute(0, 3, 1, 2)
    return x_grad, weight.new_empty(weight.shape), x.new_empty(x.shape[1])


@depthwise_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    channels = x.shape[1]
    return x.new_empty((channels, 1, kernel_size, kernel_size)), x.new_empty(channels)


def save_for_conv2d(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:  # noqa: ARG001
    """Keep what :func:`conv2d_backward` needs."""
    x, weight, _, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """Gradients with respect to x, weight and bias, each where it is wanted."""
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
    grad = spread(grad, x, ctx.stride)
    if not (wants_weight or wants_bias):
        return input_gradient(grad, weight) if wants_x else None, None, None, None
    if wants_x:
        x_grad, weight_grad, bias_grad = depthwise_gradient(x, weight, grad)
    else:
        x_grad, (weight_grad, bias_grad) = None, depthwise_weight_gradient(x, grad, weight.shape[-1])
    return x_grad, weight_grad if wants_weight else None, bias_grad if wants_bias else None, None


def save_for_gradient(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Any) -> None:  # noqa: ARG001
    """Keep what :func:`gradient_backward` needs."""
    ctx.save_for_backward(*inputs)


def gradient_backward(ctx: Any, to_x: Tensor, to_weight: Tensor, to_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and grad, from what reaches the outputs, each of which is linear in two of them."""
    x, weight, grad = ctx.saved_tensors
    weight_grad, _ = depthwise_weight_gradient(to_x, grad, weight.shape[-1])
    return input_gradient(grad, to_weight), weight_grad, convolve(x, to_weight, to_bias) + convolve(to_x, weight)


def save_for_weight_gradient(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Any) -> None:  # noqa: ARG001
    """Keep what :func:`weight_gradient_backward` needs."""
    x, grad, _ = inputs
    ctx.save_for_backward(x, grad)


def weight_gradient_backward(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, None]:
    """The weight's gradient is linear in x and in grad: ``weight`` and ``bias`` are what reaches its two outputs."""
    x, grad = ctx.saved_tensors
    return input_gradient(grad, weight), convolve(x, weight, bias), None


depthwise_conv2d.register_autograd(conv2d_backward, setup_context=save_for_conv2d)
depthwise_conv2d.register_autocast("cpu", torch.bfloat16)
depthwise_gradient.register_autograd(gradient_backward, setup_context=save_for_gradient)
depthwise_weight_gradient.register_autograd(weight_gradient_backward, setup_context=save_for_weight_gradient)


def flop_count(shape: Sequence[int], kernel_size: int) -> int:
    """Products and sums of one depthwise convolution of (N, C, H, W), forward or one gradient."""
    return 2 * math.prod(shape) * kernel_size**2


@register_flop_formula(torch.ops.convnext.depthwise_conv2d)
def _(_: Any, weight_shape: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    return flop_count(out_shape, weight_shape[-1])


@register_flop_formula(torch.ops.convnext.depthwise_gradient)
def _(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * flop_count(x_shape, weight_shape[-1])


@register_flop_formula(torch.ops.convnext.depthwise_weight_gradient)
def _(x_shape: Sequence[int], _: Any, kernel_size: int, **__: Any) -> int:
    return flop_count(x_shape, kernel_size)
