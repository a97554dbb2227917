"""The convolution of ``depthwise.py`` in Triton, also with its norm: kernels, and how they are launched.

A convolution of 7 x 7 does 49 products for each value of the map, on the GPU's plain fp32 units (tensor cores have no
use for it). At best those units are busy all the time, with few instructions that load or convert between. So a program
keeps the sums of ``COLUMNS`` neighbouring columns in registers, as a tuple that unrolls: a value loaded and converted
once serves up to k of them. Its ``ROWS`` rows lie side by side in the threads, counted through the whole batch (so a
7 x 7 map leaves no thread idle), and share what they read through the L1 cache. Channels lie innermost: neighbouring
threads read neighbouring addresses, four channels each.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.acceleration.gpu.triton_runtime import interpreted, launch

PROGRAMS = 396  # what fills a large GPU: three, of four warps and 168 registers, for each of 132 multiprocessors


def tuned(kernel: Any) -> Any:
    """Take, for each kind of map, the fastest of some tiles; interpreted, always the same."""
    choices = [(512, 1, 4)] if interpreted() else [(512, 1, 4), (512, 2, 4), (1024, 2, 8)]
    configs = [triton.Config({"TILE": t, "SPLIT": s}, num_warps=w, num_stages=1) for t, s, w in choices]
    return triton.autotune(configs, ["CHANNELS", "KERNEL", "WIDE", "BLOCK_C", "work"])(kernel)


@triton.jit
def as_mask(condition):
    """A mask from blocks and scalars: the interpreter of Triton 3.9 broadcasts a scalar condition as int32."""
    return condition != 0


@triton.jit
def convolved(
    x,  # (rows, width, CHANNELS), rows = samples * height
    taps,  # (KERNEL * KERNEL, CHANNELS) fp32
    row,  # [ROWS]
    rows,
    height,
    width,
    column,
    channel,  # [BLOCK_C]
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    TURNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tuple of the sums of COLUMNS columns from ``column`` on, each [ROWS, BLOCK_C]; 0 beyond the channels."""
    PADDING: tl.constexpr = KERNEL // 2
    inside = channel < CHANNELS
    y = row % height
    stride = width * CHANNELS
    lane_taps = taps + (row * 0)[:, None] + channel[None, :]  # in the layout of the values that they meet
    corner = x + (row.to(tl.int64) - PADDING)[:, None] * stride + ((column - PADDING) * CHANNELS + channel)[None, :]
    sums = ()
    for _ in tl.static_range(COLUMNS):
        sums = sums + (tl.zeros([ROWS, BLOCK_C], tl.float32),)
    for tap_y in range(KERNEL):
        source = y + tap_y - PADDING
        there = ((row < rows) & (source >= 0) & (source < height))[:, None] & inside[None, :]
        line = corner + tap_y * stride
        weights = ()
        for tap_x in tl.static_range(KERNEL):
            tap = tap_y * KERNEL + tap_x
            if TURNED:
                tap = KERNEL * KERNEL - 1 - tap
            weights = weights + (tl.load(lane_taps + tap * CHANNELS, mask=inside[None, :], other=0.0),)
        for j in tl.static_range(COLUMNS + KERNEL - 1):
            at = column + (j - PADDING)
            mask = as_mask(there & (at >= 0) & (at < width))
            value = tl.load(line + j * CHANNELS, mask=mask, other=0.0).to(tl.float32)
            updated = ()
            for i in tl.static_range(COLUMNS):
                if i <= j and j < i + KERNEL:
                    updated = updated + (sums[i] + value * weights[j - i],)
                else:
                    updated = updated + (sums[i],)
            sums = updated
    return sums


