"""The two linear layers at the end of a residual branch as one operator, for training on the CPU.

GELU, LayerScale, stochastic depth and the addition are part of it; LayerScale is multiplied into the second layer's
weight as that is laid out. What is kept for the gradients is the input and GELU's argument.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convnext.acceleration.cpu.add_branch import kept, sizes
from convnext.acceleration.cpu.bias_gelu import plain_gradient as plain_gelu_gradient
from convnext.acceleration.cpu.heap import empty
from convnext.acceleration.cpu.native import NATIVE_DTYPES, call, has_bf16, library, vector
from convnext.acceleration.cpu.twice import through
from convnext.errors import UsageError

MIN_VALUES = 200_000  # of the hidden map; below, an operator written in Python takes longer than it saves


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
    """``shortcut + keep * gamma * linear2(gelu(linear1(x)))``, and what GELU was taken of.

    Args:
        shortcut: (N, ..., C).
        x: (N, ..., B).
        weight1: (D, B).
        bias1: (D).
        weight2: (C, D).
        bias2: (C).
        gamma: LayerScale, (C); None for ones.
        keep: (N), a factor for each sample; None for ones. It has no gradient.
        dtype: in which the products are computed.
        out_dtype: the sum's.

    Returns:
        The sum (N, ..., C) in ``out_dtype``, and linear1(x), (N, ..., D) in ``dtype``, which has no gradient.

    Raises:
        UsageError: a shape does not fit.
    """
    check(shortcut, x, weight1, bias1, weight2, bias2, gamma, keep)
    native = native_of(dtype, shortcut, x, weight1, weight2)
    if native is None:
        return plain(shortcut, x, weight1, bias1, weight2, bias2, gamma, keep, dtype, out_dtype)
    shortcut, x, weight1, weight2 = (t.contiguous() for t in (shortcut, x.to(dtype), weight1, weight2))
    out, hidden = empty(shortcut.shape, out_dtype), empty((*x.shape[:-1], len(weight1)), dtype)
    gamma, keep = (None if factors is None else vector(factors) for factors in (gamma, keep))
    flags = (dtype, weight1.dtype, weight2.dtype, shortcut.dtype, out_dtype)
    values = x, shortcut, weight1, vector(bias1), weight2, vector(bias2), gamma, keep, out, hidden
    call(native, "mlp", *values, *sizes(x), *weight2.shape[::-1], *(of == torch.bfloat16 for of in flags))
    return out, hidden


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
        x: (N, ..., B).
        weight1: (D, B).
        bias1: (D).
        weight2: (C, D).
        bias2: (C).
        gamma: (C), or None.
        keep: (N), or None.
        hidden: linear1(x), (N, ..., D), in the dtype of the products.

    Returns:
        Those of x, weight1, bias1, weight2, bias2 and gamma in their dtypes; without gamma, nothing (0) is the last.
    """
    dtype, x_dtype = hidden.dtype, x.dtype
    native = native_of(dtype, grad, x, weight1, weight2)
    if native is None:
        return plain_gradient(grad, x, weight1, bias1, weight2, bias2, gamma, keep, dtype)
    grad, x, weight1, weight2 = (t.contiguous() for t in (grad, x.to(dtype), weight1, weight2))
    x_grad = empty(x.shape, dtype)
    weight1_grad, bias1_grad = empty(weight1.shape, torch.float32), torch.empty(len(weight1))
    weight2_grad, bias2_grad = empty(weight2.shape, torch.float32), torch.empty(len(weight2))
    gamma_grad = torch.empty(0 if gamma is None else len(gamma))
    gamma_dtype = bias2.dtype if gamma is None else gamma.dtype
    gamma, keep = (None if factors is None else vector(factors) for factors in (gamma, keep))
    outputs = x_grad, weight1_grad, bias1_grad, weight2_grad, bias2_grad, gamma_grad
    flags = (of == torch.bfloat16 for of in (dtype, weight1.dtype, weight2.dtype, grad.dtype))
    values = grad, x, weight1, weight2, vector(bias2), gamma, keep, hidden.contiguous(), *outputs
    call(native, "mlp_gradient", *values, *sizes(x), *weight2.shape[::-1], *flags)
    return (
        x_grad.to(x_dtype),
        weight1_grad.to(weight1.dtype),
        bias1_grad.to(bias1.dtype),
        weight2_grad.to(weight2.dtype),
        bias2_grad.to(bias2.dtype),
        gamma_grad.to(gamma_dtype),
    )


