"""Which files may run code: those that this user exported on this machine, and those that he says he trusts.

A ``.pt2`` file is no mere data: an AOTInductor package holds machine code, and torch unpickles parts of an exported
program without restriction (``torch.export.load`` says so itself). ONNX and OpenVINO's files are data.
"""

import hashlib
from pathlib import Path

from convnext.errors import RunError, UsageError
from convnext.files import user_cache, write_json


def check_trust(path: Path, trust: bool) -> None:
    """Refuse a file that may run code, unless it was exported here or is said to be trusted.

    Raises:
        UsageError: it may be a stranger's.
    """
    if trust or is_ours(path):
        return
    raise UsageError(
        f"{path} was not exported by this user on this machine, and a .pt2 file can run any code when it is opened: "
        "if you trust where it comes from, say so (--trust, in Python trust=True); else ask for an .onnx file, which "
        "is data alone"
    )


def is_ours(path: Path) -> bool:
    """Whether a file's content is what this user exported on this machine."""
    try:
        return mark_of(digest(path)).is_file()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False


def remember(path: Path) -> bool:
    """Keep in mind that a file was exported here; False where the cache cannot be written to."""
    try:
        write_json(mark_of(digest(path)), {"exported_to": str(path)})
    except (OSError, RunError, RuntimeError):
        return False
    return True


def digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark_of(digest: str) -> Path:
    """The file that stands for a content."""
    return user_cache("exported") / f"{digest}.json"
