"""The two linear layers at the end of a residual branch as one operator, for training.

GELU, LayerScale, stochastic depth and the addition are part of it; LayerScale is multiplied into the second layer's
weight as that is packed. Its input and GELU's are saved for backward.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convnext.acceleration.cpu import add_branch
from convnext.acceleration.cpu.heap import empty
from convnext.acceleration.cpu.native import call, check_shapes, has_bf16, rows_of, vector

MIN_VALUES = 200_000  # of the hidden map; below, an operator called from Python takes longer than it saves


@torch.library.custom_op("convnext::residual_mlp", mutates_args=())
def residual_mlp(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """:func:`reference`, and GELU's input.

    Args:
        shortcut: (N, ..., C).
        x: (N, ..., B).
        weight1: (D, B).
        bias1: (D).
        weight2: (C, D).
        bias2: (C).
        gamma: LayerScale, (C); None for ones.
        keep: (N), a factor for each sample, without a gradient; None for ones.
        dtype: that the products are computed in.
        out_dtype: the sum's.

    Returns:
        The sum (N, ..., C) in ``out_dtype``, and linear1(x), (N, ..., D) in ``dtype``, which has no gradient.

    Raises:
        UsageError: a shape does not fit.
    """
    hidden, outputs = bias1.shape, bias2.shape
    fits = shortcut.shape[:-1] == x.shape[:-1] and shortcut.shape[-1:] == outputs and x.ndim >= 2
    fits = fits and weight1.shape == hidden + x.shape[-1:] and weight2.shape == outputs + hidden
    fits = fits and (gamma is None or gamma.shape == outputs) and (keep is None or keep.shape == x.shape[:1])
    check_shapes("residual_mlp", fits, shortcut, x, weight1, bias1, weight2, bias2, gamma, keep)
    shortcut, x, weight1, weight2 = (t.contiguous() for t in (shortcut, x.to(dtype), weight1, weight2))
    out, saved = empty(shortcut.shape, out_dtype), empty((*x.shape[:-1], len(weight1)), dtype)
    values = x, shortcut, weight1, vector(bias1), weight2, vector(bias2), vector(gamma), vector(keep), out, saved
    is_bf16 = (one == torch.bfloat16 for one in (dtype, weight1.dtype, weight2.dtype, shortcut.dtype, out_dtype))
    call("mlp", *values, *rows_of(x), *weight2.shape[::-1], *is_bf16)
    return out, saved


@torch.library.custom_op("convnext::residual_mlp_gradient", mutates_args=())
def residual_mlp_gradient(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to x, weights, biases and gamma; the same to the bit for any number of threads.

    Args:
        grad: the gradient with respect to the sum, (N, ..., C).
        x, weight1, bias1, weight2, bias2, gamma, keep: as in :func:`residual_mlp`.
        hidden: linear1(x), (N, ..., D), in the dtype of the products.

    Returns:
        Each in the dtype of what it is of; without gamma, the last one is empty.
    """
    inputs = x, weight1, bias1, weight2, bias2, bias2 if gamma is None else gamma
    dtype = hidden.dtype
    grad, x, weight1, weight2 = (t.contiguous() for t in (grad, x.to(dtype), weight1, weight2))
    outputs = (
        empty(x.shape, dtype),
        empty(weight1.shape, torch.float32),
        torch.empty(len(weight1)),
        empty(weight2.shape, torch.float32),
        torch.empty(len(weight2)),
        torch.empty(0 if gamma is None else len(gamma)),
    )
    values = grad, x, weight1, weight2, vector(bias2), vector(gamma), vector(keep), hidden.contiguous(), *outputs
    is_bf16 = (one == torch.bfloat16 for one in (dtype, weight1.dtype, weight2.dtype, grad.dtype))
    call("mlp_gradient", *values, *rows_of(x), *weight2.shape[::-1], *is_bf16)
    return tuple(out.to(of.dtype) for out, of in zip(outputs, inputs, strict=True))  # pyright: ignore[reportReturnType]


def computes(dtype: torch.dtype) -> bool:
    """True if the library multiplies in a dtype: fp32, and bf16 where the CPU does."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bf16())


def reference(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
) -> Tensor:
    """``shortcut + keep * gamma * linear2(gelu(linear1(x)))`` by torch."""
    branch = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2)
    scale = 1 if gamma is None else gamma
    return add_branch.reference(shortcut, scale * branch, scale * bias2, keep)


@residual_mlp.register_fake
def _(shortcut: Tensor, x: Tensor, weight1: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, dtype, out_dtype = others
    return x.new_empty(shortcut.shape, dtype=out_dtype), x.new_empty((*x.shape[:-1], len(weight1)), dtype=dtype)


@residual_mlp_gradient.register_fake
def _(grad: Tensor, *tensors: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    *inputs, gamma, _keep, _hidden = tensors
    like = *inputs, inputs[-1].new_empty(0) if gamma is None else gamma
    return tuple(tensor.new_empty(tensor.shape) for tensor in like)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what :func:`backward` needs."""
    shortcut, *tensors = inputs[:-2]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.dtype = shortcut.dtype
    ctx.save_for_backward(*tensors, output[1])


def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to shortcut, x, weights, biases and gamma."""
    if grad is None:
        return (None,) * 10
    tensors = ctx.saved_tensors  # read once, as activation checkpointing wants it
    gamma, _keep, _hidden = tensors[-3:]
    *others, gamma_grad = residual_mlp_gradient(grad, *tensors)
    return grad.to(ctx.dtype), *others, None if gamma is None else gamma_grad, None, None, None


residual_mlp.register_autograd(backward, setup_context=save_for_backward)


def count_flop(x: Sequence[int], weight1: Sequence[int], weight2: Sequence[int]) -> int:
    """Multiplications and additions of both linear layers."""
    return 2 * math.prod(x[:-1]) * (math.prod(weight1) + math.prod(weight2))


@register_flop_formula(torch.ops.convnext.residual_mlp)
def _(_: Any, x: Any, weight1: Any, _bias1: Any, weight2: Any, *__: Any, **___: Any) -> int:
    return count_flop(x, weight1, weight2)


@register_flop_formula(torch.ops.convnext.residual_mlp_gradient)
def _(_: Any, x: Any, weight1: Any, _bias1: Any, weight2: Any, *__: Any, **___: Any) -> int:
    return 2 * count_flop(x, weight1, weight2)
