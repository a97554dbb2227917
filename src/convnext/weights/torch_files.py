"""Files of ``torch.save``: looked through first, then read by torch's reader of tensors alone, which runs nothing."""

import argparse
import io
import mmap
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convnext.errors import RunError, printable, reason
from convnext.weights.pickle_calls import SPECIAL_TENSORS, Built
from convnext.weights.pickles import Contents, PickleError, contents

# Where checkpoints keep the weights, the first that is there. What timm's training saves as state_dict_ema, timm opens
# in place of the state_dict beside it.
WRAPPERS = ("model", "state_dict_ema", "state_dict", "model_state_dict", "module", "model_ema")
ZIP = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch before 1.6
TAR = slice(257, 262)  # where a tar file says ``ustar``
NAMED = 3  # foreign names that an error lists


def read_torch(path: Path) -> Any:
    """What a file of ``torch.save`` holds, its tensors on the CPU; of a zip file, they are read when they are used.

    Raises:
        RunError: the file is damaged or no weights file, holds what only code can build, or is made to take more
            memory or time than there is in it.
    """
    try:
        document, is_zip = look_through(path)
    except RunError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise damaged(path, error) from error
    if document.foreign or document.unknown:
        raise refusal(path, document)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(plain_types()):
            warnings.simplefilter("ignore")  # of formats that the errors below speak of
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch too raises many kinds, with advice that does not fit here
        raise damaged(path, error) from error


def look_through(path: Path) -> tuple[Contents, bool]:
    """What a file would build, and whether it is a zip file."""
    with path.open("rb") as file:
        beginning = file.read(TAR.stop)
        if beginning.startswith(ZIP):
            return look_through_zip(path), True
        if beginning[TAR] == b"ustar":
            raise RunError(
                f"refused to read {path}: it is a tar file, as torch wrote before 2017, and reading that can run code. "
                + remedy(path, Built("dict"))
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source:
            return look_through_legacy(source, len(source)), False


def look_through_zip(path: Path) -> Contents:
    """What a file of torch 1.6 or later would build: a pickle and its tensors' bytes in one zip file."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise RunError(
                f"refused to read {path}: it is a TorchScript program. If you trust its maker, run once: "
                f"import torch; torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
            )
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise PickleError("its parts are compressed, which torch.save never does: unpack it to see what it is")
        if sum(record.file_size for record in records) > size:
            raise PickleError("its parts are larger than the whole")
        found = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(found) != 1:
            raise PickleError(f"it is a zip file with {len(found)} data.pkl, needs one")
        folder = found[0].filename.removesuffix("data.pkl") + "data/"
        sizes = {
            record.filename.removeprefix(folder): record.file_size
            for record in records
            if record.filename.startswith(folder)
        }
        return contents(io.BytesIO(archive.read(found[0])), size, sizes)


def look_through_legacy(source: mmap.mmap, size: int) -> Contents:
    """What a file of torch before 1.6 would build: five pickles, the fourth the document, then the bytes."""
    first = contents(source, size)
    if first.top != LEGACY_MAGIC:
        if first.foreign or first.unknown:
            return first
        raise PickleError("it is a pickle, of no torch.save")
    parts = [contents(source, size) for _ in range(4)]
    for part in parts:
        if part.foreign or part.unknown:
            return part
    keys = parts[3].top
    if not isinstance(keys, Built) or not all(isinstance(key, str) for key in keys.items):
        raise PickleError("its list of tensors is none")
    return parts[2]


def plain_types() -> list[Any]:
    """What torch's reader is to build beside tensors: where the file was looked through, harmlessly."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind + size)) for kind in "fiu" for size in "1248" if kind + size != "f1"]
    return [
        argparse.Namespace,
        np.dtype,
        *numbers,
        type(np.dtype("b1")),
        (scalar, "numpy.core.multiarray.scalar"),  # by its name before numpy 2
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def refusal(path: Path, document: Contents) -> RunError:
    """The error for a file that holds more than tensors and plain values."""
    if not document.foreign:
        return RunError(
            f"refused to read {path}: it is a pickle with {', '.join(document.unknown)}, which torch's reader of "
            f"tensors alone does not know. {remedy(path, document.top)}"
        )
    names = ", ".join(printable(name) for name in document.foreign[:NAMED])
    names += f" and {len(document.foreign) - NAMED} more" if len(document.foreign) > NAMED else ""
    if all(map(SPECIAL_TENSORS.match, document.foreign)):
        return RunError(
            f"{path} holds tensors of a special kind ({names}): plain tensors of numbers are needed. Convert it where "
            "it was made, with to_dense(), dequantize() or float() of each tensor"
        )
    return RunError(
        f"refused to read {path}: it holds Python objects ({names}) beside tensors, and reading those can run code "
        f"that its maker put there. {remedy(path, document.top)}"
    )


def remedy(path: Path, top: Any) -> str:
    """How who trusts a file takes the tensors out of it."""
    value = "document.state_dict()"
    if isinstance(top, Built) and top.kind in ("dict", "collections.OrderedDict"):
        inner = next((name for name in WRAPPERS if name in top.keys), None)
        value = "document" if inner is None else f"document[{inner!r}]"
    return (
        "Ask its maker for a file of tensors alone (safetensors, or torch.save of a state dict). Only if you trust its "
        "maker, convert it once, which runs that code:\n"
        "    import torch\n"
        f"    document = torch.load({str(path)!r}, weights_only=False)\n"
        f"    torch.save({value}, {str(path.with_suffix('.tensors.pth'))!r})"
    )


def damaged(path: Path, error: Exception) -> RunError:
    """The error for a file that is not what its name says."""
    return RunError(
        f"cannot read {path} as weights, it is cut off, damaged or no weights file ({reason(error)}): copy or download "
        "it again"
    )