@tuned
@triton.jit(do_not_specialize=["work"])
def convolution_kernel(
    x,  # (rows, width, CHANNELS), rows = samples * height
    taps,  # (KERNEL * KERNEL, CHANNELS) fp32
    bias,  # (CHANNELS), or anything where not HAS_BIAS
    out,  # (rows, width, CHANNELS)
    rows,
    height,
    width,
    work,  # of which only the order of magnitude counts, for the tuning
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    TURNED: tl.constexpr,  # by 180 degrees: the gradient with respect to the input
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Grid: blocks of rows, of columns, of channels; the last vary fastest, so that neighbours share the L2 cache."""
    ROWS: tl.constexpr = max(1, TILE // BLOCK_C)
    COLUMNS: tl.constexpr = (WIDE + SPLIT - 1) // SPLIT
    blocks = tl.cdiv(CHANNELS, BLOCK_C)
    columns = tl.cdiv(width, COLUMNS)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    column = tl.program_id(0) // blocks % columns * COLUMNS
    row = tl.program_id(0) // blocks // columns * ROWS + tl.arange(0, ROWS)
    sums = convolved(
        x, taps, row, rows, height, width, column, channel, CHANNELS, KERNEL, TURNED, ROWS, COLUMNS, BLOCK_C
    )
    inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    if HAS_BIAS:
        shift = tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * (width * CHANNELS) + (column * CHANNELS + channel)[None, :]
    for i in tl.static_range(COLUMNS):
        z = sums[i]
        if HAS_BIAS:
            z = z + shift
        tl.store(target + i * CHANNELS, z.to(out.dtype.element_ty), mask=as_mask(inside & (column + i < width)))


@tuned
@triton.jit(do_not_specialize=["work"])
def convolution_norm_kernel(
    x,  # (rows, width, CHANNELS), rows = samples * height
    taps,  # (KERNEL * KERNEL, CHANNELS) fp32
    bias,  # (CHANNELS), or anything where not HAS_BIAS
    out,  # (rows, width, CHANNELS)
    scale,  # (rows, width) fp32
    rows,
    height,
    width,
    work,
    eps,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Grid: blocks of rows, of columns. A program sees all the channels of its positions, block by block.

    More than one block does not fit into registers: the convolution then waits in ``out``, which the program reads back
    from the L2 cache once it knows mean and variance. These are merged block by block (Chan et al., 1979), so that no
    difference of large sums is taken.
    """
    ROWS: tl.constexpr = max(1, TILE // BLOCK_C)
    COLUMNS: tl.constexpr = (WIDE + SPLIT - 1) // SPLIT
    columns = tl.cdiv(width, COLUMNS)
    column = tl.program_id(0) % columns * COLUMNS
    row = tl.program_id(0) // columns * ROWS + tl.arange(0, ROWS)
    position = row.to(tl.int64) * width + column
    means = ()
    deviations = ()  # sums of squared ones
    for _ in tl.static_range(COLUMNS):
        means = means + (tl.zeros([ROWS], tl.float32),)
        deviations = deviations + (tl.zeros([ROWS], tl.float32),)
    for start in range(0, CHANNELS, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        inside = (channel < CHANNELS)[None, :]
        sums = convolved(
            x, taps, row, rows, height, width, column, channel, CHANNELS, KERNEL, False, ROWS, COLUMNS, BLOCK_C
        )
        if HAS_BIAS:
            shift = tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
        count = tl.minimum(CHANNELS - start, BLOCK_C).to(tl.float32)
        share = count / (start + count)
        target = out + position[:, None] * CHANNELS + channel[None, :]
        merged_means = ()
        merged_deviations = ()
        convolutions = ()
        for i in tl.static_range(COLUMNS):
            z = sums[i]
            if HAS_BIAS:
                z = z + shift
            mean = tl.sum(z, 1) / count
            centred = tl.where(inside, z - mean[:, None], 0.0)
            step = mean - means[i]
            merged_means = merged_means + (means[i] + step * share,)
            merged_deviations = merged_deviations + (
                deviations[i] + tl.sum(centred * centred, 1) + step * step * (start * share),
            )
            if BLOCK_C < CHANNELS:
                there = as_mask((row < rows)[:, None] & inside & (column + i < width))
                tl.store(target + i * CHANNELS, z.to(out.dtype.element_ty), mask=there)
            else:
                convolutions = convolutions + (centred,)
        means = merged_means
        deviations = merged_deviations
        if BLOCK_C >= CHANNELS:
            for i in tl.static_range(COLUMNS):
                there = as_mask((row < rows) & (column + i < width))
                inverse = 1 / tl.sqrt_rn(deviations[i] / CHANNELS + eps)
                normalised = (convolutions[i] * inverse[:, None]).to(out.dtype.element_ty)
                tl.store(target + i * CHANNELS, normalised, mask=there[:, None] & inside)
                tl.store(scale + position + i, inverse, mask=there)
    if BLOCK_C < CHANNELS:
        tl.debug_barrier()  # what one thread wrote another may read
        inverses = ()
        for i in tl.static_range(COLUMNS):
            inverse = 1 / tl.sqrt_rn(deviations[i] / CHANNELS + eps)
            tl.store(scale + position + i, inverse, mask=as_mask((row < rows) & (column + i < width)))
            inverses = inverses + (inverse,)
        for start in range(0, CHANNELS, BLOCK_C):
            channel = start + tl.arange(0, BLOCK_C)
            target = out + position[:, None] * CHANNELS + channel[None, :]
            for i in tl.static_range(COLUMNS):
                there = as_mask((row < rows)[:, None] & (channel < CHANNELS)[None, :] & (column + i < width))
                z = tl.load(target + i * CHANNELS, mask=there, other=0.0).to(tl.float32)
                normalised = (z - means[i][:, None]) * inverses[i][:, None]
                tl.store(target + i * CHANNELS, normalised.to(out.dtype.element_ty), mask=there)


def taps_of(weight: Tensor) -> Tensor:
    """A weight of (C, 1, k, k) as (k * k, C) in fp32, in which neighbouring threads read neighbouring channels."""
    channels, _, kernel, _ = weight.shape
    taps = torch.empty((kernel * kernel, channels), dtype=torch.float32, device=weight.device)
    return taps.copy_(weight.reshape(channels, kernel * kernel).t())


def channel_block(channels: int, most: int) -> int:
    """The largest block of channels, 32 or more, that leaves few threads idle."""
    fewest = triton.cdiv(channels, 32) * 32
    blocks = [block for block in (32, 64, 128) if block <= most]
    return max(block for block in blocks if triton.cdiv(channels, block) * block <= 1.125 * fewest)


def wide(positions: int, width: int) -> int:
    """Columns of a program before SPLIT: many where there is work for many programs, none beyond the map's."""
    most = 14 if positions >= 32768 else 7 if positions >= 4096 else 4
    return triton.cdiv(width, triton.cdiv(width, most))


def tiles(rows: int, width: int, columns: int, block: int, meta: dict[str, Any]) -> int:
    """Blocks of rows and columns that cover the maps."""
    return triton.cdiv(rows, max(1, meta["TILE"] // block)) * triton.cdiv(width, triton.cdiv(columns, meta["SPLIT"]))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, turned: bool) -> Tensor:
    """The convolution of contiguous maps (N, H, W, C), by the kernel or by the kernel turned."""
    samples, height, width, channels = x.shape
    rows, block, columns = samples * height, channel_block(channels, 128), wide(samples * height * width, width)
    out = torch.empty_like(x)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (tiles(rows, width, columns, block, meta) * triton.cdiv(channels, block),)

    launch(convolution_kernel)[grid](
        x,
        taps_of(weight),
        out if bias is None else bias,
        out,
        rows,
        height,
        width,
        (rows * width).bit_length(),
        CHANNELS=channels,
        KERNEL=weight.shape[-1],
        TURNED=turned,
        HAS_BIAS=bias is not None,
        WIDE=columns,
        BLOCK_C=block,
    )
    return out


def convolve_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The convolution of contiguous maps, normalised, and ``1 / sqrt(variance + eps)`` of each position."""
    samples, height, width, channels = x.shape
    rows, block, columns = samples * height, channel_block(channels, 128), wide(samples * height * width, width)
    # Where positions alone do not fill the GPU, a program takes few of them and its threads more channels.
    while block < min(channels, 1024) and rows * triton.cdiv(width, columns) * block < PROGRAMS * 1024:
        block *= 2
    out, scale = torch.empty_like(x), x.new_empty((samples, height, width), dtype=torch.float32)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (tiles(rows, width, columns, block, meta),)

    launch(convolution_norm_kernel)[grid](
        x,
        taps_of(weight),
        out if bias is None else bias,
        out,
        scale,
        rows,
        height,
        width,
        (rows * width).bit_length(),
        eps,
        CHANNELS=channels,
        KERNEL=weight.shape[-1],
        HAS_BIAS=bias is not None,
        WIDE=columns,
        BLOCK_C=block,
    )
    return out, scale
