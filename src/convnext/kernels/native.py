"""The C code of this folder as a library, built by the machine's own compiler when it is first needed.

Whether one was built changes how fast a network trains, and its gradients by rounding alone. Where it cannot be built,
that is said once.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

import torch

from convnext.errors import KernelsWarning, RunError
from convnext.files import user_cache, write_atomically
from convnext.kernels import enabled

SOURCE = Path(__file__).with_name("depthwise.c")
OPTIONS = ("-O3", "-march=native", "-fopenmp", "-fPIC")
BUILD_SECONDS = 120  # a build takes about one; a compiler that hangs does not hold up a training for longer

_building = threading.Lock()


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether :func:`library` has one; builds it where that was not done yet."""
    return library() is not None


def library() -> ctypes.CDLL | None:
    """The library, or None where fast forms are off or none can be had; why not is said once a process."""
    if not enabled():
        return None
    with _building:
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return opened()
    except RunError as error:
        text = (
            f"training on the processor goes on with torch's own depthwise convolution, which is slower: {error}. "
            "CONVNEXT_KERNELS=off takes this message away"
        )
        warnings.warn(text, KernelsWarning, stacklevel=2)
        return None


def opened() -> ctypes.CDLL:
    """The library of :data:`SOURCE`, with the types of its functions.

    Raises:
        RunError: as :func:`opened_from`.
    """
    opened = opened_from(SOURCE)
    function = opened.convnext_depthwise_weight_gradient
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5 + [ctypes.c_int] * 2
    function.restype = ctypes.c_int
    return opened


def opened_from(source: Path) -> ctypes.CDLL:
    """Build the library of a C file unless the user's cache has it, and open it.

    Raises:
        RunError: there is no compiler, it fails, or the cache cannot be written to.
    """
    if sys.platform != "linux":
        raise RunError("fast kernels are built on Linux alone")
    reasons = []
    for compiler in compilers():
        try:
            # The object is linked to no OpenMP: its symbols are those of the runtime that torch has loaded.
            return ctypes.CDLL(str(built(compiler, source)), mode=os.RTLD_NOW)
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            reasons.append(f"{shlex.join(compiler)}: {error}")
    raise RunError("; ".join(reasons) or "no C compiler was found (gcc or cc; CC may name another)")


def compilers() -> list[list[str]]:
    """Commands of the C compilers that are here: that of ``CC``, then gcc and cc."""
    commands = [shlex.split(os.environ.get("CC", "")), ["gcc"], ["cc"]]
    found = [(shutil.which(command[0]), command[1:]) for command in commands if command]
    resolved = [(str(Path(path).resolve()), *options) for path, options in found if path]
    return [list(command) for command in dict.fromkeys(resolved)]


def library_path(compiler: list[str], source: Path = SOURCE) -> Path:
    """Where the user's cache has a C file's library, or will have it: named by source, compiler and processor.

    Raises:
        RunError: the compiler fails.
    """
    # The predefined macros name the compiler's version and everything that -march=native found in this processor.
    macros = run([*compiler, *OPTIONS, "-E", "-dM", "-x", "c", os.devnull])
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([*texts, *compiler, macros]).encode()).hexdigest()[:24]
    return user_cache("kernels") / f"{source.stem}-{key}.so"


def built(compiler: list[str], source: Path = SOURCE) -> Path:
    """The library's file in the user's cache.

    Raises:
        RunError: the compiler fails, or the cache cannot be written to.
    """
    path = library_path(compiler, source)
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            compiled, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
            run([*compiler, *OPTIONS, "-c", str(source), "-o", str(compiled)])
            run([*compiler, "-shared", str(compiled), "-o", str(linked)])
            write_atomically(path, linked.read_bytes())
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