def computes(dtype: torch.dtype) -> bool:
    """Whether the library here multiplies in a dtype: fp32, and bf16 where the processor does."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bf16())


computes._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]  # as native.available


def native_of(dtype: torch.dtype, *tensors: Tensor) -> Any:
    """The library, if it computes in a dtype here, of tensors such as these; or None."""
    fits = all(tensor.device.type == "cpu" and tensor.dtype in NATIVE_DTYPES for tensor in tensors)
    return library() if fits and computes(dtype) else None


def check(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
) -> None:
    """Refuse shapes that do not fit.

    Raises:
        UsageError: one does not.
    """
    hidden, outputs = bias1.shape, bias2.shape
    fits = shortcut.shape[:-1] == x.shape[:-1] and shortcut.shape[-1:] == outputs and x.ndim >= 2
    if not (fits and weight1.shape == hidden + x.shape[-1:] and weight2.shape == outputs + hidden):
        shapes = ", ".join(str(tuple(t.shape)) for t in (shortcut, x, weight1, bias1, weight2, bias2))
        need = "(N, ..., C), (N, ..., B), (D, B), (D), (C, D), (C)"
        raise UsageError(f"shortcut, x, weights and biases of {shapes}: need {need}")
    if gamma is not None and gamma.shape != outputs:
        raise UsageError(f"a gamma of {tuple(gamma.shape)} for a bias of {tuple(outputs)}: need one value an output")
    if keep is not None and keep.shape != x.shape[:1]:
        raise UsageError(f"factors of {tuple(keep.shape)} for {tuple(x.shape)}: need one a sample, the first dimension")


def plain(
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
    """The same by torch: the reference."""
    hidden = F.linear(x.to(dtype), weight1.to(dtype), bias1.to(dtype)).contiguous()
    branch = F.linear(F.gelu(hidden), scaled(weight2, gamma).to(dtype), scaled(bias2, gamma).to(dtype))
    return (shortcut + kept(branch, keep)).to(out_dtype).contiguous(), hidden


def scaled(values: Tensor, gamma: Tensor | None) -> Tensor:
    """The second layer's weight or bias with LayerScale in it."""
    return values if gamma is None else values * gamma.view(-1, *(1,) * (values.ndim - 1))


def plain_gradient(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients by torch, from the inputs alone."""
    rows, first, second = x.to(dtype).flatten(0, -2), weight1.to(dtype), scaled(weight2, gamma).to(dtype)
    product = kept(grad, keep).to(dtype).flatten(0, -2)
    hidden, zeros = rows @ first.T, torch.zeros_like(bias1, dtype=dtype)
    hidden_grad, bias1_grad = plain_gelu_gradient(product @ second, hidden + bias1.to(dtype), zeros)
    # With respect to gamma * weight2 and gamma * bias2.
    weight2_grad, bias2_grad = product.T @ F.gelu(hidden + bias1.to(dtype)), product.sum(0)
    gamma_grad = bias2.new_empty(0)
    if gamma is not None:
        gamma_grad = ((weight2_grad * weight2).sum(1) + bias2_grad * bias2).to(gamma.dtype)
    return (
        (hidden_grad @ first).view(x.shape).to(x.dtype),
        (hidden_grad.T @ rows).to(weight1.dtype).contiguous(),
        bias1_grad.to(bias1.dtype),
        scaled(weight2_grad, gamma).to(weight2.dtype).contiguous(),
        scaled(bias2_grad, gamma).to(bias2.dtype),
        gamma_grad,
    )


@residual_mlp.register_fake
def _(
    shortcut: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,  # noqa: ARG001
    weight2: Tensor,  # noqa: ARG001
    bias2: Tensor,  # noqa: ARG001
    gamma: Tensor | None,  # noqa: ARG001
    keep: Tensor | None,  # noqa: ARG001
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(shortcut.shape, dtype=out_dtype), x.new_empty((*x.shape[:-1], len(weight1)), dtype=dtype)


@residual_mlp_gradient.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,  # noqa: ARG001
    hidden: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (x, weight1, bias1, weight2, bias2, bias2.new_empty(0) if gamma is None else gamma)
    return tuple(tensor.new_empty(tensor.shape) for tensor in like)  # pyright: ignore[reportReturnType]


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what :func:`backward` needs."""
    shortcut, *tensors = inputs[:-2]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.dtype = shortcut.dtype
    ctx.save_for_backward(*tensors, output[1])


def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients with respect to shortcut, x, weights, biases and gamma; the factors have none."""
    if grad is None:
        return (None,) * 10
    tensors = ctx.saved_tensors  # asked for once, as checkpointing wants it
    gamma, _keep, _hidden = tensors[-3:]
    *others, gamma_grad = residual_mlp_gradient(grad, *tensors)
    return grad.to(ctx.dtype), *others, None if gamma is None else gamma_grad, None, None, None


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Keep what :func:`gradient_backward` needs."""
    *tensors, hidden = inputs
    ctx.dtype = hidden.dtype
    ctx.save_for_backward(*tensors)


def gradient_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Gradients of the gradients; what is kept of the forward pass is computed again from its inputs."""
    *tensors, keep = ctx.saved_tensors
    by_torch: Any = plain_gradient
    found = through(lambda *inputs: by_torch(*inputs, keep, ctx.dtype), tuple(tensors), grads)
    return *found, None, None


residual_mlp.register_autograd(backward, setup_context=save_inputs)
residual_mlp_gradient.register_autograd(gradient_backward, setup_context=save_for_gradient)


def product_flop(x: Sequence[int], weight1: Sequence[int], weight2: Sequence[int]) -> int:
    """Products and sums of both linear layers, of shapes (..., B), (D, B) and (C, D)."""
    return 2 * math.prod(x[:-1]) * (math.prod(weight1) + math.prod(weight2))


@register_flop_formula(torch.ops.convnext.residual_mlp)
def _(_: Any, *shapes: Any, **__: Any) -> int:
    x, weight1, _bias1, weight2 = shapes[:4]
    return product_flop(x, weight1, weight2)


@register_flop_formula(torch.ops.convnext.residual_mlp_gradient)
def _(_: Any, *shapes: Any, **__: Any) -> int:
    x, weight1, _bias1, weight2 = shapes[:4]
    return 2 * product_flop(x, weight1, weight2)
