"""A linear layer with GELU behind it, and one with the end of a residual branch behind it, for the GPU.

Between them may stand what scales each sample's channels (GRN): ``row_scale`` of the second layer, computed from the
squares that the first gives.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.bias_gelu import plain_gradient as bias_gelu_gradient
from convnext.acceleration.gpu.triton_runtime import operator, runs, sum_dtype
from convnext.errors import UsageError


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, *, recompute: bool = False) -> Tensor:
    """``gelu(x @ weight.T + bias)``, (..., D); GELU is the exact one, of values in fp32.

    Args:
        x: (..., C).
        weight: (D, C), in x's dtype.
        bias: (D).
        recompute: keep x alone for the gradients, and multiply again.

    Raises:
        UsageError: a shape does not fit.
    """
    return linear_gelu_forward(x, weight, bias, is_kept(x, weight, bias) and not recompute, False)[0]


def linear_gelu_squares(x: Tensor, weight: Tensor, bias: Tensor, *, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`linear_gelu`, and the sums of its squares over each sample's positions, (N, D), in fp32.

    Args:
        x: (N, ..., C).
        weight: (D, C), in x's dtype.
        bias: (D).
        recompute: keep x alone for the gradients, and multiply again.

    Raises:
        UsageError: a shape does not fit.
    """
    return linear_gelu_forward(x, weight, bias, is_kept(x, weight, bias) and not recompute, True)[:2]


@operator("convnext::linear_gelu")
def linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor, store: bool, squares: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """GELU (..., D), the sums of its squares (N, D), and its argument (..., D) where it is to be stored; or empty."""
    check_linear(x, weight, bias)
    out, rows = (*x.shape[:-1], len(weight)), x.contiguous().flatten(0, -2)
    if rows.numel() and runs(rows, weight) and x.dtype == weight.dtype:
        from convnext.acceleration.gpu import mlp_triton

        groups = x.shape[0] if squares else 1
        y, h, sums = mlp_triton.linear_gelu(rows, weight.contiguous(), bias.contiguous(), groups, store, squares)
        return y.view(out), sums, h.view(out) if store else h
    h = F.linear(x, weight, bias.to(x.dtype)).contiguous()
    y = F.gelu(h)
    sums = y.to(sum_dtype(x)).square().flatten(1, -2).sum(1) if squares else x.new_empty(0, dtype=sum_dtype(x))
    return y, sums, h if store else x.new_empty(0)


