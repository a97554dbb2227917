"""Files that belong together, written beside their place and put there together, or not at all."""

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from convnext.files import writing


@contextmanager
def workshop(out: Path) -> Iterator[Path]:
    """A folder beside a file to make it in, on the same disk; it goes, whatever happens.

    Raises:
        RunError: the folder cannot be written to.
    """
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with writing(out, 0):
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear(out)
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear(out: Path) -> None:
    """Remove what processes that were killed had begun of a file."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        number = folder.suffixes[-2].removeprefix(".") if len(folder.suffixes) > 1 else ""
        if number.isdigit() and not is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether there is a process of this number, whoever's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def put(made: Sequence[Path], folder: Path) -> list[Path]:
    """Move files into a folder, over those of the same names; where one cannot be moved, all are as before.

    Args:
        made: the files, in a folder of the same disk; the last is the one that a user names.
        folder: where they go.

    Raises:
        RunError: one cannot be moved.
    """
    places = [folder / path.name for path in made]
    kept: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for path, place in zip(made, places, strict=True):
            with writing(place, path.stat().st_size):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                if place.exists() and len(made) > 1:  # to be had again; a file alone is replaced at one stroke
                    kept[place] = path.with_name(f"{path.name}.before")
                    os.link(place, kept[place])
                path.replace(place)
                done.append(place)
    except BaseException:
        for place in done:
            with suppress(OSError):
                kept[place].replace(place) if place in kept else place.unlink()
        raise
    return places
