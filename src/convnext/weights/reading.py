"""Read a weights file's tensors by name: torch's formats and safetensors. Nothing in the file runs."""

import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from convnext.errors import RunError, UsageError, printable, reason

# Where checkpoints keep the weights; the first that is there. timm opens state_dict_ema before state_dict.
WRAPPERS = ("model", "state_dict_ema", "state_dict", "model_state_dict", "module", "model_ema")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
BEST = "best.safetensors"
IN_FOLDERS = (  # of a run, and of repositories on the Hugging Face hub
    BEST,
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8} | {
    *(torch.int8, torch.int16, torch.int32, torch.int64)
}
MAX_NAME_LENGTH = 500
MAX_WRAPPERS = 8  # nested; a dictionary may contain itself
MAX_LISTED = 3  # names in a message
ZIP = b"PK\x03\x04"
TAR = slice(257, 262)  # bytes that are ``ustar`` in a tar file


class Ignored:
    """The stand-in for harmless objects that checkpoints hold beside weights. It keeps nothing of them."""

    def __init__(self, *arguments: object) -> None:
        """Take the arguments of the original."""

    def __setstate__(self, state: object) -> None:
        """Take the state of the original."""


# A stand-in and not the classes themselves: the state of a numpy dtype can make numpy read any memory.
IGNORED: list[Any] = [
    (Ignored, name)
    for name in (
        "argparse.Namespace",  # of the official training code
        "numpy.dtype",
        "numpy.core.multiarray.scalar",  # before numpy 2
        "numpy._core.multiarray.scalar",
    )
]


