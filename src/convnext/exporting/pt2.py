"""``.pt2`` files as archives: written whole, and what they say of themselves, read without running anything."""

import io
import json
import zipfile
from pathlib import Path

from convnext.files import writing

CARD = "convnext.json"  # among a file's extra files
LARGEST_CARD = 50_000_000  # bytes


def read_extra(path: Path) -> dict[str, str]:
    """What a ``.pt2`` file says of itself, read without opening the rest.

    Raises:
        ValueError: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{CARD}")]
        if not found:
            return {}
        if found[0].file_size > LARGEST_CARD:
            raise ValueError(f"its {CARD} takes {found[0].file_size:,} bytes")
        document = json.loads(archive.read(found[0]))
    if not isinstance(document, dict) or not all(isinstance(text, str) for text in document.values()):
        raise ValueError(f"its {CARD} is no object of words")
    return document


def is_package(path: Path) -> bool:
    """Whether a ``.pt2`` file is a package of AOTInductor, with machine code, not a program."""
    with zipfile.ZipFile(path) as archive:
        return any("/data/aotinductor/" in name for name in archive.namelist())


def write_bytes(path: Path, whole: io.BytesIO) -> None:
    """Write a file.

    Raises:
        RunError: the disk is full.
    """
    content = whole.getbuffer()
    with writing(path, len(content)):
        path.write_bytes(content)
