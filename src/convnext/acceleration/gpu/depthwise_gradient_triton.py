"""The gradients of ``depthwise.py`` that are no convolutions, in Triton: the norm's, and the weight's and bias's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.acceleration.gpu.depthwise_triton import PROGRAMS, as_mask, channel_block
from convnext.acceleration.gpu.triton_runtime import interpreted, launch


@triton.jit
def norm_gradient_kernel(
    grad,  # (positions, CHANNELS)
    normalised,  # (positions, CHANNELS)
    scale,  # (positions) fp32
    out,  # (positions, CHANNELS)
    positions,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,  # all of the channels
):
    """Grid: blocks of positions."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, BLOCK_C)
    there = (position < positions)[:, None] & (channel < CHANNELS)[None, :]
    offset = position.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    d = tl.load(grad + offset, mask=there, other=0.0).to(tl.float32)
    n = tl.load(normalised + offset, mask=there, other=0.0).to(tl.float32)
    factor = tl.load(scale + position, mask=position < positions, other=0.0)
    mean = tl.sum(d, 1) / CHANNELS
    along = tl.sum(d * n, 1) / CHANNELS
    result = factor[:, None] * (d - mean[:, None] - n * along[:, None])
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=there)


@triton.jit
def weight_gradient_kernel(
    x,  # (rows, width, CHANNELS), rows = samples * height
    grad,  # (rows, width, CHANNELS)
    partial,  # (strips, KERNEL * KERNEL + 1, CHANNELS) fp32; the last is the bias'
    rows,
    height,
    width,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    TAP_ROWS: tl.constexpr,  # rows of the kernel that a program sums
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Grid: blocks of channels, of the kernel's rows, strips. A program keeps all of its sums in registers."""
    PADDING: tl.constexpr = KERNEL // 2
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first_tap = tl.program_id(1) * TAP_ROWS
    strip = tl.program_id(2)
    length = tl.cdiv(rows, tl.num_programs(2))
    end = tl.minimum((strip + 1) * length, rows)
    inside = (channel < CHANNELS)[None, :]
    stride = width * CHANNELS
    sums = ()
    for _ in tl.static_range(TAP_ROWS * KERNEL):
        sums = sums + (tl.zeros([ROWS, BLOCK_C], tl.float32),)
    total = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for column in range(0, width, COLUMNS):
        for start in range(strip * length, end, ROWS):
            row = start + tl.arange(0, ROWS)
            y = row % height
            offset = row.to(tl.int64)[:, None] * stride + (column * CHANNELS + channel)[None, :]
            grads = ()
            for i in tl.static_range(COLUMNS):
                there = as_mask((row < end)[:, None] & inside & (column + i < width))
                grads = grads + (tl.load(grad + offset + i * CHANNELS, mask=there, other=0.0).to(tl.float32),)
                total += grads[i]
            corner = x + offset - PADDING * CHANNELS
            updated = ()
            for tap_y in tl.static_range(TAP_ROWS):
                source = y + (first_tap + tap_y - PADDING)
                there = ((row < end) & (source >= 0) & (source < height))[:, None] & inside
                line = corner + (first_tap + tap_y - PADDING) * stride
                values = ()
                for j in tl.static_range(COLUMNS + KERNEL - 1):
                    at = column + (j - PADDING)
                    mask = as_mask(there & (at >= 0) & (at < width))
                    value = tl.load(line + j * CHANNELS, mask=mask, other=0.0)
                    values = values + (value.to(tl.float32),)
                for tap_x in tl.static_range(KERNEL):
                    products = sums[tap_y * KERNEL + tap_x]
                    for i in tl.static_range(COLUMNS):
                        products += values[i + tap_x] * grads[i]
                    updated = updated + (products,)
            sums = updated
    base = partial + strip.to(tl.int64) * ((KERNEL * KERNEL + 1) * CHANNELS)
    for i in tl.static_range(TAP_ROWS * KERNEL):
        tap = first_tap * KERNEL + i
        there = as_mask((channel < CHANNELS) & (tap < KERNEL * KERNEL))
        tl.store(base + tap * CHANNELS + channel, tl.sum(sums[i], 0), mask=there)
    if first_tap == 0:
        tl.store(base + KERNEL * KERNEL * CHANNELS + channel, tl.sum(total, 0), mask=channel < CHANNELS)


def norm_gradient(grad: Tensor, normalised: Tensor, scale: Tensor) -> Tensor:
    """The gradient with respect to what was normalised; all contiguous."""
    channels, out = grad.shape[-1], torch.empty_like(grad)
    block = triton.next_power_of_2(channels)
    at_once = max(1, (256 if interpreted() else 2048) // block)
    grid = (triton.cdiv(scale.numel(), at_once),)
    values = grad, normalised, scale, out, scale.numel()
    launch(norm_gradient_kernel)[grid](*values, CHANNELS=channels, POSITIONS=at_once, BLOCK_C=block, num_warps=4)
    return out


def weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """The gradients with respect to weight (C, 1, k, k) and bias (C) in fp32; x and grad contiguous."""
    samples, height, width, channels = x.shape
    rows, block, columns = samples * height, channel_block(channels, 64), triton.cdiv(width, triton.cdiv(width, 7))
    parts = {9: 2, 11: 3}.get(kernel, 1)  # of the kernel's rows: the sums of more do not fit into registers
    blocks = triton.cdiv(channels, block) * parts
    strips = max(1, min(rows // 8, PROGRAMS // blocks))
    partial = x.new_empty((strips, kernel * kernel + 1, channels), dtype=torch.float32)
    launch(weight_gradient_kernel)[(blocks // parts, parts, strips)](
        x,
        grad,
        partial,
        rows,
        height,
        width,
        CHANNELS=channels,
        KERNEL=kernel,
        TAP_ROWS=triton.cdiv(kernel, parts),
        ROWS=256 // block,
        COLUMNS=columns,
        BLOCK_C=block,
        num_warps=4,
        num_stages=1,
    )
    total = partial.sum(0)
    return total[:-1].t().contiguous().view(channels, 1, kernel, kernel), total[-1].clone()
