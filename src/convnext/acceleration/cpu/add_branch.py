"""The end of a residual branch, behind the matrix product of its last layer: bias, stochastic depth, the addition.

LayerScale is no pass of its own: the layer's weight is scaled before the product (:func:`scale_rows`).
"""

from typing import Any

import torch
from torch import Tensor

from convnext.acceleration.cpu.native import NATIVE_DTYPES, call, library, vector
from convnext.acceleration.cpu.twice import through
from convnext.errors import UsageError

MIN_VALUES = 300_000  # of the output; below, an operator written in Python takes longer than it saves


@torch.library.custom_op("convnext::add_branch", mutates_args=())
def add_branch(shortcut: Tensor, x: Tensor, bias: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``shortcut + keep * (x + bias)`` in a dtype.

    Args:
        shortcut: (N, ..., C).
        x: (N, ..., C).
        bias: (C).
        keep: (N), a factor for each sample; None for ones.
        dtype: the output's.

    Raises:
        UsageError: a shape does not fit.
    """
    if shortcut.shape != x.shape or bias.shape != x.shape[-1:] or (keep is not None and keep.shape != x.shape[:1]):
        shapes = [tuple(tensor.shape) for tensor in (shortcut, x, bias) if tensor is not None]
        raise UsageError(f"shortcut, branch and bias of {shapes}: need (N, ..., C) twice and (C), and keep (N)")
    dtypes = {shortcut.dtype, x.dtype, dtype}
    native = library() if x.device.type == "cpu" and dtypes <= set(NATIVE_DTYPES) else None
    if native is None:
        return plain(shortcut, x, bias, keep).to(dtype)
    shortcut, x, out = shortcut.contiguous(), x.contiguous(), torch.empty(x.shape, dtype=dtype)
    keep = None if keep is None else vector(keep)
    flags = [of == torch.bfloat16 for of in (shortcut.dtype, x.dtype, dtype)]
    call(native, "add_branch", shortcut, x, vector(bias), keep, out, *sizes(x), *flags)
    return out


@torch.library.custom_op("convnext::add_branch_gradient", mutates_args=())
def add_branch_gradient(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and bias, in their dtypes; the same to the bit for any number of threads.

    Args:
        grad: the gradient with respect to the output, (N, ..., C).
        keep: (N), or None.
        dtype: of x.
        bias_dtype: of the bias.
    """
    native = library() if grad.device.type == "cpu" and {grad.dtype, dtype} <= set(NATIVE_DTYPES) else None
    if native is None:
        return plain_gradient(grad, keep, dtype, bias_dtype)
    grad, x_grad = grad.contiguous(), torch.empty(grad.shape, dtype=dtype)
    keep = None if keep is None else vector(keep)
    bias_grad = torch.empty(grad.shape[-1])
    flags = grad.dtype == torch.bfloat16, dtype == torch.bfloat16
    call(native, "add_branch_gradient", grad, keep, x_grad, bias_grad, *sizes(grad), *flags)
    return x_grad, bias_grad.to(bias_dtype)


@torch.library.custom_op("convnext::scale_rows", mutates_args=())
def scale_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``(scale[:, None] * weight).to(dtype)``: a linear layer's weight with LayerScale in it.

    Args:
        weight: (C, D).
        scale: (C).
        dtype: the output's.

    Raises:
        UsageError: the scale is of another shape.
    """
    if weight.ndim != 2 or scale.shape != weight.shape[:1]:
        raise UsageError(f"scales of {tuple(scale.shape)} for {tuple(weight.shape)}: need one value a row of a matrix")
    native = library() if are_native(weight, scale, dtype) else None
    if native is None:
        return (scale[:, None] * weight).to(dtype).contiguous()
    out = torch.empty(weight.shape, dtype=dtype)
    call(native, "scale_rows", weight.contiguous(), scale.contiguous(), out, *weight.shape, dtype == torch.bfloat16)
    return out


@torch.library.custom_op("convnext::scale_rows_gradient", mutates_args=())
def scale_rows_gradient(grad: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to weight and scale.

    Args:
        grad: the gradient with respect to the output, (C, D).
        weight: (C, D).
        scale: (C).
    """
    native = library() if are_native(weight, scale, grad.dtype) else None
    if native is None:
        return plain_scale_gradient(grad, weight, scale)
    weight_grad, scale_grad = torch.empty(weight.shape), torch.empty(len(scale))
    values = weight.contiguous(), scale.contiguous(), grad.contiguous(), weight_grad, scale_grad
    call(native, "scale_rows_gradient", *values, *weight.shape, grad.dtype == torch.bfloat16)
    return weight_grad, scale_grad


def are_native(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether the C code takes a weight, its scale and the scaled weight's dtype."""
    fits = weight.dtype == scale.dtype == torch.float32 and dtype in NATIVE_DTYPES
    return fits and weight.device.type == "cpu"


def sizes(x: Tensor) -> tuple[int, int, int]:
    """Rows of (N, ..., C), those of a sample, and C."""
    rows = x[..., 0].numel()
    return rows, rows // max(1, len(x)), x.shape[-1]


def kept(x: Tensor, keep: Tensor | None) -> Tensor:
    """x times the factor of each sample."""
    return x if keep is None else x * keep.view(-1, *(1,) * (x.ndim - 1))


def plain(shortcut: Tensor, x: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
    """The same by torch: the reference."""
    return (shortcut + kept(x + bias, keep)).contiguous()


def plain_gradient(
    grad: Tensor, keep: Tensor | None, dtype: torch.dtype, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients by torch."""
    product = kept(grad, keep)
    bias_grad = product.sum(tuple(range(grad.ndim - 1))).to(bias_dtype)
    return product.to(dtype).clone(memory_format=torch.contiguous_format), bias_grad


def plain_scale_gradient(grad: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by torch."""
    return (grad * scale[:, None]).contiguous().to(weight.dtype), (grad * weight).sum(1).to(scale.dtype)


@add_branch.register_fake
def _(shortcut: Tensor, x: Tensor, bias: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape, dtype=dtype)


@add_branch_gradient.register_fake
def _(
    grad: Tensor,
    keep: Tensor | None,  # noqa: ARG001
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape, dtype=dtype), grad.new_empty(grad.shape[-1:], dtype=bias_dtype)


@scale_rows.register_fake
def _(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    return weight.new_empty(weight.shape, dtype=dtype)


@scale_rows_gradient.register_fake
def _(grad: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return weight.new_empty(weight.shape), scale.new_empty(scale.shape)


def save_for_add_branch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    """Keep what :func:`backward` needs."""
    shortcut, x, bias, keep, _ = inputs
    ctx.dtypes = shortcut.dtype, x.dtype, bias.dtype
    ctx.save_for_backward(keep)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients with respect to shortcut, x and bias; the factors have none."""
    shortcut, *dtypes = ctx.dtypes
    return grad.to(shortcut), *add_branch_gradient(grad, *ctx.saved_tensors, *dtypes), None, None


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Keep what :func:`gradient_backward` needs."""
    grad, keep, *ctx.dtypes = inputs
    ctx.save_for_backward(grad, keep)


def gradient_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Gradients of the gradients, with respect to the first."""
    grad, keep = ctx.saved_tensors
    return through(lambda grad: plain_gradient(grad, keep, *ctx.dtypes), (grad,), grads)[0], None, None, None


def save_for_scale(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Keep what the gradients need."""
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))


def scale_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients with respect to weight and scale."""
    return *scale_rows_gradient(grad, *ctx.saved_tensors), None


def scale_gradient_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Gradients of the gradients."""
    return through(plain_scale_gradient, ctx.saved_tensors, grads)


add_branch.register_autograd(backward, setup_context=save_for_add_branch)
add_branch_gradient.register_autograd(gradient_backward, setup_context=save_for_gradient)
scale_rows.register_autograd(scale_backward, setup_context=save_for_scale)
scale_rows_gradient.register_autograd(scale_gradient_backward, setup_context=save_for_scale)
