"""A weights file's tensors by name: torch's formats and safetensors, without running code that a file may hold."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.errors import RunError, UsageError

# Where checkpoints keep the weights, the first that is there. What timm's training saves as state_dict_ema, timm opens
# in place of the state_dict beside it.
WRAPPERS = ("model", "state_dict_ema", "state_dict", "model_state_dict", "module", "model_ema")
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
BEST = "best.safetensors"
IN_FOLDERS = (  # a run's, and what the hub's repositories call theirs
    BEST,
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


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
    for name, tensor in weights.items():
        check_plain(name, tensor, path)
        if not bool(tensor.isfinite().all()):
            raise RunError(f"{path} holds values that are not finite (NaN or infinite), in {name}: take another file")
    return weights, notes


def check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse a tensor that is more than the numbers in the file: a view may claim any size, and cost its memory."""
    kind = str(tensor.layout).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise RunError(f"{path} holds {name} as a {tensor.dtype} tensor, {kind}: plain tensors of numbers are needed")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise RunError(f"{path} holds {name} with {tensor.numel():,} values and memory for fewer: it is damaged")


def weights_file(path: Path) -> Path:
    """The file itself, the best weights of a run's folder, or the weights in a folder of one of the hub's libraries."""
    if path.is_dir():
        if found := [path / name for name in IN_FOLDERS if (path / name).is_file()]:
            return found[0]
        if (path / "recipe.json").is_file():
            raise UsageError(f"the run in {path} has no {BEST} yet: let it finish an epoch")
        known = f"none of {', '.join(IN_FOLDERS)} is in it"
        raise UsageError(f"{path} is no folder with weights, {known}: give a run's folder or a weights file")
    if not path.is_file():
        raise UsageError(f"no weights at {path}: give a weights file (.safetensors, .pth, .pt, .bin) or a run's folder")
    return path


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
    """A safetensors file."""
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def read_torch(path: Path) -> Any:
    """A file of ``torch.save``, by the reader that builds tensors and plain containers and runs nothing.

    ``argparse.Namespace`` counts as plain: the official training code keeps its arguments beside the weights.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of formats that the errors below speak of
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None and path.read_bytes()[:1] != pickle.PROTO:
            raise damaged(path, error) from error
        what = f" ({refused[1]})" if refused else ""
        raise RunError(
            f"refused to read {path}: it holds Python objects{what} beside tensors, and reading those can run code "
            "that its maker put there. Ask for a file of tensors alone (torch.save(model.state_dict()) or safetensors)"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file, with advice that does not fit here
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> RunError:
    """The error for a file that is not what its name says."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
    return RunError(
        f"cannot read {path} as weights, it is cut off, damaged or no weights file ({reason}): copy or download it "
        "again"
    )


def unwrap(document: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that stand under a checkpoint's wrappers, their names without prefixes."""
    notes = []
    while isinstance(document, Mapping):
        inner = [name for name in WRAPPERS if isinstance(document.get(name), Mapping)]
        if not inner:
            break
        if len(inner) > 1:
            notes.append(f"{path.name} holds {' and '.join(inner)}: took {inner[0]}")
        document = document[inner[0]]
    values = document if isinstance(document, Mapping) else {}
    weights = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if not weights:
        raise RunError(
            f"{path} holds no weights: looked for tensors by name, at the top and under {', '.join(WRAPPERS)}"
        )
    for prefix in PREFIXES * 2:  # either may stand before the other
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights, tuple(notes)
