"""What the matrix products of the block share: the order of their tiles, the loop over the inner size, and GELU."""

from typing import Any

import triton
import triton.language as tl

from convnext.acceleration.gpu.triton_runtime import interpreted

UPCAST = tl.constexpr(interpreted())  # the interpreter multiplies bf16 as if its bits were whole numbers
TILES_TOGETHER = tl.constexpr(8)  # tiles of rows that take turns, so that the second level's cache holds their operands


def tuned(configs: list[dict[str, int]], key: list[str]) -> Any:
    """A decorator: on a GPU the fastest of a few tile sizes, for each value of ``key`` and each dtype."""
    if interpreted():
        return lambda kernel: kernel

    def config(sizes: dict[str, int]) -> triton.Config:
        blocks = {name: size for name, size in sizes.items() if name.isupper()}
        return triton.Config(blocks, num_warps=sizes["warps"], num_stages=sizes["stages"])

    prune = {"early_config_prune": suitable}
    return triton.autotune([config(sizes) for sizes in configs], key=key, prune_configs_by=prune)


def suitable(configs: list[triton.Config], arguments: dict[str, Any], **others: Any) -> list[triton.Config]:
    """Tile sizes worth a try: none much wider than the matrix, narrow ones where rows are few, wide ones elsewhere."""
    sizes = arguments | others
    if "N" not in sizes:
        return configs
    widest = min(128 if sizes["BLOCK_M"] == 64 else 256, max(64, triton.next_power_of_2(sizes["N"])))
    narrowest = 32 if sizes["BLOCK_M"] == 64 else 64
    return [config for config in configs if narrowest <= config.kwargs["BLOCK_N"] <= widest]


@triton.jit
def rows_of(tile, rows, BLOCK_M: tl.constexpr):
    """The rows of a tile: the number of its first, how far each lies behind it, and which of them exist.

    Maps may be cut into groups of ``rows`` rows, a tile within one of them. Rows behind the end are the last again, so
    that what is loaded needs no mask.
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    start = tile % blocks * BLOCK_M
    behind = tl.arange(0, BLOCK_M)
    first = (tile // blocks).to(tl.int64) * rows + start
    return first, tl.minimum(behind, rows - 1 - start), start + behind < rows


@triton.jit
def tile_of(rows, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which tile of rows a program computes, what :func:`rows_of` says of it, and its columns of N."""
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program, tiles = tl.program_id(0), tl.num_programs(0) // COLUMN_TILES
    together = TILES_TOGETHER * COLUMN_TILES
    begin = program // together * TILES_TOGETHER
    size = tl.minimum(tiles - begin, TILES_TOGETHER)
    tile, column_tile = begin + program % together % size, program % together // size
    first, behind, exist = rows_of(tile, rows, BLOCK_M)
    return tile, first, behind, exist, column_tile * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def load(at, mask, WHOLE: tl.constexpr):
    """Values, and 0 where they don't exist; with no mask where the sizes divide."""
    return tl.load(at) if WHOLE else tl.load(at, mask=mask, other=0.0)


@triton.jit
def multiply(left, right, accumulator, PRECISION: tl.constexpr):
    """``accumulator + left @ right``, in fp32."""
    if UPCAST:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, accumulator, input_precision=PRECISION)


@triton.jit
def product(
    left,  # (BLOCK_M, 1) pointers to rows of K values
    right,  # pointer to a matrix of K rows and N columns
    columns,  # (BLOCK_N)
    scale,  # pointer to K values, factors on left's
    K: tl.constexpr,
    N: tl.constexpr,
    ROW_STEP: tl.constexpr,
    COLUMN_STEP: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile (BLOCK_M, BLOCK_N) of ``(scale * left) @ right`` in fp32; columns from N on are 0."""
    inner = tl.arange(0, BLOCK_K)
    left_at = left + inner[None, :]
    right_at = right + inner[:, None] * ROW_STEP + columns[None, :] * COLUMN_STEP
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = inner < K - start
        a = load(left_at, inside[None, :], K % BLOCK_K == 0)
        b = load(right_at, inside[:, None] & (columns[None, :] < N), K % BLOCK_K == 0 and N % BLOCK_N == 0)
        if SCALED:
            factor = load(scale + start + inner, inside, K % BLOCK_K == 0)
            a = (a.to(tl.float32) * factor[None, :]).to(a.dtype)
        accumulator = multiply(a, b, accumulator, PRECISION)
        left_at += BLOCK_K
        right_at += BLOCK_K * ROW_STEP
    return accumulator


@triton.jit
def tail(x):
    """The normal distribution's mass beyond ``|x|``, for results in 16 bits.

    Its logarithm is nearly a parabola: a polynomial of degree 6 makes the error of GELU 3e-7, and relative to GELU
    4e-5 for ``|x| < 3``. It takes half the instructions of erf, which would take longer than the products.
    """
    x = tl.minimum(tl.abs(x), 6.5)
    power = 3.0866748e-05 * x - 7.3844445e-04
    power = power * x + 7.9404199e-03
    power = power * x - 5.3128686e-02
    power = power * x - 4.5903945e-01
    power = power * x - 1.1510912
    return x, tl.exp2(power * x - 1.0000077)


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """GELU of fp32 values; by erf itself where the results are to be in fp32."""
    if EXACT:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    size, beyond = tail(x)
    return 0.5 * (x + tl.abs(x)) - size * beyond  # a sum rather than a maximum, which would hide a NaN


@triton.jit
def gelu_and_slope(x, EXACT: tl.constexpr):
    """GELU and its derivative."""
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
    if EXACT:
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * below, below + x * density
    size, beyond = tail(x)
    return 0.5 * (x + tl.abs(x)) - size * beyond, tl.where(x > 0, 1.0 - beyond, beyond) + x * density
