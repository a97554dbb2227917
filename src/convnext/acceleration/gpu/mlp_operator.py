"""A block's two linear layers as one operator for the GPU: GELU between, stochastic depth and the residual behind.

For the narrower networks the map of 4 times the width never leaves the chip. What is kept for the gradients is the
input and GELU's argument, or the input alone; the rest is computed again where the gradients are.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext.acceleration.cpu.bias_gelu import plain_gradient as bias_gelu_gradient
from convnext.acceleration.gpu.linear_operator import (
    bias_gradient,
    branch_end,
    check_branch,
    check_linear,
    is_kept,
    kept,
    linear_add,
    linear_gelu,
    linear_gelu_squares,
    weight_gradient,
)
from convnext.acceleration.gpu.triton_runtime import interpreted, operator, runs
from convnext.errors import UsageError

__all__ = ["linear_add", "linear_gelu", "linear_gelu_squares", "mlp"]

WIDEST_WHOLE = 256  # channels of the sum that a tile of rows holds on the chip; wider ones take a kernel for each layer
FEWEST_ROWS_WHOLE = 4096  # so that half the GPU has work; fewer are divided by columns too, a layer at a time


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor,
    keep: Tensor | None = None,
    *,
    recompute: bool = False,
) -> Tensor:
    """``shortcut + keep * (gelu(x @ weight1.T + bias1) @ weight2.T + bias2)`` in the shortcut's dtype.

    GELU is the exact one, of values in fp32, in which everything is summed. LayerScale belongs in weight2 and bias2.

    Args:
        x: (N, H, W, C) or (M, C).
        weight1: (D, C), in x's dtype.
        bias1: (D).
        weight2: (C, D), in x's dtype.
        bias2: (C).
        shortcut: like x.
        keep: (N), stochastic depth's factor for each sample, in fp32; has no gradient. A sample is an equal share of
            the rows.
        recompute: keep x alone for the gradients, and multiply by weight1 again: a sixth more arithmetic in training,
            and a map of 4 times the width less in memory.

    Raises:
        UsageError: a shape does not fit.
    """
    store = is_kept(x, weight1, bias1, weight2, bias2) and not recompute
    return mlp_forward(x, weight1, bias1, weight2, bias2, shortcut, keep, store)[0]


@operator("convnext::mlp")
def mlp_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor,
    keep: Tensor | None,
    store: bool,
) -> tuple[Tensor, Tensor]:
    """The sum, and GELU's argument (..., D) where it is to be stored, or else nothing."""
    check(x, weight1, bias1, weight2, bias2, shortcut, keep)
    wide = (*x.shape[:-1], len(weight1))
    if x.numel() and runs(x, weight1, weight2, shortcut) and x.dtype == weight1.dtype == weight2.dtype:
        from convnext.acceleration.gpu import mlp_triton

        factors = None if keep is None else keep.float().contiguous()
        first = x.contiguous().flatten(0, -2), weight1.contiguous(), bias1.contiguous()
        second = weight2.contiguous(), bias2.contiguous(), shortcut.contiguous().flatten(0, -2), factors
        if is_whole(x):
            out, h = mlp_triton.mlp(*first, *second, store)
        else:
            y, h, _ = mlp_triton.linear_gelu(*first, 1, store, False)
            out = mlp_triton.linear_add(y, *second, None)
        return out.view(shortcut.shape), h.view(wide) if store else h
    h = F.linear(x, weight1, bias1.to(x.dtype)).contiguous()
    out = branch_end(F.linear(F.gelu(h), weight2, bias2.to(x.dtype)), shortcut, keep)
    return out, h if store else x.new_empty(0)


