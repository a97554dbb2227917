"""Compile kernels for a GPU of compute capability 9.0 where none need be, and print what each needs, as JSON.

``python -m tests.acceleration.gpu.compiled depthwise|linear|patches [WORDS]``, not in the interpreter. What launches
the kernels is called with tensors of the meta device, and every launch compiles its kernel for each of its tiles.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convnext.acceleration.gpu import (
    depthwise_gradient_triton,
    depthwise_triton,
    mlp_gradient_triton,
    mlp_triton,
    patches_triton,
)

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
PROGRAM = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
MAPS = [(64, 56, 96), (256, 28, 192), (64, 14, 384), (64, 7, 768), (1, 14, 384), (64, 9, 352)]  # N, H = W, C


class Needs(NamedTuple):
    """Of one program."""

    kernel: str
    sizes: dict[str, Any]  # that its launch gives
    tile: dict[str, int]  # that is tuned
    registers: int  # a thread, at most 255
    spilled: int  # bytes a thread
    shared: int  # bytes a program, at most 232,448
    matrix: bool  # whether it has the tensor cores' own instruction, operands in shared memory
    wide: bool  # whether a thread reads 16 bytes at once


class Compiler:
    """Stands in for ``launch``."""

    def __init__(self) -> None:
        self.needs: list[Needs] = []

    def __call__(self, kernel: Any) -> Any:
        self.kernel = kernel
        return self

    def __getitem__(self, grid: Any) -> Any:
        def launched(*args: Any, **kwargs: Any) -> None:
            kernel = self.kernel
            options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
            values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
            for config in configs(kernel, values):
                tile = config.kwargs if config else {}
                size = grid if isinstance(grid, tuple) else grid(kwargs | tile)
                assert all(0 < axis <= most for axis, most in zip(size, (2**31 - 1, 65535, 65535), strict=False))
                tuned = {"num_warps": config.num_warps, "num_stages": config.num_stages} if config else options
                self.needs.append(needs(kernel.fn if config else kernel, values, tile, tuned))

        return launched


def configs(kernel: Any, values: dict[str, Any]) -> Iterable[Any]:
    """The tiles that a launch would try; of a kernel without any, one None."""
    if not hasattr(kernel, "configs"):
        return [None]
    kernel.nargs = values
    return kernel.prune_configs({})


def needs(kernel: Any, values: dict[str, Any], tile: dict[str, int], options: dict[str, int]) -> Needs:
    """Compile one kernel for these arguments, as Triton would for a launch."""
    values = values | tile
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature, attributes = {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if name in constants:
            signature[name] = "constexpr"
            continue
        is_tensor = isinstance(value, Tensor)
        signature[name] = f"*{TYPES[value.dtype]}" if is_tensor else "fp32" if isinstance(value, float) else "i32"
        if is_tensor or (isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    built: Any = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([PROGRAM, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL"))
    sizes = {name: value for name, value in constants.items() if name not in tile}
    ptx, shared = built.asm["ptx"], built.metadata.shared
    matrix, wide = "wgmma.mma_async" in ptx, "ld.global.v4" in ptx
    return Needs(kernel.__name__, sizes, tile | options, registers, stack + local, shared, matrix, wide)


def depthwise(maps: str, dtype: str, size: str) -> None:
    """Forward, both gradients and the norm's."""
    kernel = int(size)
    for samples, side, channels in MAPS if maps == "all" else [MAPS[int(maps)]]:
        x = torch.empty(samples, side, side, channels, dtype=getattr(torch, dtype), device="meta")
        weight, bias = (torch.empty(shape, device="meta") for shape in ((channels, 1, kernel, kernel), (channels,)))
        _, scale = depthwise_triton.convolve_norm(x, weight, bias, 1e-6)
        depthwise_gradient_triton.norm_gradient(x, x, scale)
        depthwise_triton.convolve(x, weight, None, turned=True)
        depthwise_gradient_triton.weight_gradient(x, x, kernel)


def linear() -> None:
    """A block's linear layers, whole and in halves, and their gradients."""
    samples, positions = 64, 28 * 28
    empty = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    for width in (40, 96, 256, 768):
        rows, wide = samples * positions, 4 * width
        x, hidden = empty(rows, width), empty(rows, wide)
        first, second = (empty(wide, width), empty(wide)), (empty(width, wide), empty(width))
        keep, scale = (empty(*shape, dtype=torch.float32) for shape in ((samples,), (samples, wide)))
        if width <= 256:
            for store in (False, True):
                mlp_triton.mlp(x, *first, *second, x, keep, store)
        mlp_triton.linear_gelu(x, *first, samples, True, True)
        mlp_triton.linear_add(hidden, *second, x, keep, scale)
        for kept in (hidden, None):
            mlp_gradient_triton.hidden_gradient(x, x, *first, second[0], keep, kept, None)
        mlp_gradient_triton.scaled_gradient(x, hidden, second[0], keep, scale)


def patches() -> None:
    """The norm that writes patches, and its gradient."""
    for channels in (40, 96, 384, 768, 1408, 2816):
        x = torch.empty(64, 14, 14, channels, device="meta")
        written, scale = patches_triton.normalise(x, 2, 1e-6, torch.bfloat16)
        patches_triton.gradient(written, written, scale, list(x.shape), torch.float32)


if __name__ == "__main__":
    compiler = Compiler()
    for module in (depthwise_triton, depthwise_gradient_triton, mlp_triton, mlp_gradient_triton, patches_triton):
        vars(module)["launch"] = compiler
    {"depthwise": depthwise, "linear": linear, "patches": patches}[sys.argv[1]](*sys.argv[2:])
    json.dump([need._asdict() for need in compiler.needs], sys.stdout)
