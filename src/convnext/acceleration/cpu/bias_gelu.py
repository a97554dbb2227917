"""GELU of a linear layer's output (exact, by erf), the bias added on the way, and the gradients of both in one pass."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.native import NATIVE_DTYPES, call, library, vector
from convnext.acceleration.cpu.twice import through
from convnext.errors import UsageError

MIN_VALUES = 200_000  # of the output; below, an operator written in Python takes longer than it saves


@torch.library.custom_op("convnext::bias_gelu", mutates_args=())
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)`` in x's dtype, in memory as (N, ..., C) is.

    Args:
        x: (..., C).
        bias: (C), in x's dtype or fp32.

    Raises:
        UsageError: the bias is of another shape.
    """
    if bias.shape != x.shape[-1:]:
        raise UsageError(f"a bias of {tuple(bias.shape)} for {tuple(x.shape)}: needs one value a channel, the last")
    native = library() if x.device.type == "cpu" and x.dtype in NATIVE_DTYPES else None
    if native is None:
        return plain(x, bias)
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    call(native, "bias_gelu", x, vector(bias), y, x.numel() // max(1, len(bias)), len(bias), x.dtype == torch.bfloat16)
    return y


@torch.library.custom_op("convnext::bias_gelu_gradient", mutates_args=())
def bias_gelu_gradient(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and bias, the same to the bit for any number of threads.

    Args:
        grad: the gradient with respect to the output, (..., C).
        x: (..., C).
        bias: (C).
    """
    native = library() if x.device.type == "cpu" and x.dtype == grad.dtype and x.dtype in NATIVE_DTYPES else None
    if native is None:
        return plain_gradient(grad, x, bias)
    x, grad, x_grad = x.contiguous(), grad.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    bias_grad, rows = torch.empty(len(bias)), x.numel() // max(1, len(bias))
    values = x, vector(bias), grad, x_grad, bias_grad, rows, len(bias), x.dtype == torch.bfloat16
    call(native, "bias_gelu_gradient", *values)
    return x_grad, bias_grad.to(bias.dtype)


def plain(x: Tensor, bias: Tensor) -> Tensor:
    """The same by torch: the reference."""
    return F.gelu((x + bias).to(x.dtype)).contiguous()


def plain_gradient(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by torch."""
    z = x + bias
    slope = (1 + torch.erf(z * math.sqrt(0.5))) / 2 + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    product = (grad * slope).contiguous()
    return product.to(x.dtype), product.sum(tuple(range(x.ndim - 1))).to(bias.dtype)


@bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape)


@bias_gelu_gradient.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ARG001
    """Keep what the gradients need."""
    ctx.save_for_backward(*inputs)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and bias."""
    return bias_gelu_gradient(grad, *ctx.saved_tensors)


def gradient_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Gradients of the gradients."""
    return through(plain_gradient, ctx.saved_tensors, grads)


bias_gelu.register_autograd(backward, setup_context=save_inputs)
bias_gelu_gradient.register_autograd(gradient_backward, setup_context=save_inputs)
