"""Normalisation of every position of a map, written as the rows of the matrix product behind it: patch by patch.

A convolution of k x k patches that do not overlap is one matrix product, once each patch lies in memory as a row. The
LayerNorm before it reads and writes the whole map anyway, so that it can put every position where the product reads it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from convnext.acceleration.gpu.depthwise_operator import plain_norm_gradient, plain_normalised
from convnext.acceleration.gpu.triton_runtime import operator, runs, sum_dtype


@operator("convnext::norm_patches")
def norm_patches(x: Tensor, size: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each position normalised over the channels, in patches of ``size`` x ``size``.

    Args:
        x: (N, H, W, C).
        size: k; rows and columns beyond the last whole patch are left out, as by a convolution.
        eps: added to the variance.
        dtype: of the patches.

    Returns:
        The patches (N, H / k, W / k, k * k * C), each position behind the other, ``(x - mean) * scale``; and
        ``scale = 1 / sqrt(variance + eps)`` (N, H / k, W / k, k * k) in fp32, without a gradient.
    """
    x = x.contiguous()
    if not runs(x):
        return plain(x, size, eps, dtype)
    from convnext.acceleration.gpu.patches_triton import normalise

    return normalise(x, size, eps, dtype)


@operator("convnext::norm_patches_gradient")
def norm_patches_gradient(grad: Tensor, patches: Tensor, scale: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The gradient with respect to x, zero outside the patches.

    Args:
        grad: the gradient with respect to the patches, (N, H / k, W / k, k * k * C).
        patches: what :func:`norm_patches` gave.
        scale: with them.
        shape: of x, (N, H, W, C).
        dtype: of x.
    """
    grad, patches = grad.contiguous(), patches.contiguous()
    if not runs(grad, patches, scale):
        return plain_gradient(grad, patches, scale, shape, dtype)
    from convnext.acceleration.gpu.patches_triton import gradient

    return gradient(grad, patches, scale, shape, dtype)


def cut(x: Tensor, size: int) -> Tensor:
    """The patches of a map: (N, H, W, C) to (N, H / k, W / k, k * k, C)."""
    samples, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size].unflatten(2, (columns, size)).unflatten(1, (rows, size))
    return x.transpose(2, 3).reshape(samples, rows, columns, size * size, channels)


def plain(x: Tensor, size: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same by torch: the reference."""
    normalised, scale = plain_normalised(cut(x, size), eps)
    return normalised.flatten(3).to(dtype).contiguous(), scale


def plain_gradient(grad: Tensor, patches: Tensor, scale: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The gradient by torch."""
    positions, size = scale.shape[-1], math.isqrt(scale.shape[-1])
    grad, patches = (value.to(scale.dtype).unflatten(-1, (positions, shape[-1])) for value in (grad, patches))
    grad = plain_norm_gradient(grad, patches, scale)
    rows, columns = scale.shape[1:3]
    whole = grad.new_zeros(shape)
    grad = grad.unflatten(3, (size, size)).transpose(2, 3).reshape(shape[0], rows * size, columns * size, shape[-1])
    whole[:, : rows * size, : columns * size] = grad
    return whole.to(dtype)


def sizes(x: Tensor, size: int) -> tuple[int, int, int]:
    """Patches: samples, rows, columns."""
    return x.shape[0], x.shape[1] // size, x.shape[2] // size


@norm_patches.register_fake
def _(x: Tensor, size: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    positions = size * size
    return (
        x.new_empty((*sizes(x, size), positions * x.shape[-1]), dtype=dtype),
        x.new_empty((*sizes(x, size), positions), dtype=sum_dtype(x)),
    )


@norm_patches_gradient.register_fake
def _(
    grad: Tensor,
    patches: Tensor,  # noqa: ARG001
    scale: Tensor,  # noqa: ARG001
    shape: list[int],
    dtype: torch.dtype,
) -> Tensor:
    return grad.new_empty(shape, dtype=dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what :func:`backward` needs: the patches, which the product behind them keeps as well."""
    x = inputs[0]
    ctx.shape, ctx.dtype = x.shape, x.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output)


def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None]:
    """The gradient with respect to x."""
    if grad is None:
        return None, None, None, None
    return norm_patches_gradient(grad, *ctx.saved_tensors, list(ctx.shape), ctx.dtype), None, None, None


norm_patches.register_autograd(backward, setup_context=save)
