"""A weights file's tensors by name: torch's formats and safetensors, without running code that a file may hold."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.errors import RunError, UsageError, printable
from convnext.weights.torch_files import WRAPPERS, damaged, read_torch

PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
BEST = "best.safetensors"
IN_FOLDERS = (  # a run's, and what the hub's repositories call theirs
    BEST,
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8} | {
    *(torch.int8, torch.int16, torch.int32, torch.int64)
}
LONGEST_HEADER = 16_000_000  # bytes: of a safetensors file with 100,000 tensors
MOST_TENSORS = 100_000
LONGEST_NAME = 500
MOST_LEVELS = 8  # of wrappers in wrappers; a dictionary may hold itself


def read_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file on the CPU, without wrappers and prefixes, and what should be said of them.

    Args:
        path: a ``.safetensors`` file, a file of ``torch.save`` (``.pth``, ``.pt``, ``.bin``), or a run's folder for its
            best weights.

    Raises:
        UsageError: there is no such file, or the folder is no run's.
        RunError: the file is empty, damaged or no weights file, holds code, or a value that is not finite.
    """
    path = weights_file(path)
    document = read_safetensors(path) if is_safetensors(path) else read_torch(path)
    weights, notes = unwrap(document, path)
    check_bounds(weights, path)
    for name, tensor in weights.items():
        if tensor.numel() and not all(bool(bound.isfinite()) for bound in tensor.aminmax()):
            raise RunError(f"{path} holds values that are not finite (NaN or infinite), in {name}: take another file")
    return weights, notes


def check_bounds(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are more than the numbers in the file, before one is touched, and names that are none.

    A view may claim any size, and cost its memory.
    """
    if len(weights) > MOST_TENSORS:
        raise RunError(f"{path} holds {len(weights):,} tensors, more than any network's: take another file")
    for name, tensor in weights.items():
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise RunError(f"{path} holds a tensor by the name {printable(name)}, which is none: take another file")
        kind = str(tensor.layout).removeprefix("torch.")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in NUMBERS:
            raise RunError(
                f"{path} holds {name} as a {tensor.dtype} tensor, {kind}: plain tensors of numbers are needed, convert "
                "them where they were made"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise RunError(f"{path} holds {name} with {tensor.numel():,} values and memory for fewer: it is damaged")
    claimed, size = sum(tensor.nbytes for tensor in weights.values()), path.stat().st_size
    if claimed > 2 * size:  # as two names may share a tensor
        raise RunError(f"{path} has {size:,} bytes, and its tensors claim {claimed:,}: take another file")


def weights_file(path: Path) -> Path:
    """The file itself, the best weights of a run's folder, or the weights in a folder of one of the hub's libraries."""
    if stat.S_ISDIR(mode_of(path) or 0):
        if found := [path / name for name in IN_FOLDERS if (path / name).is_file()]:
            return found[0]
        if (path / "recipe.json").is_file():
            raise UsageError(f"the run in {path} has no {BEST} yet: let it finish an epoch")
        known = f"none of {', '.join(IN_FOLDERS)} is in it"
        raise UsageError(f"{path} is no folder with weights, {known}: give a run's folder or a weights file")
    if not is_file(path):
        raise UsageError(
            f"no weights at {path}{instead(path)}: give a weights file (.safetensors, .pth, .pt, .bin) or a run's "
            "folder"
        )
    return path


def is_file(path: Path) -> bool:
    """Whether there is a regular file, whatever the path: a device would be read for ever."""
    return mode_of(path) is not None and stat.S_ISREG(mode_of(path) or 0)


def mode_of(path: Path) -> int | None:
    """What is there, in the terms of ``stat``; None where nothing can be found there."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # too long, a circle of links, not permitted; with a NUL
        return None


def instead(path: Path) -> str:
    """What is there in place of a file, in words for an error."""
    if mode_of(path) is not None:
        return ", which is no regular file"
    try:
        linked = path.is_symlink()
    except (OSError, ValueError) as error:
        return f" ({getattr(error, 'strerror', None) or error})"
    return f", a link that leads nowhere (to {path.readlink()})" if linked else ""


def is_safetensors(path: Path) -> bool:
    """Whether a file is of the safetensors format: by its suffix, or by how it begins.

    Raises:
        RunError: it is empty or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(9)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    if not beginning:
        raise RunError(f"{path} is empty: the copy or the download of it failed, make it again")
    return path.suffix == ".safetensors" or beginning[8:] == b"{"  # the length of a header, then its JSON


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """A safetensors file; its tensors are read when they are used."""
    import safetensors.torch

    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            if header + 8 > os.fstat(file.fileno()).st_size or file.read(1) != b"{":
                raise ValueError("its header is not that of a safetensors file")
        if header > LONGEST_HEADER:
            raise ValueError(f"its header takes {header:,} bytes")
        return safetensors.torch.load_file(path)
    except Exception as error:  # the format's own, the file system's, and those of numbers that torch has not
        raise damaged(path, error) from error


def unwrap(document: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that stand under a checkpoint's wrappers, their names without prefixes."""
    notes = []
    for _ in range(MOST_LEVELS):
        inner = [name for name in WRAPPERS if isinstance(document, Mapping) and isinstance(document.get(name), Mapping)]
        if not inner:
            break
        if len(inner) > 1:
            notes.append(f"{path.name} holds {' and '.join(inner)}: took {inner[0]}")
        document = document[inner[0]]
    values = document if isinstance(document, Mapping) else {}
    weights = {
        name: value.detach() for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not weights:
        raise RunError(
            f"{path} holds no weights: looked for tensors by name, at the top and under {', '.join(WRAPPERS)}"
        )
    for prefix in PREFIXES * 2:  # either may stand before the other
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights, tuple(notes)
