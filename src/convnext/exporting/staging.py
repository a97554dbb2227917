"""Files that belong together: written in a temporary folder, then moved to their place, all or none."""

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from convnext.files import writing


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """Create a temporary folder beside a file, on the same disk, and remove it at the end.

    Raises:
        RunError: the folder cannot be written to.
    """
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with writing(out, 0):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(out)
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(out: Path) -> None:
    """Remove the temporary folders that killed processes left for a file."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        number = folder.suffixes[-2].removeprefix(".") if len(folder.suffixes) > 1 else ""
        if number.isdigit() and not is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(process: int) -> bool:
    """True if there is a process of this number, of any user."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def move_all(staged: Sequence[Path], folder: Path) -> list[Path]:
    """Move files into a folder on the same disk, over those of the same names; if one fails, restore all.

    Raises:
        RunError: a file cannot be moved.
    """
    places = [folder / path.name for path in staged]
    backups: dict[Path, Path] = {}
    moved: list[Path] = []
    try:
        for path, place in zip(staged, places, strict=True):
            with writing(place, path.stat().st_size):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                if place.exists() and len(staged) > 1:  # a single file is replaced atomically
                    backups[place] = path.with_name(f"{path.name}.before")
                    os.link(place, backups[place])
                path.replace(place)
                moved.append(place)
    except BaseException:
        for place in moved:
            with suppress(OSError):
                backups[place].replace(place) if place in backups else place.unlink()
        raise
    return places
