"""GELU (exact, by erf) of a linear layer's output, for training: the bias is added in the same pass."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.native import call, check_shapes, rows_of, vector

MIN_VALUES = 200_000  # of the output; below, an operator called from Python takes longer than it saves


@torch.library.custom_op("convnext::bias_gelu", mutates_args=())
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """:func:`reference` in x's dtype, contiguous.

    Args:
        x: (N, ..., C).
        bias: (C), in x's dtype or fp32.

    Raises:
        UsageError: the bias is of another shape.
    """
    check_shapes("bias_gelu", bias.shape == x.shape[-1:], x, bias)
    x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    rows, _, channels = rows_of(x)
    call("bias_gelu", x, vector(bias), y, rows, channels, x.dtype == torch.bfloat16)
    return y


@torch.library.custom_op("convnext::bias_gelu_gradient", mutates_args=())
def bias_gelu_gradient(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and bias, the same to the bit for any number of threads."""
    x, grad, x_grad = x.contiguous(), grad.to(x.dtype).contiguous(), torch.empty(x.shape, dtype=x.dtype)
    bias_grad, (rows, _, channels) = torch.empty(len(bias)), rows_of(x)
    call("bias_gelu_gradient", x, vector(bias), grad, x_grad, bias_grad, rows, channels, x.dtype == torch.bfloat16)
    return x_grad, bias_grad.to(bias.dtype)


def reference(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)`` by torch."""
    return F.gelu(x + bias)


def plain_gradient(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and bias by torch's operators alone."""
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


def save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    """Save what :func:`backward` needs."""
    ctx.save_for_backward(*inputs)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and bias."""
    return bias_gelu_gradient(grad, *ctx.saved_tensors)


bias_gelu.register_autograd(backward, setup_context=save_for_backward)
