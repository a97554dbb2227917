"""Files that may run code when they are opened: those that this user exported on this machine, and trusted ones.

``torch.export.load`` unpickles parts of a ``.pt2`` file without restriction, as its documentation says. ONNX and
OpenVINO files are data.
"""

import hashlib
from pathlib import Path

from convnext.errors import RunError, UsageError
from convnext.files import user_cache, write_json


def check_trust(path: Path, trust: bool) -> None:
    """Refuse a file that may run code, unless it was exported here or the user trusts it."""
    if not trust and not is_exported_here(path):
        raise UsageError(
            f"{path} was not exported by this user on this machine, and a .pt2 file can run any code when it is "
            "opened: if you trust its origin, pass --trust (in Python trust=True); else ask for an .onnx file, which "
            "is data"
        )


def is_exported_here(path: Path) -> bool:
    """True if this user exported a file with this content on this machine."""
    try:
        return record_of(path).is_file()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False


def remember(path: Path) -> bool:
    """Record that a file was exported here; False where the cache cannot be written."""
    try:
        write_json(record_of(path), {"exported_to": str(path)})
    except (OSError, RunError, RuntimeError):
        return False
    return True


def record_of(path: Path) -> Path:
    """The file in the user's cache that stands for the content of ``path``, by its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return user_cache("exported") / f"{digest}.json"
