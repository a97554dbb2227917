"""Compile the kernels of a block's linear layers for a H100 or H200, where none need be, and print what they take.

``python -m tests.kernels.gpu.hopper`` prints a JSON line for each kernel, width and choice of tile sizes: a thread's
registers, bytes of its stack (values that did not fit them) and of shared memory, and matrix instructions.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convnext.kernels.gpu import mlp_gradient_triton, mlp_triton
from convnext.kernels.gpu.tile_triton import suitable

TARGET = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
FLOATS = {"keep", "row_scale", "squares", "sums", "grad_squares"}  # in fp32 always
INTEGERS = {"rows", "positions"}
WIDTHS = (40, 96, 256, 768)


def cases() -> list[tuple[str, Any, int, dict[str, Any]]]:
    """Name, tuned kernel, channels and the sizes that are not tuned, for maps in bf16."""
    found: list[tuple[str, Any, int, dict[str, Any]]] = []
    for width in WIDTHS:
        wide = 4 * width
        narrow_inner, wide_inner = (64 if size % 64 == 0 else 32 for size in (width, wide))
        tile = {"PRECISION": "ieee", "BLOCK_M": 128}
        up, down = (
            tile | {"K": width, "N": wide, "BLOCK_K": narrow_inner},
            {"K": wide, "N": width, "BLOCK_K": wide_inner},
        )
        head, rest = mlp_triton.halves(width)
        whole = {"C": width, "D": wide, "HEAD": head, "REST": rest, "KEEP": True, "PRECISION": "ieee"}
        gradient, hidden = mlp_gradient_triton, mlp_gradient_triton.hidden_gradient_kernel
        if width <= 256:
            found += [("mlp", mlp_triton.mlp_kernel, width, whole | {"HIDDEN": hidden}) for hidden in (False, True)]
        found += [
            ("linear_gelu", mlp_triton.linear_gelu_kernel, width, up | {"HIDDEN": True, "SQUARES": True}),
            ("linear_add", mlp_triton.linear_add_kernel, width, tile | down | {"KEEP": True, "SCALED": True}),
            ("scaled_gradient", gradient.scaled_gradient_kernel, width, up | {"KEEP": True}),
        ]
        flags = {"PRODUCT": True, "KEEP": True, "SQUARES": False}
        found += [("hidden_gradient", hidden, width, up | flags | {"RECOMPUTE": again}) for again in (False, True)]
    return found


def resources(kernel: Any, config: Any, sizes: dict[str, Any]) -> dict[str, int]:
    """What a kernel takes, compiled with a choice of tile sizes."""
    known, signature, attributes = sizes | config.kwargs, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in known:
            signature[name] = "constexpr"
            continue
        signature[name] = "i32" if name in INTEGERS else "*fp32" if name in FLOATS else "*bf16"
        attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled: Any = triton.compile(source, target=TARGET, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{word}:(\d+)", text)[-1]) for word in ("REG", "STACK"))
    matrix = compiled.asm["ptx"].count("wgmma.mma_async")
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared, "wgmma": matrix}


if __name__ == "__main__":
    for name, kernel, width, sizes in cases():
        for config in suitable(kernel.configs, sizes):
            tiles = config.kwargs | {"warps": config.num_warps, "stages": config.num_stages}
            flags = [key for key, value in sizes.items() if value is True]
            row = {"kernel": name, "width": width, "flags": flags, "tiles": tiles}
            print(json.dumps(row | resources(kernel.fn, config, sizes)), flush=True)
