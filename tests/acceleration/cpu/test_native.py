"""Building the C code: once, by whoever comes first, and without a word more than one where it cannot be."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext.acceleration import enabled
from convnext.acceleration.cpu import native
from convnext.acceleration.cpu.native import available, library
from convnext.errors import KernelsWarning, UsageError

needs_compiler = pytest.mark.skipif(not available(), reason="no C compiler here")

GRADIENT = """
import torch, convnext
from convnext.acceleration.cpu import native
from convnext.models.layers import DepthwiseConv2d
for _ in range(2):
    convnext.accelerate(DepthwiseConv2d(64, 3), training=True)(torch.randn(8, 64, 32, 32)).sum().backward()
print("native" if native.available() else "plain")
"""


def start(folder: Path, code: str = GRADIENT, **variables: str) -> subprocess.Popen[str]:
    """A process that trains, its cache in a folder."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CONVNEXT_KERNELS")}
    environment |= {"XDG_CACHE_HOME": str(folder)} | variables
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it says on stdout and stderr."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stdout.strip(), stderr


def program(folder: Path, name: str, script: str) -> Path:
    """A program of that name in a folder of its own."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process with an empty cache of its own, as if it had not looked for a library yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native, "OPTIONS", (*native.OPTIONS, "-O0"))  # compiled quickly: the code is not run
    native._library.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    native._library.cache_clear()


@needs_compiler
@pytest.mark.slow
def test_two_processes_build_at_once_and_a_third_does_not(tmp_path: Path) -> None:
    assert [outcome(process) for process in [start(tmp_path), start(tmp_path)]] == [("native", "")] * 2
    (built,) = (tmp_path / "convnext" / "kernels").iterdir()
    written = built.stat().st_mtime_ns
    assert outcome(start(tmp_path)) == ("native", "")
    assert built.stat().st_mtime_ns == written


@needs_compiler
@pytest.mark.slow
def test_one_openmp_runtime(tmp_path: Path) -> None:
    code = GRADIENT + "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line}))"
    assert outcome(start(tmp_path, code))[0].split() == ["native", "1"]


def test_without_a_compiler(tmp_path: Path) -> None:
    said, warned = outcome(start(tmp_path, PATH=str(tmp_path)))
    assert said == "plain"
    assert warned.count("KernelsWarning") == 1
    assert "no C compiler was found" in warned


def test_off_says_nothing(tmp_path: Path) -> None:
    assert outcome(start(tmp_path, PATH=str(tmp_path), CONVNEXT_KERNELS="off")) == ("plain", "")


def test_compiler_that_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(fresh, "gcc", "echo 'no licence today' >&2; exit 3")
    monkeypatch.setenv("PATH", str(fresh / "bin"))
    with pytest.warns(KernelsWarning, match="no licence today"):
        assert library() is None


@needs_compiler
def test_next_compiler_where_the_first_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{program(fresh, 'broken', 'exit 1')} -pipe")
    assert library() is not None


def test_compiler_that_makes_no_library(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It succeeds and writes nonsense: the file is opened in vain."""
    program(fresh, "gcc", 'for last; do :; done; [ "$last" = /dev/null ] || echo nonsense > "$last"')
    monkeypatch.setenv("PATH", f"{fresh / 'bin'}")
    with pytest.warns(KernelsWarning, match="invalid ELF header|file too short"):
        assert library() is None


@needs_compiler
def test_cache_that_cannot_be_written_to(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    with pytest.warns(KernelsWarning, match="cannot write .*Not a directory"):
        assert library() is None


@needs_compiler
@pytest.mark.slow
def test_another_compiler_has_a_file_of_its_own(fresh: Path) -> None:
    (plain,) = native.compilers()[:1]
    assert native.built(plain, "training") != native.built([*plain, "-DOTHER"], "training")
    assert len(list((fresh / "cache" / "convnext" / "kernels").iterdir())) == 2


def test_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_KERNELS", "of")
    with pytest.raises(UsageError, match="CONVNEXT_KERNELS"):
        enabled()
