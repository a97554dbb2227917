"""What a kernel needs of a GPU of compute capability 9.0, compiled where there is none."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
PROGRAM = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Needs(NamedTuple):
    """Of one program."""

    kernel: str
    constants: dict[str, Any]
    registers: int  # a thread, at most 255
    spilled: int  # bytes a thread
    shared: int  # bytes a program, at most 232,448


class Compiler:
    """Stands in for ``launch``: with tensors of the meta device, a launch compiles the kernel for each of its tiles."""

    def __init__(self) -> None:
        self.needs: list[Needs] = []

    def __call__(self, kernel: Any) -> Any:
        self.kernel = kernel
        return self

    def __getitem__(self, grid: Any) -> Any:
        def launched(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
            for config in getattr(self.kernel, "configs", [None]):
                chosen = kwargs if config is None else kwargs | config.kwargs
                of_config = {} if config is None else {"num_warps": config.num_warps, "num_stages": config.num_stages}
                kernel = self.kernel if config is None else self.kernel.fn
                values = dict(zip(kernel.arg_names, args, strict=False)) | chosen
                size = grid if isinstance(grid, tuple) else grid(chosen)
                assert all(0 < axis <= most for axis, most in zip(size, (2**31 - 1, 65535, 65535), strict=False))
                self.needs.append(needs(kernel, values, options | of_config))

        return launched


def needs(kernel: Any, values: dict[str, Any], options: dict[str, int]) -> Needs:
    """Compile one kernel for these arguments, as Triton would for a launch."""
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[name], attributes[(i,)] = f"*{TYPES[value.dtype]}", [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([PROGRAM, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL"))
    return Needs(kernel.__name__, constants | options, registers, stack + local, built.metadata.shared)
