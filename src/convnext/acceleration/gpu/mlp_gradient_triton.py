"""The gradients of a block's linear layers in Triton, where more than a matrix product is to be done."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.acceleration.gpu.mlp_triton import column_blocks, inner_block, precision, row_block
from convnext.acceleration.gpu.tile_triton import gelu_and_slope, product, tile_of, tuned
from convnext.acceleration.gpu.triton_runtime import launch

GRADIENT_SIZES = [  # smaller than those of the layers: GELU, its slope and the gradient are in registers at once
    {"BLOCK_N": 64, "warps": 8, "stages": 4},
    {"BLOCK_N": 128, "warps": 8, "stages": 3},
]


@tuned(GRADIENT_SIZES, key=["K", "N", "BLOCK_M", "PRODUCT", "RECOMPUTE", "KEEP", "SQUARES"])
@triton.jit
def hidden_gradient_kernel(
    grad,  # (groups * rows, K) behind the second layer, or (groups * rows, N) before it
    x,  # (groups * rows, K)
    weight1,  # (N, K)
    bias1,  # (N)
    weight2,  # (K, N)
    keep,  # (samples)
    hidden,  # (groups * rows, N)
    grad_squares,  # (groups, N)
    grad_hidden,  # (groups * rows, N)
    activation,  # (groups * rows, N)
    sums,  # (groups * blocks of rows, N)
    rows,
    positions,  # rows of a sample
    K: tl.constexpr,
    N: tl.constexpr,
    PRODUCT: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    KEEP: tl.constexpr,
    SQUARES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradient in front of GELU, its sums over a tile's rows, and keep * gelu(hidden) for the second's weight."""
    tile, first, behind, exist, columns = tile_of(rows, N, BLOCK_M, BLOCK_N)
    at = behind[:, None] * N + columns[None, :]
    mask = exist[:, None] & (columns[None, :] < N)
    if RECOMPUTE:
        left = (x + first * K) + behind[:, None] * K
        h = product(left, weight1, columns, x, K, N, 1, K, False, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
        h += tl.load(bias1 + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if PRODUCT:
        left = (grad + first * K) + behind[:, None] * K
        g = product(left, weight2, columns, x, K, N, N, 1, False, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    else:
        g = tl.load(grad + first * N + at, mask=mask, other=0.0).to(tl.float32)
    if not RECOMPUTE:
        h = tl.load(hidden + first * N + at, mask=mask, other=0.0).to(tl.float32)
    a, slope = gelu_and_slope(h, x.dtype.element_ty == tl.float32)
    if SQUARES:
        g += 2.0 * a * tl.load(grad_squares + first // rows * N + columns, mask=columns < N, other=0.0)[None, :]
    g *= slope
    if KEEP:
        factor = tl.load(keep + (first.to(tl.int32) + behind) // positions)[:, None]
        g *= factor
        a *= factor
    if PRODUCT:
        tl.store(activation + first * N + at, a.to(activation.dtype.element_ty), mask=mask)
    tl.store(grad_hidden + first * N + at, g.to(grad_hidden.dtype.element_ty), mask=mask)
    total = tl.sum(tl.where(exist[:, None], g, 0.0), 0)
    tl.store(sums + tile.to(tl.int64) * N + columns, total, mask=columns < N)


@tuned(GRADIENT_SIZES, key=["K", "N", "BLOCK_M", "KEEP"])
@triton.jit
def scaled_gradient_kernel(
    grad,  # (groups * rows, K)
    weight,  # (K, N)
    keep,  # (groups)
    x,  # (groups * rows, N)
    row_scale,  # (groups, N)
    grad_x,  # (groups * rows, N)
    scaled,  # (groups * rows, N)
    sums,  # (groups * blocks of rows, N)
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradient of x, keep * row_scale * x for the weight's, and row_scale's summed over a tile's rows."""
    tile, first, behind, exist, columns = tile_of(rows, N, BLOCK_M, BLOCK_N)
    left = (grad + first * K) + behind[:, None] * K
    g = product(left, weight, columns, row_scale, K, N, N, 1, False, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    at = behind[:, None] * N + columns[None, :]
    mask = exist[:, None] & (columns[None, :] < N)
    value = tl.load(x + first * N + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(row_scale + first // rows * N + columns, mask=columns < N, other=0.0)[None, :]
    if KEEP:
        factor = tl.load(keep + first // rows)
        g *= factor
        tl.store(scaled + first * N + at, (factor * scale * value).to(scaled.dtype.element_ty), mask=mask)
    else:
        tl.store(scaled + first * N + at, (scale * value).to(scaled.dtype.element_ty), mask=mask)
    tl.store(grad_x + first * N + at, (scale * g).to(grad_x.dtype.element_ty), mask=mask)
    tl.store(sums + tile.to(tl.int64) * N + columns, tl.sum(value * g, 0), mask=columns < N)


def hidden_gradient(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor | None,
    keep: Tensor | None,
    hidden: Tensor | None,
    grad_squares: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient (rows, N) of what GELU is applied to, the second layer's input, and the gradient (N) of the bias.

    ``grad`` is that behind the second layer with a weight of it, or else in front of it; without ``hidden`` it is
    computed again. The matrices are contiguous.
    """
    (all_rows, size), columns = x.shape, len(weight1)
    groups = 1 if grad_squares is None else grad_squares.shape[0]
    rows = all_rows // groups
    block = row_block(groups, rows)
    tiles = groups * triton.cdiv(rows, block)
    grad_hidden = x.new_empty((all_rows, columns))
    activation = x.new_empty((0,) if weight2 is None else (all_rows, columns))
    sums = x.new_empty((tiles, columns), dtype=torch.float32)
    launch(hidden_gradient_kernel)[lambda sizes: (tiles * triton.cdiv(columns, sizes["BLOCK_N"]),)](
        grad,
        x,
        weight1,
        bias1,
        weight1 if weight2 is None else weight2,
        bias1 if keep is None else keep,
        x if hidden is None else hidden,
        bias1 if grad_squares is None else grad_squares,
        grad_hidden,
        activation,
        sums,
        rows,
        all_rows if keep is None else all_rows // keep.shape[0],
        K=size,
        N=columns,
        PRODUCT=weight2 is not None,
        RECOMPUTE=hidden is None,
        KEEP=keep is not None,
        SQUARES=grad_squares is not None,
        PRECISION=precision(x),
        BLOCK_M=block,
        BLOCK_K=inner_block(size, x),
        **column_blocks(columns),
    )
    return grad_hidden, activation, sums.sum(0)


def scaled_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, keep: Tensor | None, row_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x (rows, N), the layer's scaled input, and the gradient of ``row_scale``, (samples, N)."""
    (all_rows, columns), (size, groups) = x.shape, (len(weight), row_scale.shape[0])
    rows = all_rows // groups
    block = row_block(groups, rows)
    blocks = triton.cdiv(rows, block)
    grad_x, scaled = torch.empty_like(x), torch.empty_like(x)
    sums = x.new_empty((groups * blocks, columns), dtype=torch.float32)
    launch(scaled_gradient_kernel)[lambda sizes: (groups * blocks * triton.cdiv(columns, sizes["BLOCK_N"]),)](
        grad,
        weight,
        row_scale if keep is None else keep,
        x,
        row_scale,
        grad_x,
        scaled,
        sums,
        rows,
        K=size,
        N=columns,
        KEEP=keep is not None,
        PRECISION=precision(x),
        BLOCK_M=block,
        BLOCK_K=inner_block(size, x),
        **column_blocks(columns),
    )
    return grad_x, scaled, sums.view(groups, blocks, columns).sum(1)
