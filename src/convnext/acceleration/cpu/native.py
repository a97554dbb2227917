"""The C code of this folder as libraries, built by the machine's own compiler when they are first needed.

Whether they were built changes how fast a network is, and its results by rounding alone. Where that of training cannot
be built, that is said once.
"""

import ctypes
import hashlib
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.acceleration import enabled
from convnext.acceleration.cpu.heap import keep_memory
from convnext.errors import KernelsWarning, RunError, UsageError
from convnext.files import replacing, user_cache

FOLDER = Path(__file__).parent / "csrc"
SOURCES = {  # of each library
    "training": (
        "add_branch.c",
        "bias_gelu.c",
        "depthwise.c",
        "layer_norm.c",
        "mlp.c",
        "mlp_gradient.c",
        "workspace.c",
    ),
    "inference": ("inference.c",),
}
NATIVE_DTYPES = (torch.float32, torch.bfloat16)  # of the library for training
# True if torch's convolutions are slow: with AVX-512, depthwise ones and those of patches come near the speed of its
# matrix products.
SLOW_CONVOLUTIONS = torch.backends.cpu.get_cpu_capability() == "AVX2"
OPTIONS = ("-O3", "-march=native", "-fopenmp", "-fPIC")
BUILD_SECONDS = 120  # a file takes some; a compiler that hangs does not hold up a training for longer

_building = threading.Lock()


def available() -> bool:
    """Whether there is the library for training; builds it where that was not done yet."""
    return library() is not None


def has_bf16() -> bool:
    """True if the library for training multiplies in bf16."""
    native = library()
    return native is not None and bool(native.convnext_mlp_has_bf16())


# As torch.compiler.assume_constant_result marks it, whose call would import the compiler: a second for every model.
available._dynamo_marked_constant = has_bf16._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def library() -> ctypes.CDLL | None:
    """The library for training, or None where fast forms are off or none can be had; why not is said once a process."""
    if not enabled():
        return None
    with _building:
        return _library()


@cache
def _library(options: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    try:
        native = opened("training", options)
    except RunError as error:
        text = (
            f"training on the processor goes on with torch's own operators, which are slower: {error}. "
            "CONVNEXT_KERNELS=off takes this message away"
        )
        warnings.warn(text, KernelsWarning, stacklevel=2)
        return None
    keep_memory()
    return native


def call(function: str, *values: Tensor | bool | float | None) -> None:
    """Call a function of the library for training with these values and torch's number of threads.

    Args:
        function: its name without ``convnext_``.
        values: dense tensors on the CPU, whose data it gets; int as int64_t, bool as int, float as float.

    Raises:
        RunError: there is no library, or no memory for the sums.
    """
    native = library()
    if native is None:
        raise RunError("the kernels for training are off or cannot be built: convnext.restore(model) does without them")
    if getattr(native, f"convnext_{function}")(*map(argument, values), ctypes.c_int(torch.get_num_threads())):
        raise RunError("no memory is left for a layer's gradient: take a smaller batch")


def argument(value: Tensor | bool | float | None) -> Any:
    """A value as C takes it."""
    if isinstance(value, bool):
        return ctypes.c_int(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    if value is not None and (value.dtype not in NATIVE_DTYPES or value.device.type != "cpu"):
        raise UsageError(
            f"the kernels take tensors in fp32 or bf16 on the CPU, {value.dtype} on {value.device} arrived"
        )
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def vector(values: Tensor | None) -> Tensor | None:
    """A layer's bias or the like, dense and in fp32, as the C code takes it."""
    return None if values is None else values.float().contiguous()


def rows_of(x: Tensor) -> tuple[int, int, int]:
    """The rows of (N, ..., C), those of a sample, and C."""
    rows = math.prod(x.shape[:-1])
    return rows, rows // max(1, len(x)), x.shape[-1]


def check_shapes(operator: str, fits: bool, *tensors: Tensor | None) -> None:
    """Refuse tensors whose shapes do not fit together.

    Raises:
        UsageError: they do not.
    """
    if not fits:
        shapes = ", ".join("none" if tensor is None else str(tuple(tensor.shape)) for tensor in tensors)
        raise UsageError(f"{operator} needs tensors whose shapes fit together, {shapes} arrived")


def opened(name: str, options: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Build a library of :data:`SOURCES` unless the user's cache has it, and open it.

    Args:
        name: of the library.
        options: of the compiler, behind :data:`OPTIONS`. ``-DPORTABLE -DLANES=16`` makes the code for a processor with
            AVX-512, its instructions written as plain vectors, so that it runs here.

    Raises:
        RunError: there is no compiler, it fails, or the cache cannot be written to.
    """
    if sys.platform != "linux":
        raise RunError("fast kernels are built on Linux alone")
    reasons = []
    for compiler in compilers():
        try:
            # The object is linked to no OpenMP: its symbols are those of the runtime that torch has loaded.
            return ctypes.CDLL(str(built(compiler, name, options)), mode=os.RTLD_NOW)
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            reasons.append(f"{shlex.join(compiler)}: {error}")
    raise RunError("; ".join(reasons) or "no C compiler was found (gcc or cc; CC may name another)")


def compilers() -> list[list[str]]:
    """Commands of the C compilers that are here: that of ``CC``, then gcc and cc."""
    commands = [shlex.split(os.environ.get("CC", "")), ["gcc"], ["cc"]]
    found = [(shutil.which(command[0]), command[1:]) for command in commands if command]
    resolved = [(str(Path(path).resolve()), *options) for path, options in found if path]
    return [list(command) for command in dict.fromkeys(resolved)]


def library_path(compiler: list[str], name: str, options: tuple[str, ...] = ()) -> Path:
    """Where the user's cache has a library, or will have it: named by sources, compiler, options and processor.

    Raises:
        RunError: the compiler fails.
    """
    # The predefined macros name the compiler's version and everything that -march=native found in this processor.
    macros = run([*compiler, *OPTIONS, *options, "-E", "-dM", "-x", "c", os.devnull])
    sources = [*(FOLDER / source for source in SOURCES[name]), *sorted(FOLDER.glob("*.h"))]
    texts = [source.read_text() for source in sources]
    key = hashlib.sha256("\0".join([*texts, *compiler, *options, macros]).encode()).hexdigest()[:24]
    return user_cache("kernels") / f"{name}-{key}.so"


def built(compiler: list[str], name: str, options: tuple[str, ...] = ()) -> Path:
    """A library's file in the user's cache.

    Raises:
        RunError: the compiler fails, or the cache cannot be written to.
    """
    path = library_path(compiler, name, options)
    if not path.exists():
        with replacing(path) as write, tempfile.TemporaryDirectory() as folder:
            linked = Path(folder) / "linked.so"
            objects = {source: str(Path(folder) / f"{source}.o") for source in SOURCES[name]}
            commands = [
                [*compiler, *OPTIONS, *options, "-c", str(FOLDER / source), "-o", file]
                for source, file in objects.items()
            ]
            with ThreadPoolExecutor() as threads:
                list(threads.map(run, commands))
            run([*compiler, "-shared", *objects.values(), "-o", str(linked)])
            write(linked.read_bytes())
    return path


def run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        RunError: it fails, with the first line of what it says.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"it took longer than {BUILD_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RunError(f"exit status {done.returncode} {said[0] if said else ''}".strip())
    return done.stdout
