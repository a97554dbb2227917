"""A block's two linear layers in Triton: each with what follows it in its epilogue, and both in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from convnext.acceleration.gpu.tile_triton import gelu, load, multiply, product, rows_of, tile_of, tuned
from convnext.acceleration.gpu.triton_runtime import interpreted, launch

# Sizes that fit a H100's registers and shared memory; tests/acceleration/gpu/test_compiled.py compiles them.
LINEAR_SIZES = [
    {"BLOCK_N": 32, "warps": 4, "stages": 4},  # where rows are few
    {"BLOCK_N": 64, "warps": 4, "stages": 4},
    {"BLOCK_N": 128, "warps": 8, "stages": 3},
    {"BLOCK_N": 256, "warps": 8, "stages": 3},
]
MLP_SIZES = [
    {"BLOCK_M": 64, "BLOCK_D": 64, "warps": 4, "stages": 2},
    {"BLOCK_M": 128, "BLOCK_D": 32, "warps": 8, "stages": 3},
    {"BLOCK_M": 128, "BLOCK_D": 64, "warps": 8, "stages": 2},
]


@tuned(LINEAR_SIZES, key=["K", "N", "BLOCK_M", "HIDDEN", "SQUARES"])
@triton.jit
def linear_gelu_kernel(
    x,  # (groups * rows, K)
    weight,  # (N, K)
    bias,  # (N)
    hidden,  # (groups * rows, N)
    activation,  # (groups * rows, N)
    squares,  # (groups * blocks of rows, N)
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    HIDDEN: tl.constexpr,
    SQUARES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hidden = x @ weight.T + bias, activation = gelu(hidden), and the sums of its squares over a tile's rows."""
    tile, first, behind, exist, columns = tile_of(rows, N, BLOCK_M, BLOCK_N)
    left = (x + first * K) + behind[:, None] * K
    h = product(left, weight, columns, x, K, N, 1, K, False, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    h += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    at = behind[:, None] * N + columns[None, :]
    mask = exist[:, None] & (columns[None, :] < N)
    if HIDDEN:
        tl.store(hidden + first * N + at, h.to(hidden.dtype.element_ty), mask=mask)
    a = gelu(h, x.dtype.element_ty == tl.float32)
    tl.store(activation + first * N + at, a.to(activation.dtype.element_ty), mask=mask)
    if SQUARES:
        total = tl.sum(tl.where(exist[:, None], a * a, 0.0), 0)
        tl.store(squares + tile.to(tl.int64) * N + columns, total, mask=columns < N)


@triton.jit
def finish(y, bias, shortcut, out, factor, first, behind, exist, columns, C: tl.constexpr, KEEP: tl.constexpr):
    """The end of the branch for some of its columns."""
    y += tl.load(bias + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    if KEEP:
        y *= factor[:, None]
    at = behind[:, None] * C + columns[None, :]
    mask = exist[:, None] & (columns[None, :] < C)
    y += tl.load(shortcut + first * C + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + first * C + at, y.to(out.dtype.element_ty), mask=mask)


@tuned(LINEAR_SIZES, key=["K", "N", "BLOCK_M", "KEEP", "SCALED"])
@triton.jit
def linear_add_kernel(
    x,  # (groups * rows, K)
    weight,  # (N, K)
    bias,  # (N)
    shortcut,  # (groups * rows, N)
    keep,  # (samples)
    row_scale,  # (groups, K)
    out,  # (groups * rows, N)
    rows,
    positions,  # rows of a sample
    K: tl.constexpr,
    N: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = shortcut + keep * ((row_scale * x) @ weight.T + bias)."""
    _, first, behind, exist, columns = tile_of(rows, N, BLOCK_M, BLOCK_N)
    left = (x + first * K) + behind[:, None] * K
    scale = row_scale + first // rows * K
    y = product(left, weight, columns, scale, K, N, 1, K, SCALED, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    factor = behind.to(tl.float32)
    if KEEP:
        factor = tl.load(keep + (first.to(tl.int32) + behind) // positions)
    finish(y, bias, shortcut, out, factor, first, behind, exist, columns, N, KEEP)


@tuned(MLP_SIZES, key=["C", "D", "KEEP", "HIDDEN"])
@triton.jit
def mlp_kernel(
    x,  # (rows, C)
    weight1,  # (D, C)
    bias1,  # (D)
    weight2,  # (C, D)
    bias2,  # (C)
    shortcut,  # (rows, C)
    keep,  # (samples)
    hidden,  # (rows, D)
    out,  # (rows, C)
    rows,
    positions,  # rows of a sample
    C: tl.constexpr,
    D: tl.constexpr,
    KEEP: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = shortcut + keep * (gelu(x @ weight1.T + bias1) @ weight2.T + bias2), and what GELU is applied to.

    The wide map exists BLOCK_D channels at a time. A tile's sides are powers of two: C is cut into HEAD and REST.
    """
    LAST: tl.constexpr = REST if REST > 1 else 0
    WHOLE: tl.constexpr = HEAD + LAST == C and D % BLOCK_D == 0
    first, behind, exist = rows_of(tl.program_id(0), rows, BLOCK_M)
    head, rest = tl.arange(0, HEAD), HEAD + tl.arange(0, REST)
    left = (x + first * C) + behind[:, None] * C
    x_head = load(left + head[None, :], head[None, :] < C, WHOLE)
    x_rest = x_head
    y_head = tl.zeros((BLOCK_M, HEAD), tl.float32)
    y_rest = tl.zeros((BLOCK_M, REST), tl.float32)
    if REST > 1:
        x_rest = load(left + rest[None, :], rest[None, :] < C, WHOLE)
    for start in range(0, D, BLOCK_D):
        wide = start + tl.arange(0, BLOCK_D)
        in_head, in_rest, in_wide = head < C, rest < C, wide < D
        # (HEAD or REST, BLOCK_D) of weight1's transpose, (BLOCK_D, HEAD or REST) of weight2's
        right, mask = weight1 + wide[None, :] * C, in_wide[None, :]
        h = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        h = multiply(x_head, load(right + head[:, None], mask & in_head[:, None], WHOLE), h, PRECISION)
        if REST > 1:
            h = multiply(x_rest, load(right + rest[:, None], mask & in_rest[:, None], WHOLE), h, PRECISION)
        h += load(bias1 + wide, in_wide, WHOLE).to(tl.float32)[None, :]
        if HIDDEN:
            at = behind[:, None] * D + wide[None, :]
            tl.store(hidden + first * D + at, h.to(hidden.dtype.element_ty), mask=exist[:, None] & mask)
        a = gelu(h, x.dtype.element_ty == tl.float32).to(x.dtype.element_ty)
        right, mask = weight2 + wide[:, None], in_wide[:, None]
        y_head = multiply(a, load(right + head[None, :] * D, mask & in_head[None, :], WHOLE), y_head, PRECISION)
        if REST > 1:
            y_rest = multiply(a, load(right + rest[None, :] * D, mask & in_rest[None, :], WHOLE), y_rest, PRECISION)
    factor = behind.to(tl.float32)
    if KEEP:
        factor = tl.load(keep + (first.to(tl.int32) + behind) // positions)
    finish(y_head, bias2, shortcut, out, factor, first, behind, exist, head, C, KEEP)
    if REST > 1:
        finish(y_rest, bias2, shortcut, out, factor, first, behind, exist, rest, C, KEEP)


def precision(x: Tensor) -> str:
    """How products of fp32 are computed, as torch computes them; of no effect on 16 bits."""
    return "tf32" if x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def inner_block(size: int, x: Tensor) -> int:
    """BLOCK_K: one whose multiple the inner size is, since the rest of a block is multiplied too."""
    if x.dtype == torch.float32 or interpreted():
        return 32
    return 64 if size % 64 == 0 else 32


def row_block(groups: int, rows: int) -> int:
    """BLOCK_M: the larger where it fills the GPU and few rows of its last tile are empty."""
    return 128 if groups * rows >= 132 * 128 and (rows % 128 == 0 or rows >= 512) and not interpreted() else 64


def column_blocks(columns: int) -> dict[str, int]:
    """BLOCK_N where it is not tuned."""
    return {"BLOCK_N": 64 if columns > 32 else 32} if interpreted() else {}


def halves(channels: int) -> tuple[int, int]:
    """HEAD and REST: channels as a sum of two powers of two, the second 1 for none, rounded up as little as can be."""
    whole = max(16, triton.next_power_of_2(channels))
    head = whole // 2
    rest = max(16, triton.next_power_of_2(channels - head))
    return (head, rest) if head >= 16 and head + rest < whole else (whole, 1)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, store: bool, squares: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Activation (rows, N); hidden (rows, N) and squares (groups, N), or empty; x (rows, K) is contiguous."""
    (all_rows, size), columns = x.shape, len(weight)
    rows = all_rows // groups
    block = row_block(groups, rows)
    blocks = triton.cdiv(rows, block)
    h = x.new_empty((all_rows, columns) if store else (0,))
    a = x.new_empty((all_rows, columns))
    sums = x.new_empty((groups * blocks, columns) if squares else (0,), dtype=torch.float32)
    launch(linear_gelu_kernel)[lambda sizes: (groups * blocks * triton.cdiv(columns, sizes["BLOCK_N"]),)](
        x,
        weight,
        bias,
        h,
        a,
        sums,
        rows,
        K=size,
        N=columns,
        HIDDEN=store,
        SQUARES=squares,
        PRECISION=precision(x),
        BLOCK_M=block,
        BLOCK_K=inner_block(size, x),
        **column_blocks(columns),
    )
    return a, h, sums.view(groups, blocks, columns).sum(1) if squares else sums


def linear_add(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, keep: Tensor | None, row_scale: Tensor | None
) -> Tensor:
    """The sum, (rows, N); x (rows, K) and shortcut (rows, N) are contiguous."""
    (all_rows, size), columns = x.shape, len(weight)
    groups = 1 if row_scale is None else row_scale.shape[0]
    rows = all_rows // groups
    block = row_block(groups, rows)
    out = torch.empty_like(shortcut)
    tiles = groups * triton.cdiv(rows, block)
    launch(linear_add_kernel)[lambda sizes: (tiles * triton.cdiv(columns, sizes["BLOCK_N"]),)](
        x,
        weight,
        bias,
        shortcut,
        bias if keep is None else keep,
        bias if row_scale is None else row_scale,
        out,
        rows,
        all_rows if keep is None else all_rows // keep.shape[0],
        K=size,
        N=columns,
        KEEP=keep is not None,
        SCALED=row_scale is not None,
        PRECISION=precision(x),
        BLOCK_M=block,
        BLOCK_K=inner_block(size, x),
        **column_blocks(columns),
    )
    return out


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    shortcut: Tensor,
    keep: Tensor | None,
    store: bool,
) -> tuple[Tensor, Tensor]:
    """The sum, (rows, C), and what GELU is applied to, (rows, D) or empty; x and shortcut (rows, C) are contiguous."""
    (rows, channels), wide = x.shape, len(weight1)
    head, rest = halves(channels)
    hidden, out = x.new_empty((rows, wide) if store else (0,)), torch.empty_like(shortcut)
    launch(mlp_kernel)[lambda sizes: (triton.cdiv(rows, sizes["BLOCK_M"]),)](
        x,
        weight1,
        bias1,
        weight2,
        bias2,
        shortcut,
        bias2 if keep is None else keep,
        hidden,
        out,
        rows,
        rows if keep is None else rows // keep.shape[0],
        C=channels,
        D=wide,
        KEEP=keep is not None,
        HIDDEN=store,
        PRECISION=precision(x),
        HEAD=head,
        REST=rest,
        **({"BLOCK_M": 64, "BLOCK_D": 32} if interpreted() else {}),
    )
    return out, hidden
