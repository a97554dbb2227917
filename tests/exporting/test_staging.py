"""Files that belong together take their places together, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convnext.errors import RunError
from convnext.exporting.staging import move_all, staging_folder


def written(folder: Path, content: str, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{content} {name}")
    return [folder / name for name in names]


@pytest.mark.parametrize("before", [True, False])
def test_both_or_none(before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if before:
        written(place, "old", "a.bin", "a.xml")
    made = written(tmp_path / "made", "new", "a.bin", "a.xml")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self == made[1]:
            raise OSError(5, os.strerror(5))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(RunError, match=r"cannot write .*a\.xml"):
            move_all(made, place)
    found = {path.name: path.read_text() for path in place.iterdir()}
    assert found == ({"a.bin": "old a.bin", "a.xml": "old a.xml"} if before else {})
    made = written(tmp_path / "made again", "new", "a.bin", "a.xml")
    assert move_all(made, place) == [place / "a.bin", place / "a.xml"]
    assert {path.name: path.read_text() for path in place.iterdir()} == {"a.bin": "new a.bin", "a.xml": "new a.xml"}


def test_the_folder_goes_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path / "deep" / "a.onnx") as folder:  # noqa: PT012
        (folder / "a.onnx").write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), staging_folder(tmp_path / "file" / "a.onnx"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, others = (tmp_path / f".a.onnx.{number}.tmp" for number in (dead.pid, os.getppid()))
    for folder in (left, others):
        written(folder, "half", "a.onnx")
    with staging_folder(tmp_path / "a.onnx"):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [others]  # whose process may still be at work
