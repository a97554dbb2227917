"""The end of a residual branch after its last matrix product, for training: bias, stochastic depth and the addition."""

from typing import Any

import torch
from torch import Tensor

from convnext.acceleration.cpu.native import call, check_shapes, rows_of, vector

MIN_VALUES = 300_000  # of the output; below, an operator called from Python takes longer than it saves


@torch.library.custom_op("convnext::add_branch", mutates_args=())
def add_branch(shortcut: Tensor, x: Tensor, bias: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """:func:`reference` in a dtype.

    Args:
        shortcut: (N, ..., C).
        x: (N, ..., C).
        bias: (C).
        keep: (N), a factor for each sample, without a gradient; None for ones.
        dtype: the output's.

    Raises:
        UsageError: a shape does not fit.
    """
    fits = shortcut.shape == x.shape and bias.shape == x.shape[-1:] and (keep is None or keep.shape == x.shape[:1])
    check_shapes("add_branch", fits, shortcut, x, bias, keep)
    shortcut, x, out = shortcut.contiguous(), x.contiguous(), torch.empty(x.shape, dtype=dtype)
    is_bf16 = (one == torch.bfloat16 for one in (shortcut.dtype, x.dtype, dtype))
    call("add_branch", shortcut, x, vector(bias), vector(keep), out, *rows_of(x), *is_bf16)
    return out


@torch.library.custom_op("convnext::add_branch_gradient", mutates_args=())
def add_branch_gradient(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and bias, in these dtypes; the same to the bit for any number of threads."""
    grad, x_grad, bias_grad = grad.contiguous(), torch.empty(grad.shape, dtype=dtype), torch.empty(grad.shape[-1])
    is_bf16 = grad.dtype == torch.bfloat16, dtype == torch.bfloat16
    call("add_branch_gradient", grad, vector(keep), x_grad, bias_grad, *rows_of(grad), *is_bf16)
    return x_grad, bias_grad.to(bias_dtype)


def reference(shortcut: Tensor, x: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
    """``shortcut + keep * (x + bias)`` by torch."""
    return shortcut + (x + bias) * (1 if keep is None else keep.view(-1, *(1,) * (x.ndim - 1)))


@add_branch.register_fake
def _(shortcut: Tensor, x: Tensor, bias: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape, dtype=dtype)


@add_branch_gradient.register_fake
def _(grad: Tensor, keep: Tensor | None, dtype: torch.dtype, bias_dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return grad.new_empty(grad.shape, dtype=dtype), grad.new_empty(grad.shape[-1:], dtype=bias_dtype)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    """Save what :func:`backward` needs."""
    shortcut, x, bias, keep, _ = inputs
    ctx.dtypes = shortcut.dtype, x.dtype, bias.dtype
    ctx.save_for_backward(keep)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients with respect to shortcut, x and bias."""
    shortcut, *dtypes = ctx.dtypes
    return grad.to(shortcut), *add_branch_gradient(grad, *ctx.saved_tensors, *dtypes), None, None


add_branch.register_autograd(backward, setup_context=save_for_backward)
