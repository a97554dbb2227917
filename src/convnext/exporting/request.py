"""The words of an export, checked: batch, size, and where the file goes."""

from pathlib import Path

from convnext.errors import UsageError
from convnext.exporting.formats import Format
from convnext.inference.trained import Trained

DYNAMIC = "dynamic"


def batch_of(asked: int | str) -> int | None:
    """Images at a time; None for any number.

    Raises:
        UsageError: it is no number from 1 on.
    """
    return None if asked == DYNAMIC else number("batch", asked)


def size_of(asked: int | str | None) -> int | None:
    """Pixels a side; 0 for the network's own, None for any.

    Raises:
        UsageError: it is no number from 1 on.
    """
    if asked is None:
        return 0
    return None if asked == DYNAMIC else number("size", asked)


def number(what: str, asked: int | str) -> int:
    """A whole number from 1 on."""
    try:
        value = int(asked)
    except ValueError:
        value = 0
    if value < 1 or isinstance(asked, bool):
        raise UsageError(f"{what} is {asked!r}, needs a whole number from 1 on, or {DYNAMIC}")
    return value


def place_for(trained: Trained, kind: Format, precision: str, out: Path | None) -> Path:
    """Where the file goes.

    By default into the run's folder, beside a weights file, or for published weights into the current folder:
    ``model.onnx``, ``model-int8.onnx``.

    Raises:
        UsageError: the name does not fit the format, or is a folder's.
    """
    if out is None:
        extra = "" if precision == "fp32" else f"-{precision}"
        source = Path(trained.name)
        if trained.folder is not None:
            return trained.folder / f"model{extra}{kind.suffix}"
        if source.is_file():
            return source.with_name(f"{source.stem}{extra}{kind.suffix}")
        if source.is_dir():
            return source / f"model{extra}{kind.suffix}"
        return Path(f"{trained.name.replace('/', '-')}{extra}{kind.suffix}")
    if out.suffix.lower() != kind.suffix:
        raise UsageError(f"--out {out} does not fit format {kind.name}: end it in {kind.suffix}")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file in it")
    return out
