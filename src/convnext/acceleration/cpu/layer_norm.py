"""LayerNorm over the last dimension, for training: in one pass, in the dtype that autocast wants next."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.native import call, check_shapes, rows_of, vector

MIN_VALUES = 300_000  # of the output; below, an operator called from Python takes longer than it saves


@torch.library.custom_op("convnext::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`reference` in a dtype, and the statistics that its gradients need.

    Args:
        x: (N, ..., C).
        weight: (C).
        bias: (C).
        eps: added to the variance.
        dtype: the output's.

    Returns:
        The output (N, ..., C), and of each row the mean and ``1 / sqrt(variance + eps)``, (rows, 2), without gradients.

    Raises:
        UsageError: weight or bias is of another shape.
    """
    check_shapes("layer_norm", x.shape[-1:] == weight.shape == bias.shape, x, weight, bias)
    rows, _, channels = rows_of(x)
    x, y, statistics = x.contiguous(), torch.empty(x.shape, dtype=dtype), torch.empty((rows, 2))
    is_bf16 = x.dtype == torch.bfloat16, dtype == torch.bfloat16
    call("layer_norm", x, vector(weight), vector(bias), y, statistics, rows, channels, eps, *is_bf16)
    return y, statistics


@torch.library.custom_op("convnext::layer_norm_gradient", mutates_args=())
def layer_norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, weight and bias, the same to the bit for any number of threads."""
    rows, _, channels = rows_of(x)
    x, grad, x_grad = x.contiguous(), grad.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    weight_grad, bias_grad = torch.empty(channels), torch.empty(channels)
    outputs = x_grad, weight_grad, bias_grad
    is_bf16 = x.dtype == torch.bfloat16, grad.dtype == torch.bfloat16
    call("layer_norm_gradient", x, vector(weight), statistics, grad, *outputs, rows, channels, *is_bf16)
    return x_grad, weight_grad.to(weight.dtype), bias_grad.to(weight.dtype)


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` by torch."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


@layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((math.prod(x.shape[:-1]), 2), dtype=torch.float32)


@layer_norm_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what :func:`backward` needs."""
    x, weight, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, weight and bias."""
    grads = (None,) * 3 if grad is None else layer_norm_gradient(grad, *ctx.saved_tensors)
    return *grads, None, None


layer_norm.register_autograd(backward, setup_context=save_for_backward)