@operator("convnext::linear_gelu_gradient")
def linear_gelu_gradient(
    grad: Tensor, grad_squares: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to GELU's argument, (..., D), and the bias.

    Args:
        grad: that with respect to the output, (..., D).
        grad_squares: that with respect to the sums of squares, (N, D).
        x: (N, ..., C).
        weight: (D, C).
        bias: (D).
        hidden: GELU's argument, (..., D); None to compute it again.
    """
    if x.numel() and runs(x, grad, weight) and x.dtype == weight.dtype == grad.dtype:
        from convnext.acceleration.gpu import mlp_gradient_triton

        h = None if hidden is None else hidden.contiguous()
        squares = None if grad_squares is None else grad_squares.contiguous()
        values = grad.contiguous(), x.contiguous().flatten(0, -2), weight.contiguous(), bias.contiguous()
        grad_h, _, grad_bias = mlp_gradient_triton.hidden_gradient(*values, None, None, h, squares)
        return grad_h.view(grad.shape), grad_bias.to(bias.dtype)
    h = F.linear(x, weight, bias.to(x.dtype)) if hidden is None else hidden
    if grad_squares is not None:
        grad = (grad + 2 * F.gelu(h) * over_positions(grad_squares, h)).to(grad.dtype)
    return bias_gelu_gradient(grad, h, torch.zeros_like(bias))


def linear_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor,
    keep: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    """``shortcut + keep * ((row_scale * x) @ weight.T + bias)`` in the shortcut's dtype, (..., C).

    Args:
        x: (..., D).
        weight: (C, D), in x's dtype.
        bias: (C).
        shortcut: (..., C).
        keep: (N), stochastic depth's factor for each sample, in fp32; has no gradient. A sample is an equal share of
            the rows.
        row_scale: (N, D), in fp32.

    Raises:
        UsageError: a shape does not fit.
    """
    return linear_add_forward(x, weight, bias, shortcut, keep, row_scale)


@operator("convnext::linear_add")
def linear_add_forward(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, keep: Tensor | None, row_scale: Tensor | None
) -> Tensor:
    """What :func:`linear_add` says."""
    check_linear(x, weight, bias)
    check_branch(x, (*x.shape[:-1], len(weight)), shortcut, keep)
    if row_scale is not None and (row_scale.shape[1:] != x.shape[-1:] or not divides(row_scale.shape[0], x)):
        raise UsageError(f"row_scale of {tuple(row_scale.shape)} for {tuple(x.shape)}: needs (N, {x.shape[-1]})")
    if x.numel() and runs(x, weight, shortcut) and x.dtype == weight.dtype:
        from convnext.acceleration.gpu import mlp_triton

        values = x.contiguous().flatten(0, -2), weight.contiguous(), bias.contiguous()
        factors = None if keep is None else keep.float().contiguous()
        scale = None if row_scale is None else row_scale.float().contiguous()
        out = mlp_triton.linear_add(*values, shortcut.contiguous().flatten(0, -2), factors, scale)
        return out.view(shortcut.shape)
    x = x if row_scale is None else (x * over_positions(row_scale, x)).to(x.dtype)
    return branch_end(F.linear(x, weight, bias.to(x.dtype)), shortcut, keep)


@operator("convnext::linear_add_gradient")
def linear_add_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, keep: Tensor | None, row_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient with respect to x, (..., D); keep * row_scale * x, (..., D); the gradient of row_scale, (N, D).

    Args:
        grad: that with respect to the output, (..., C), in x's dtype.
        x: (..., D).
        weight: (C, D).
        keep: (N).
        row_scale: (N, D).
    """
    if x.numel() and runs(x, grad, weight) and x.dtype == weight.dtype == grad.dtype:
        from convnext.acceleration.gpu import mlp_gradient_triton

        factors = None if keep is None else keep.float().contiguous()
        values = grad.contiguous().flatten(0, -2), x.contiguous().flatten(0, -2), weight.contiguous(), factors
        grad_x, scaled, grad_scale = mlp_gradient_triton.scaled_gradient(*values, row_scale.float().contiguous())
        return grad_x.view(x.shape), scaled.view(x.shape), grad_scale.to(row_scale.dtype)
    product, positions = kept(grad, keep) @ weight, positions_of(x, row_scale.shape[0])
    grad_scale = (product * x).to(sum_dtype(x)).reshape(row_scale.shape[0], positions, x.shape[-1]).sum(1)
    scale = over_positions(row_scale, x)
    grad_x, scaled = (product * scale).to(x.dtype), (kept(x, keep) * scale).to(x.dtype)
    return grad_x.contiguous(), scaled.contiguous(), grad_scale.to(row_scale.dtype)


def is_kept(*tensors: Tensor) -> bool:
    """Whether gradients will be asked for."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def positions_of(x: Tensor, samples: int) -> int:
    """The rows of each sample of (..., C)."""
    return math.prod(x.shape[:-1]) // max(1, samples)


def divides(samples: int, x: Tensor) -> bool:
    """Whether the rows of (..., C) are so many equal shares."""
    return positions_of(x, samples) * samples == math.prod(x.shape[:-1])


def over_positions(values: Tensor, x: Tensor) -> Tensor:
    """A value for each sample, (N, 1 or D), for each of the rows of x, as x is shaped."""
    return values.repeat_interleave(positions_of(x, values.shape[0]), 0).view(*x.shape[:-1], values.shape[1])


def kept(x: Tensor, keep: Tensor | None) -> Tensor:
    """x times the factor of each sample, in x's dtype."""
    return x if keep is None else (x * over_positions(keep[:, None], x)).to(x.dtype)


def branch_end(y: Tensor, shortcut: Tensor, keep: Tensor | None) -> Tensor:
    """``shortcut + keep * y``: the reference."""
    return (shortcut + kept(y, keep)).to(shortcut.dtype).contiguous()


def check_linear(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raise a usage error for shapes that do not fit."""
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1] or bias.shape != weight.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (x, weight, bias)]
        raise UsageError(f"input, weight and bias of {shapes}: need (..., C), (D, C) and (D)")


def check_branch(x: Tensor, out: tuple[int, ...], shortcut: Tensor, keep: Tensor | None) -> None:
    """Raise a usage error for shapes that do not fit."""
    if shortcut.shape != out:
        raise UsageError(f"a shortcut of {tuple(shortcut.shape)} for a branch of {out}: needs the same shape")
    if keep is not None and (keep.ndim != 1 or not divides(keep.shape[0], x)):
        raise UsageError(f"keep of {tuple(keep.shape)} for {tuple(x.shape)}: needs one value a sample")


@linear_gelu_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, store: bool, squares: bool) -> tuple[Tensor, Tensor, Tensor]:
    check_linear(x, weight, bias)
    out = (*x.shape[:-1], len(weight))
    sums = x.new_empty((x.shape[0], len(weight)) if squares else (0,), dtype=sum_dtype(x))
    return x.new_empty(out), sums, x.new_empty(out if store else (0,))


@linear_gelu_gradient.register_fake
def _(
    grad: Tensor,
    grad_squares: Tensor | None,  # noqa: ARG001
    x: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,
    hidden: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), bias.new_empty(bias.shape)


@linear_add_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor,
    keep: Tensor | None,
    row_scale: Tensor | None,  # noqa: ARG001
) -> Tensor:
    check_linear(x, weight, bias)
    check_branch(x, (*x.shape[:-1], len(weight)), shortcut, keep)
    return shortcut.new_empty(shortcut.shape)


@linear_add_gradient.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    weight: Tensor,  # noqa: ARG001
    keep: Tensor | None,  # noqa: ARG001
    row_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), row_scale.new_empty(row_scale.shape)


def save_for_gelu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what :func:`gelu_backward` needs."""
    x, weight, bias, store, squares = inputs
    ctx.mark_non_differentiable(*(output[2:] if squares else output[1:]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, output[2] if store else None)


def gelu_backward(ctx: Any, grad: Tensor | None, grad_squares: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, weight and bias."""
    x, weight, bias, hidden = ctx.saved_tensors
    if grad is None and grad_squares is None:
        return None, None, None, None, None
    if grad is None:
        grad = x.new_zeros((*x.shape[:-1], len(weight)))
    grad_hidden, grad_bias = linear_gelu_gradient(grad, grad_squares, x, weight, bias, hidden)
    return *input_and_weight_gradients(ctx, grad_hidden, x, weight), grad_bias, None, None


def input_and_weight_gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of an operator's first two arguments, x (..., C) and a weight (D, C), where they are wanted."""
    grad_x = grad @ weight if ctx.needs_input_grad[0] else None
    grad_weight = weight_gradient(grad, x) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (D, C) of a layer's weight from that behind it, (..., D), and its input, (..., C)."""
    return grad.flatten(0, -2).t() @ x.flatten(0, -2)


def bias_gradient(grad: Tensor, keep: Tensor | None) -> Tensor:
    """The sum of keep * grad over the rows of (..., C): within the samples, then over them, in fp32."""
    samples = 1 if keep is None else keep.shape[0]
    sums = grad.reshape(samples, positions_of(grad, samples), grad.shape[-1]).sum(1, dtype=sum_dtype(grad))
    return (sums if keep is None else sums * keep[:, None]).sum(0)


def save_for_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    """Keep what :func:`add_backward` needs."""
    x, weight, bias, _, keep, row_scale = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, weight, keep, row_scale)


def add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, weight, bias, shortcut and row_scale."""
    x, weight, keep, row_scale = ctx.saved_tensors
    branch, grad_scale = grad.to(x.dtype), None
    if row_scale is None:
        product = kept(branch, keep)
        grad_x, grad_weight = input_and_weight_gradients(ctx, product, x, weight)
    else:
        grad_x, scaled, grad_scale = linear_add_gradient(branch, x, weight, keep, row_scale)
        grad_weight = weight_gradient(branch, scaled)
    return grad_x, grad_weight, bias_gradient(grad, keep).to(ctx.bias_dtype), grad, None, grad_scale


linear_gelu_forward.register_autograd(gelu_backward, setup_context=save_for_gelu)
linear_add_forward.register_autograd(add_backward, setup_context=save_for_add)
