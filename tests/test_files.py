"""Files: whole or not at all, also when the disk is full; one process a folder."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convnext.errors import RunError
from convnext.files import append_line, is_vacant, locked, read_json, write_atomically, write_json


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": 2})
    assert read_json(path) == {"b": 2}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """In a process that may not write files of more than 100 kB, as a stand-in for a full disk."""
    path = tmp_path / "weights"
    path.write_bytes(b"good")
    code = f"""
import resource, signal
from pathlib import Path
from convnext.errors import RunError
from convnext.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomically(Path({str(path)!r}), bytes(2_000_000))
except RunError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "the disk is full" in said
    assert "2.0 MB" in said
    assert path.read_bytes() == b"good"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        write_atomically(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_atomically(tmp_path / "file" / "inside", b"")
    with pytest.raises(RunError, match="cannot write"):
        append_line(tmp_path / "no" / "log", "line")


def test_a_vacant_folder(tmp_path: Path) -> None:
    assert is_vacant(tmp_path / "new")
    (tmp_path / ".lock").touch()
    assert is_vacant(tmp_path)
    (tmp_path / "file").touch()
    assert not is_vacant(tmp_path)
    assert not is_vacant(tmp_path / "file")


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(RunError, match="holds no JSON object"):
        read_json(tmp_path / "a.json")


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from convnext.files import locked
with locked(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert isinstance(process.stdout, io.TextIOBase)
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match="another process is working in"), locked(tmp_path):
            pass
        process.communicate("\n")
    with locked(tmp_path):
        pass
