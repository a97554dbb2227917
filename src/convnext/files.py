"""Files that survive: written whole under another name and then renamed, and locked folders."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convnext.errors import RunError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file so that at every moment the old content or the new one is there, whole.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, len(data)) as write:
        write(data)


@contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[Callable[[bytes | memoryview], Any]]:
    """Write a file part by part; it takes its name when the block ends, and leaves nothing where the block fails.

    Args:
        path: its name.
        size: bytes to come, as far as they are known.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def write(data: bytes | memoryview) -> None:
        nonlocal size
        size = max(size, file.tell() + len(data))
        with writing(path, size):
            file.write(data)

    try:
        with writing(path, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb")
        try:
            yield write
            with writing(path, size):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with writing(path, size):
                file.close()
        with writing(path, size):
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Name the file in what goes wrong while ``size`` bytes are written to it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, size) from error


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically."""
    write_atomically(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: it is damaged.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} ({error}): move it away and call again") from error
    if not isinstance(document, dict):
        raise RunError(f"cannot read {path}, it holds no JSON object: move it away and call again")
    return document


def append_line(path: Path, line: str) -> None:
    """Append a line to a log."""
    with writing(path, len(line)), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def cannot_write(path: Path, error: OSError, size: int) -> RunError:
    """The error for a write that failed."""
    if error.errno in DISK_FULL:
        return RunError(
            f"the disk is full: {path} needs {size / 1e6:.1f} MB ({error.strerror}). What was written before is whole: "
            "free some space, then call again with the same words to go on"
        )
    return RunError(f"cannot write {path}: {error.strerror}")


def user_cache(kind: str) -> Path:
    """``convnext/KIND`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convnext" / kind


def is_vacant(folder: Path) -> bool:
    """Whether a folder is free to be used: it is not there, or holds nothing but hidden files."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone.

    Raises:
        RunError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"another process is working in {folder}: wait for it, or choose another folder") from error
    except OSError as error:
        raise cannot_write(folder, error, 0) from error
    try:
        yield
    finally:
        lock.release()
