"""The kernels of ``patches.py``: a program normalises some positions, channels side by side."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.acceleration.gpu.triton_runtime import launch

VALUES = 4096  # of a program: its positions times its channels, rounded up to a power of two
WARPS = 4


@triton.jit
def place(position, rows, columns, height, width, SIZE: tl.constexpr):
    """Where a position of the patches, counted in their order, stands in the map."""
    inside, patch = position % (SIZE * SIZE), position // (SIZE * SIZE)
    column, line = patch % columns, patch // columns
    row, sample = line % rows, line // rows
    return (sample * height + row * SIZE + inside // SIZE) * width + column * SIZE + inside % SIZE


@triton.jit
def normalise_kernel(
    x_pointer,  # (N, H, W, C)
    patches_pointer,  # (positions, C)
    scale_pointer,  # (positions), fp32
    positions,
    rows,
    columns,
    height,
    width,
    eps,
    CHANNELS: tl.constexpr,  # known when compiled, so that it is known how wide a thread may read
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, BLOCK_C)
    there, kept = position < positions, channel < CHANNELS
    mask = there[:, None] & kept[None, :]
    source = place(position, rows, columns, height, width, SIZE) * CHANNELS
    x = tl.load(x_pointer + source[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / CHANNELS
    centred = tl.where(mask, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / CHANNELS + eps)
    normalised = (centred * scale[:, None]).to(patches_pointer.dtype.element_ty)
    tl.store(patches_pointer + (position * CHANNELS)[:, None] + channel[None, :], normalised, mask=mask)
    tl.store(scale_pointer + position, scale, mask=there)


@triton.jit
def gradient_kernel(
    grad_pointer,  # (positions, C)
    patches_pointer,  # (positions, C)
    scale_pointer,  # (positions), fp32
    out_pointer,  # (N, H, W, C)
    positions,
    rows,
    columns,
    height,
    width,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, BLOCK_C)
    there, kept = position < positions, channel < CHANNELS
    mask = there[:, None] & kept[None, :]
    source = (position * CHANNELS)[:, None] + channel[None, :]
    grad = tl.load(grad_pointer + source, mask=mask, other=0.0).to(tl.float32)
    normalised = tl.load(patches_pointer + source, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_pointer + position, mask=there, other=0.0)
    along = tl.sum(grad * normalised, 1) / CHANNELS
    out = scale[:, None] * (grad - (tl.sum(grad, 1) / CHANNELS)[:, None] - normalised * along[:, None])
    target = place(position, rows, columns, height, width, SIZE) * CHANNELS
    tl.store(out_pointer + target[:, None] + channel[None, :], out.to(out_pointer.dtype.element_ty), mask=mask)


def tile(channels: int) -> dict[str, int]:
    """Positions and channels of a program."""
    padded = triton.next_power_of_2(channels)
    return {"POSITIONS": max(1, VALUES // padded), "BLOCK_C": padded, "num_warps": WARPS}


def normalise(x: Tensor, size: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See :func:`convnext.acceleration.gpu.patches_operator.norm_patches`."""
    samples, height, width, channels = x.shape
    rows, columns = height // size, width // size
    patches = x.new_empty((samples, rows, columns, size * size * channels), dtype=dtype)
    scale = x.new_empty((samples, rows, columns, size * size), dtype=torch.float32)
    positions, chosen = scale.numel(), tile(channels)
    if positions:
        launch(normalise_kernel)[(triton.cdiv(positions, chosen["POSITIONS"]),)](
            x, patches, scale, positions, rows, columns, height, width, eps, CHANNELS=channels, SIZE=size, **chosen
        )
    return patches, scale


def gradient(grad: Tensor, patches: Tensor, scale: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """See :func:`convnext.acceleration.gpu.patches_operator.norm_patches_gradient`."""
    _, height, width, channels = shape
    rows, columns, _ = scale.shape[1:]
    size = math.isqrt(scale.shape[-1])
    covered = (rows * size, columns * size) == (height, width)
    out = (torch.empty if covered else torch.zeros)(shape, dtype=dtype, device=grad.device)
    positions, chosen = scale.numel(), tile(channels)
    if positions:
        launch(gradient_kernel)[(triton.cdiv(positions, chosen["POSITIONS"]),)](
            grad, patches, scale, out, positions, rows, columns, height, width, CHANNELS=channels, SIZE=size, **chosen
        )
    return out
