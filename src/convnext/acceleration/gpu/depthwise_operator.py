"""The depthwise convolution (odd size, stride 1, padding that keeps the map's size) on a GPU, also with LayerNorm.

Maps are (N, H, W, C). Sums and statistics are in fp32 whatever the maps' dtype. All is deterministic: the weight's
gradient is summed strip by strip of rows, then the strips are summed in their order. Repeated within a process, every
result is the same to the bit; another process may have tuned its kernels otherwise, and round its sums otherwise.

Derivatives of the gradients are not defined: torch says so where they are asked for.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from convnext.acceleration.gpu.triton_runtime import operator, runs, sum_dtype
from convnext.errors import UsageError


@operator("convnext::gpu_depthwise_norm")
def depthwise_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The convolution, normalised over the channels (LayerNorm without its affine part).

    Args:
        x: (N, H, W, C).
        weight: (C, 1, k, k), k odd, in any dtype.
        bias: (C).
        eps: added to the variance.

    Returns:
        ``(z - mean) * scale`` of ``z = conv + bias``, contiguous (N, H, W, C) in x's dtype; and
        ``scale = 1 / sqrt(variance + eps)``, (N, H, W) in fp32, without a gradient.

    Raises:
        UsageError: the weight is of another shape.
    """
    check(x, weight)
    if not takes(x, weight, bias):
        return plain_norm(x, weight, bias, eps)
    from convnext.acceleration.gpu.depthwise_triton import convolve_norm

    return convolve_norm(x.contiguous(), weight, bias, eps)


@operator("convnext::gpu_depthwise")
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution alone: ``conv2d(x, weight, bias, padding=k // 2, groups=C)``, contiguous (N, H, W, C).

    Args:
        x: (N, H, W, C).
        weight: (C, 1, k, k), k odd, in any dtype.
        bias: (C).

    Raises:
        UsageError: the weight is of another shape.
    """
    check(x, weight)
    if not takes(x, weight, bias):
        return plain(x, weight, bias)
    from convnext.acceleration.gpu.depthwise_triton import convolve

    return convolve(x.contiguous(), weight, bias, turned=False)


@operator("convnext::gpu_depthwise_input_gradient")
def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient with respect to the input: the convolution with the kernel turned by 180 degrees.

    Args:
        grad: with respect to the output, (N, H, W, C).
        weight: (C, 1, k, k).
    """
    if not takes(grad, weight):
        return plain(grad, weight.flip(2, 3), None)
    from convnext.acceleration.gpu.depthwise_triton import convolve

    return convolve(grad.contiguous(), weight, None, turned=True)


@operator("convnext::gpu_depthwise_weight_gradient")
def weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The gradients with respect to weight (C, 1, k, k) and bias (C), in fp32.

    Args:
        x: the convolution's input, (N, H, W, C).
        grad: with respect to its output, (N, H, W, C).
        kernel_size: k, odd.
    """
    if not takes(x, grad):
        return plain_weight_gradient(x, grad, kernel_size)
    from convnext.acceleration.gpu import depthwise_gradient_triton as native

    return native.weight_gradient(x.contiguous(), grad.contiguous(), kernel_size)


@operator("convnext::gpu_norm_gradient")
def norm_gradient(grad: Tensor, normalised: Tensor, scale: Tensor) -> Tensor:
    """The gradient with respect to what was normalised, in grad's dtype.

    Args:
        grad: with respect to ``normalised``, (..., C).
        normalised: (..., C).
        scale: ``1 / sqrt(variance + eps)``, (...).
    """
    if not takes(grad, normalised, scale):
        return plain_norm_gradient(grad, normalised, scale)
    from convnext.acceleration.gpu import depthwise_gradient_triton as native

    return native.norm_gradient(grad.contiguous(), normalised.contiguous(), scale.contiguous())


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these tensors, the maps first; they leave empty ones to torch."""
    return x.numel() > 0 and runs(x, *(tensor for tensor in others if tensor is not None))


def check(x: Tensor, weight: Tensor) -> None:
    """Tell of a weight of another shape.

    Raises:
        UsageError: it is.
    """
    channels, multiplier, height, width = weight.shape
    if (multiplier, width) != (1, height) or height % 2 == 0 or x.ndim != 4 or x.shape[-1] != channels:
        raise UsageError(
            f"a weight of {tuple(weight.shape)} for maps of {tuple(x.shape)}: needs (C, 1, k, k) with k odd and the "
            "channels of (N, H, W, C)"
        )


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution by torch, in x's dtype: the reference."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return z.permute(0, 2, 3, 1).contiguous()


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The convolution and the norm by torch."""
    normalised, scale = plain_normalised(plain(x, weight, bias), eps)
    return normalised.to(x.dtype), scale


def plain_normalised(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(z - mean) * scale`` over the last dimension, and the scale, by torch, in the dtype of statistics."""
    z = z.to(sum_dtype(z))
    centred = z - z.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1) + eps).rsqrt()
    return centred * scale[..., None], scale


def plain_norm_gradient(grad: Tensor, normalised: Tensor, scale: Tensor) -> Tensor:
    """The norm's gradient by torch."""
    d, n = grad.to(scale.dtype), normalised.to(scale.dtype)
    result = scale[..., None] * (d - d.mean(-1, keepdim=True) - n * (d * n).mean(-1, keepdim=True))
    return result.to(grad.dtype).contiguous()


def plain_weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias by torch."""
    channels, dtype = x.shape[-1], sum_dtype(x)
    x, grad = (maps.permute(0, 3, 1, 2).to(dtype) for maps in (x, grad))
    shape = (channels, 1, kernel_size, kernel_size)
    weight = conv2d_weight(x, shape, grad, padding=kernel_size // 2, groups=channels)
    return weight.contiguous(), grad.sum((0, 2, 3))


@depthwise_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=sum_dtype(x))


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape)


@input_gradient.register_fake
def _(grad: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG001
    return grad.new_empty(grad.shape)


@weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    channels, dtype = x.shape[-1], sum_dtype(x)
    shape = (channels, 1, kernel_size, kernel_size)
    return x.new_empty(shape, dtype=dtype), x.new_empty(channels, dtype=dtype)


@norm_gradient.register_fake
def _(grad: Tensor, normalised: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG001
    return grad.new_empty(grad.shape)


def save_for_depthwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    """Keep what :func:`depthwise_backward` needs."""
    x, weight, bias = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def depthwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, weight and bias, each where it is wanted."""
    return gradients(ctx, grad, *ctx.saved_tensors)


def save_for_depthwise_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what :func:`depthwise_norm_backward` needs: the maps before and after, not the convolution between."""
    x, weight, bias, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, *output)


def depthwise_norm_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, weight and bias, each where it is wanted."""
    x, weight, normalised, scale = ctx.saved_tensors
    if grad is None:
        return None, None, None, None
    return *gradients(ctx, norm_gradient(grad, normalised, scale), x, weight), None


def gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """The convolution's three gradients from the one with respect to its output."""
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    x_gradient = input_gradient(grad, weight) if wants_x else None
    if not (wants_weight or wants_bias):
        return x_gradient, None, None
    weight_sum, bias_sum = weight_gradient(x, grad, weight.shape[-1])
    return (
        x_gradient,
        weight_sum.to(weight.dtype) if wants_weight else None,
        bias_sum.to(ctx.bias_dtype) if wants_bias else None,
    )


depthwise.register_autograd(depthwise_backward, setup_context=save_for_depthwise)
depthwise_norm.register_autograd(depthwise_norm_backward, setup_context=save_for_depthwise_norm)
