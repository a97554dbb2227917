"""LayerNorm over the last dimension, given at once in the dtype that autocast wants next; its gradients in one pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.native import NATIVE_DTYPES, call, library, vector
from convnext.acceleration.cpu.twice import through
from convnext.errors import UsageError

MIN_VALUES = 300_000  # of the output; below, an operator written in Python takes longer than it saves


@torch.library.custom_op("convnext::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``F.layer_norm(x, (C,), weight, bias, eps).to(dtype)``, and the statistics that its gradients need.

    Args:
        x: (..., C).
        weight: (C).
        bias: (C).
        eps: added to the variance.
        dtype: the output's.

    Returns:
        The output (..., C), and for each row its mean and ``1 / sqrt(variance + eps)``, (rows, 2), without gradients.

    Raises:
        UsageError: weight or bias is of another shape.
    """
    if not x.shape[-1:] == weight.shape == bias.shape:
        raise UsageError(
            f"a weight of {tuple(weight.shape)} and a bias of {tuple(bias.shape)} for {tuple(x.shape)}: need one value "
            "a channel, the last dimension"
        )
    native = library() if x.device.type == "cpu" and {x.dtype, dtype} <= set(NATIVE_DTYPES) else None
    if native is None:
        return plain(x, weight, bias, eps).to(dtype), x.new_empty((rows(x), 2))
    x, y = x.contiguous(), torch.empty(x.shape, dtype=dtype)
    statistics = torch.empty((rows(x), 2), dtype=torch.float32)
    values = x, vector(weight), vector(bias), y, statistics, rows(x), len(weight), eps
    call(native, "layer_norm", *values, x.dtype == torch.bfloat16, dtype == torch.bfloat16)
    return y, statistics


@torch.library.custom_op("convnext::layer_norm_gradient", mutates_args=())
def layer_norm_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, statistics: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, weight and bias, the same to the bit for any number of threads.

    Args:
        grad: the gradient with respect to the output, (..., C).
        x: (..., C).
        weight: (C).
        statistics: those that :func:`layer_norm` gave.
        eps: added to the variance.
    """
    native = library() if x.device.type == "cpu" and {x.dtype, grad.dtype} <= set(NATIVE_DTYPES) else None
    if native is None:
        return plain_gradient(grad, x, weight, eps)
    x, grad, x_grad = x.contiguous(), grad.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    weight_grad, bias_grad = torch.empty(len(weight)), torch.empty(len(weight))
    values = x, vector(weight), statistics, grad, x_grad, weight_grad, bias_grad, rows(x), len(weight)
    call(native, "layer_norm_gradient", *values, x.dtype == torch.bfloat16, grad.dtype == torch.bfloat16)
    return x_grad, weight_grad.to(weight.dtype), bias_grad.to(weight.dtype)


def rows(x: Tensor) -> int:
    """Vectors of C values in (..., C)."""
    return x[..., 0].numel()


def plain(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same by torch: the reference."""
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps).contiguous()


def plain_gradient(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by torch."""
    dtype, x, grad = x.dtype, x.to(weight.dtype), grad.to(weight.dtype)
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    inverse = (variance + eps).rsqrt()
    normed, g = (x - mean) * inverse, grad * weight
    x_grad = (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True)) * inverse
    before = tuple(range(x.ndim - 1))
    return x_grad.to(dtype).contiguous(), (grad * normed).sum(before), grad.sum(before)


@layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    statistics = torch.float32 if x.dtype in NATIVE_DTYPES else x.dtype
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((rows(x), 2), dtype=statistics)


@layer_norm_gradient.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    weight: Tensor,
    statistics: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def save_for_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what :func:`backward` needs."""
    x, weight, _, ctx.eps, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, weight and bias."""
    if grad is None:
        return None, None, None, None, None
    return *layer_norm_gradient(grad, *ctx.saved_tensors, ctx.eps), None, None


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Keep what :func:`gradient_backward` needs."""
    grad, x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(grad, x, weight)


def gradient_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Gradients of the gradients."""
    return *through(plain_gradient, (*ctx.saved_tensors, ctx.eps), grads)[:3], None, None


layer_norm.register_autograd(backward, setup_context=save_for_layer_norm)
layer_norm_gradient.register_autograd(gradient_backward, setup_context=save_for_gradient)