def read_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the tensors of a file to the CPU, without wrappers and prefixes.

    Args:
        path: a ``.safetensors`` file, a file of ``torch.save`` (``.pth``, ``.pt``, ``.bin``), or a run folder for its
            best weights.

    Returns:
        The tensors by name, and notes for the user.

    Raises:
        UsageError: there is no such file, or the folder has no weights.
        RunError: the file is empty, damaged or no weights file, or it holds Python objects or a value that is not
            finite.
    """
    path = weights_file(path)
    try:
        document = safetensors.torch.load_file(path) if is_safetensors(path) else read_torch(path)
    except RunError:
        raise
    except Exception as error:  # torch, zipfile and safetensors raise many kinds
        raise damaged(path, error) from error
    weights, notes = unwrap(document)
    if not weights:
        looked = f"looked for tensors by name, at the top and under {', '.join(WRAPPERS)}"
        raise RunError(f"{path} holds no weights ({looked}): pass another file")
    check_tensors(weights, path)
    for name, tensor in weights.items():
        if tensor.numel() and not all(bool(bound.isfinite()) for bound in tensor.aminmax()):
            raise RunError(f"{path} holds values that are not finite (NaN or infinite), in {name}: pass another file")
    return weights, tuple(f"{path.name} {note}" for note in notes)


def check_tensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not dense numbers or claim more values than the file has, before any value is read.

    Raises:
        RunError: the message names the tensor.
    """
    for name, tensor in weights.items():
        if not name.isprintable() or len(name) > MAX_NAME_LENGTH:
            raise RunError(f"{path} holds a tensor with an invalid name, {printable(name)}: pass another file")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in DTYPES:
            raise RunError(
                f"{path} holds {name} as a {tensor.dtype} tensor ({tensor.layout}, {tensor.device}), dense real "
                "numbers are needed: convert it where it was made, with to_dense(), dequantize() or float()"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # a view with stride 0 may claim any size
            raise RunError(f"{path} holds {name} with {tensor.numel():,} values and memory for fewer: it is damaged")


def unwrap(document: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Take the tensors out of a checkpoint's wrappers, and DDP's and torch.compile's prefixes off their names.

    Returns:
        The tensors by name, and notes on the choice between several wrappers.
    """
    notes: list[str] = []
    for _ in range(MAX_WRAPPERS):
        document = document.state_dict() if isinstance(document, nn.Module) else document
        if not isinstance(document, Mapping):
            break
        inner = [name for name in WRAPPERS if isinstance(document.get(name), Mapping | nn.Module)]
        if not inner:
            break
        if len(inner) > 1:
            notes.append(f"holds {' and '.join(inner)}: took {inner[0]}")
        document = document[inner[0]]
    values = document if isinstance(document, Mapping) else {}
    weights = {
        name: value.detach() for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    for prefix in PREFIXES * 2:  # in either order
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights, notes


def read_torch(path: Path) -> Any:
    """Read a file of ``torch.save`` with torch's ``weights_only`` reader; the tensors of a zip file are memory-mapped.

    Raises:
        RunError: the file holds Python objects, or is of a format that is read by running it.
        Exception: it is damaged; of many kinds.
    """
    with path.open("rb") as file:
        beginning = file.read(TAR.stop)
    if beginning[TAR] == b"ustar":
        raise RunError(
            f"refused to read {path}: it is a tar file, as torch wrote before 2017, and reading that can run code. "
            + remedy(path)
        )
    is_zip = beginning.startswith(ZIP)
    try:
        if is_zip:
            check_zip(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(IGNORED):
            warnings.simplefilter("ignore")  # of old formats, which the errors below name
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        why = ValueError(str(error).partition("WeightsUnpickler error:")[2].strip() or str(error))
        if is_zip or beginning.startswith(b"\x80"):
            raise refused(path, why, is_zip) from error
        raise damaged(path, why) from error


def check_zip(path: Path) -> None:
    """Refuse zip files that ``torch.save`` does not write.

    Raises:
        RunError: it is a TorchScript program.
        ValueError: its parts are compressed, so that they could be of any size.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise RunError(
            f"refused to read {path}: it is a TorchScript program. If you trust its author, run once: "
            f"import torch; torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its parts are compressed, which torch.save never does")


def refused(path: Path, error: Exception, is_zip: bool) -> RunError:
    """The error for a pickle that torch's ``weights_only`` reader refuses."""
    names = re.findall(r"GLOBAL (\S+)", str(error))[:1]
    if is_zip:
        # A pickle that cannot be listed: torch's message has the first name.
        with suppress(Exception), torch.serialization.safe_globals(IGNORED):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or names
    if not names:
        return RunError(
            f"cannot read {path} as weights: it is damaged, or a pickle that torch's weights_only reader does not take "
            f"({reason(error)}). Copy or download it again. {remedy(path)}"
        )
    listed = ", ".join(map(printable, names[:MAX_LISTED]))
    listed += f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return RunError(
        f"refused to read {path}: it holds Python objects ({listed}) beside tensors, and reading those can run code. "
        + remedy(path)
    )


def remedy(path: Path) -> str:
    """Instructions to convert a trusted file to one of tensors alone."""
    return (
        "Ask its author for a safetensors file. Only if you trust its author, convert it once, which runs that code:\n"
        "    import torch\n"
        "    from convnext.weights.reading import unwrap\n"
        f"    document = torch.load({str(path)!r}, weights_only=False)\n"
        f"    torch.save(unwrap(document)[0], {str(path.with_suffix('.tensors.pth'))!r})"
    )


def damaged(path: Path, error: Exception) -> RunError:
    """The error for a file whose content does not fit its format."""
    return RunError(
        f"cannot read {path} as weights, it is cut off, damaged or no weights file ({reason(error)}): copy or download "
        "it again"
    )


def is_safetensors(path: Path) -> bool:
    """True for a file of the safetensors format, by its suffix or its first bytes.

    Raises:
        RunError: the file is empty or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(9)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    if not beginning:
        raise RunError(f"{path} is empty: copy or download it again")
    return path.suffix == ".safetensors" or beginning[8:] == b"{"  # 8 bytes of length, then JSON


def weights_file(path: Path) -> Path:
    """Return the file itself, the best weights of a run folder, or the weights of a hub-style folder.

    Raises:
        UsageError: there is none.
    """
    if stat.S_ISDIR(mode_of(path) or 0):
        if found := [path / name for name in IN_FOLDERS if (path / name).is_file()]:
            return found[0]
        if (path / "recipe.json").is_file():
            raise UsageError(f"the run in {path} has no {BEST} yet: let it finish an epoch")
        known = f"none of {', '.join(IN_FOLDERS)} is in it"
        raise UsageError(f"{path} is no folder with weights, {known}: pass a run folder or a weights file")
    if not is_file(path):
        raise UsageError(
            f"no weights at {path}{instead(path)}: pass a weights file ({', '.join(SUFFIXES)}) or a run folder"
        )
    return path


def is_file(path: Path) -> bool:
    """True for a regular file, whatever the path; a device could be read for ever."""
    return stat.S_ISREG(mode_of(path) or 0)


def mode_of(path: Path) -> int | None:
    """Return the ``st_mode`` of a path; None where nothing can be found."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # too long, a circle of links, not permitted; with a NUL
        return None


def instead(path: Path) -> str:
    """Describe a path that is not a regular file, for a message."""
    if mode_of(path) is not None:
        return ", which is no regular file"
    try:
        linked = path.is_symlink()
    except (OSError, ValueError) as error:
        return f" ({getattr(error, 'strerror', None) or error})"
    return f", a link that leads nowhere (to {path.readlink()})" if linked else ""