def is_whole(x: Tensor) -> bool:
    """Whether one kernel takes both layers: where its tiles fit the registers, which those of exact fp32 never do."""
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    if interpreted():
        return channels <= WIDEST_WHOLE
    fits = channels * x.element_size() <= 2 * WIDEST_WHOLE and rows >= FEWEST_ROWS_WHOLE
    return fits and (x.dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32")


@operator("convnext::mlp_gradient")
def mlp_gradient(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    keep: Tensor | None,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient with respect to GELU's argument, (..., D); keep * gelu, (..., D); the gradient of bias1.

    Args:
        grad: that with respect to the output, (..., C), in x's dtype.
        x: (..., C).
        weight1: (D, C).
        bias1: (D).
        weight2: (C, D).
        keep: (N).
        hidden: GELU's argument, (..., D); None to compute it again.
    """
    wide = (*x.shape[:-1], len(weight1))
    if x.numel() and runs(x, grad, weight1, weight2) and x.dtype == grad.dtype == weight1.dtype == weight2.dtype:
        from convnext.acceleration.gpu import mlp_gradient_triton

        factors = None if keep is None else keep.float().contiguous()
        values = grad.contiguous(), x.contiguous().flatten(0, -2), weight1.contiguous(), bias1.contiguous()
        h = None if hidden is None else hidden.contiguous()
        grad_h, y, sums = mlp_gradient_triton.hidden_gradient(*values, weight2.contiguous(), factors, h, None)
        return grad_h.view(wide), y.view(wide), sums.to(bias1.dtype)
    h = F.linear(x, weight1, bias1.to(x.dtype)) if hidden is None else hidden
    grad_h, grad_bias = bias_gelu_gradient(kept(grad, keep) @ weight2, h, bias1.new_zeros(bias1.shape))
    return grad_h, kept(F.gelu(h), keep).contiguous(), grad_bias


def check(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor,
    keep: Tensor | None,
) -> None:
    """Raise a usage error for shapes that do not fit."""
    check_linear(x, weight1, bias1)
    if weight2.shape != weight1.shape[::-1] or bias2.shape != x.shape[-1:]:
        shapes = [tuple(tensor.shape) for tensor in (weight1, weight2, bias2)]
        raise UsageError(f"weights and the second bias of {shapes}: need (D, C), (C, D) and (C)")
    check_branch(x, x.shape, shortcut, keep)


@mlp_forward.register_fake
def _(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor,
    keep: Tensor | None,
    store: bool,
) -> tuple[Tensor, Tensor]:
    check(x, weight1, bias1, weight2, bias2, shortcut, keep)
    return shortcut.new_empty(shortcut.shape), x.new_empty((*x.shape[:-1], len(weight1)) if store else (0,))


@mlp_gradient.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,  # noqa: ARG001
    keep: Tensor | None,  # noqa: ARG001
    hidden: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    wide = (*x.shape[:-1], len(weight1))
    return x.new_empty(wide), x.new_empty(wide), bias1.new_empty(bias1.shape)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what :func:`backward` needs."""
    x, weight1, bias1, weight2, bias2, _, keep, store = inputs
    ctx.bias_dtype = bias2.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight1, bias1, weight2, keep, output[1] if store else None)


def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to x, the weights and biases, and the shortcut."""
    if grad is None:
        return (None,) * 8
    x, weight1, bias1, weight2, keep, hidden = ctx.saved_tensors
    wants_x, wants_weight1, wants_bias1, wants_weight2, wants_bias2 = ctx.needs_input_grad[:5]
    branch = grad.to(x.dtype)
    grad_bias2 = bias_gradient(grad, keep).to(ctx.bias_dtype) if wants_bias2 else None
    if not (wants_x or wants_weight1 or wants_bias1 or wants_weight2):
        return None, None, None, None, grad_bias2, grad, None, None
    grad_hidden, y, grad_bias1 = mlp_gradient(branch, x, weight1, bias1, weight2, keep, hidden)
    grad_weight2 = weight_gradient(branch, y) if wants_weight2 else None
    del y  # a map of 4 times the width
    grad_x = grad_hidden @ weight1 if wants_x else None
    grad_weight1 = weight_gradient(grad_hidden, x) if wants_weight1 else None
    return grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2, grad, None, None


mlp_forward.register_autograd(backward, setup_context=save)
