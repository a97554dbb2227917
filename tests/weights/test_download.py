"""A file over HTTP from a server that is slow, breaks off, changes the file, or is not there."""

import errno
import hashlib
import io
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convnext.errors import RunError
from convnext.weights import download as module
from convnext.weights.download import DownloadError, download
from tests.weights.conftest import Server

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS", (0.01, 0.01, 0.01, 0.01))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "file.pth"


@pytest.fixture
def address(server: Server) -> str:
    server.files["/file.pth"] = CONTENT
    return f"{server.address}/file.pth"


def left(path: Path) -> set[str]:
    """What lies beside a download, but for its lock."""
    return {entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock")}


def test_a_file_comes_once_and_is_the_one_expected(address: str, server: Server, path: Path) -> None:
    for _ in range(2):
        download(address, path, sha256=SHA256, size=len(CONTENT), least=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.ranges_asked == [None]
    assert left(path) == {"file.pth"}


def test_a_slow_server_is_waited_for_and_progress_said(
    address: str, server: Server, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.05)
    server.pause = 0.02
    download(address, path)
    assert path.read_bytes() == CONTENT
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert 2 <= len(lines) <= 8
    assert all(line.startswith("file.pth: 0.") and line.endswith(" MB of 0.3 MB") for line in lines)


def test_a_server_that_stalls_is_given_up_and_asked_again(
    address: str, server: Server, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    server.pause = 0.5
    with pytest.raises(DownloadError, match=r"timed out, 5 times in a row"):
        download(address, path)
    assert len(server.asked) == 5
    server.pause = 0
    download(address, path)
    assert path.read_bytes() == CONTENT
    assert "timed out; again in 0.01 s" in capsys.readouterr().err


def test_a_broken_connection_is_resumed_where_it_broke(
    address: str, server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cuts = [100_000, 50_000, 0, 0]
    download(address, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges_asked == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150000-"]
    assert server.sent == len(CONTENT)  # nothing came twice
    assert "file.pth: the connection broke after 0.1 MB of 0.3 MB; again in 0.01 s" in capsys.readouterr().err


def test_as_many_attempts_as_get_further(address: str, server: Server, path: Path) -> None:
    server.cuts = [20_000] * 14
    download(address, path)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 15


def test_a_later_call_goes_on(address: str, server: Server, path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"the connection broke after 0.1 MB of 0.3 MB, 5 times in a row"):
        download(address, path)
    assert left(path) == {"file.pth.part", "file.pth.part.version"}
    server.asked.clear()
    download(address, path, sha256=SHA256)
    assert server.ranges_asked == ["bytes=100000-"]
    assert server.sent == len(CONTENT) - 100_000
    assert left(path) == {"file.pth"}


def test_a_server_without_parts_starts_again(address: str, server: Server, path: Path) -> None:
    server.ranges = False
    server.cuts = [100_000, 50_000]
    download(address, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges_asked == [None, "bytes=100000-", "bytes=50000-"]


def test_a_server_without_parts_that_always_breaks_is_given_up(address: str, server: Server, path: Path) -> None:
    server.ranges = False
    server.cuts = [60_000, 50_000] * 10
    with pytest.raises(DownloadError, match="5 times in a row"):
        download(address, path)
    assert len(server.asked) == 5


@pytest.mark.parametrize(("marks", "second"), [("Last-Modified", "bytes=100000-"), ("weak", None)])
def test_only_what_is_surely_the_same_version_is_stitched(
    marks: Any, second: str | None, address: str, server: Server, path: Path
) -> None:
    server.marks = marks
    server.cuts = [100_000]
    download(address, path, sha256=SHA256)
    assert server.ranges_asked == [None, second]


def test_another_part_than_asked_for_is_not_stitched(address: str, server: Server, path: Path) -> None:
    server.shift = 10
    server.cuts = [100_000]
    download(address, path, sha256=SHA256)
    assert server.ranges_asked == [None, "bytes=100000-", None]


def test_a_file_that_changed_in_between_is_not_stitched(address: str, server: Server, path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError):
        download(address, path)
    server.files["/file.pth"] = OTHER
    download(address, path)
    assert path.read_bytes() == OTHER
    assert server.ranges_asked[-1] == "bytes=100000-"


def test_all_had_come_before_the_end(address: str, server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(CONTENT)
    path.with_name("file.pth.part.version").write_text(server.mark("/file.pth")[1])
    download(address, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.sent == 0


def test_more_had_come_than_there_is(address: str, server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.pth.part").write_bytes(CONTENT + b"more")
    path.with_name("file.pth.part.version").write_text(server.mark("/file.pth")[1])
    download(address, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges_asked == ["bytes=300004-", None]


def test_a_wrong_checksum_is_refused_and_deleted(address: str, server: Server, path: Path) -> None:
    server.files["/file.pth"] = OTHER
    found = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(DownloadError, match=rf"its SHA-256 is {found}, not {SHA256}\. It is deleted"):
        download(address, path, sha256=SHA256)
    assert left(path) == set()


def test_a_file_that_is_too_small_is_refused_and_deleted(address: str, server: Server, path: Path) -> None:
    server.files["/file.pth"] = b"<html>sign in first</html>"
    with pytest.raises(DownloadError, match="it has 26 bytes, and its tensors alone take 300,000"):
        download(address, path, least=300_000)
    assert left(path) == set()


def test_another_size_is_refused_before_it_comes(address: str, path: Path) -> None:
    with pytest.raises(DownloadError, match="has 300,000 bytes, not 300,001"):
        download(address, path, size=300_001)
    assert left(path) == set()


def test_damaged_tensors_are_refused_by_the_checksums_in_the_file(address: str, server: Server, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.randn(10_000)}, buffer)
    whole = buffer.getvalue()
    server.files["/file.pth"] = whole[:20_000] + b"????" + whole[20_004:]
    with pytest.raises(DownloadError, match=r"data/0 in it does not match its checksum. It is deleted"):
        download(address, path)
    assert left(path) == set()
    server.files["/file.pth"] = whole
    download(address, path)
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("status", [403, 404])
def test_no_such_file(status: int, address: str, server: Server, path: Path) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=rf"{address}: the server answers {status}"):
        download(address, path)
    assert len(server.asked) == 1
    assert left(path) == set()


def test_a_server_that_is_busy_for_a_moment(address: str, server: Server, path: Path) -> None:
    server.statuses = [500, 503, 200]
    download(address, path, sha256=SHA256)
    assert len(server.asked) == 3


def test_a_server_that_stays_broken(address: str, server: Server, path: Path) -> None:
    server.statuses = [500] * 9
    with pytest.raises(DownloadError, match=r"the server answers 500 .*, 5 times in a row"):
        download(address, path)


def test_no_network_is_said_at_once(path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}/file.pth"  # nobody listens there
        for address in (refused, "http://weights.invalid/file.pth"):
            start = time.perf_counter()
            with pytest.raises(DownloadError, match=rf"{address}: no connection"):
                download(address, path)
            assert time.perf_counter() - start < 5
    assert left(path) == set()


def test_threads_download_once(address: str, server: Server, path: Path) -> None:
    server.pause = 0.01
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(download, address, path, sha256=SHA256) for _ in range(3)]:
            done.result()
    assert len(server.asked) == 1
    assert path.read_bytes() == CONTENT


@pytest.mark.slow
def test_processes_download_once(address: str, server: Server, path: Path) -> None:
    server.pause = 0.05
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=download, args=(address, path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.asked) == 1
    assert path.read_bytes() == CONTENT


def test_waiting_for_another_process_is_said(
    address: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acquired = module.FileLock.acquire

    def busy_at_first(lock: Any, timeout: float = -1) -> Any:
        if timeout == 0:
            raise module.Timeout(lock.lock_file)
        return acquired(lock, timeout)

    monkeypatch.setattr(module.FileLock, "acquire", busy_at_first)
    download(address, path)
    assert "waiting for another process that downloads file.pth" in capsys.readouterr().err


def test_too_little_room_is_said_before_anything_comes(
    address: str, server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 100_000))  # pyright: ignore
    with pytest.raises(RunError, match=r"the disk is full: .*file.pth.part needs 0.3 MB \(0.1 MB are free\)"):
        download(address, path)
    assert server.sent < len(CONTENT)


def test_a_disk_that_fills_keeps_what_came(
    address: str, server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = module.Part.append

    def full(part: Any, chunk: bytes) -> None:
        if part.size > 100_000:
            with module.writing(part.path, len(chunk)):
                raise OSError(errno.ENOSPC, "No space left on device")
        append(part, chunk)

    monkeypatch.setattr(module.Part, "append", full)
    with pytest.raises(RunError, match="the disk is full"):
        download(address, path)
    monkeypatch.setattr(module.Part, "append", append)
    kept = path.with_name("file.pth.part").stat().st_size
    assert kept > 100_000
    download(address, path, sha256=SHA256)
    assert server.ranges_asked == [None, f"bytes={kept}-"]


def test_a_disk_that_is_truly_full(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(RunError, match="the disk is full"):
            download(address, small / "file.pth")
        monkeypatch.setattr(module, "check_space", lambda *_: None)  # another process fills it in between
        with pytest.raises(RunError, match=r"the disk is full: .*No space left on device"):
            download(address, small / "file.pth")
        assert CONTENT.startswith((small / "file.pth.part").read_bytes())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_written_to(address: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunError, match=f"cannot write {tmp_path / 'taken' / 'file.pth'}"):
        download(address, tmp_path / "taken" / "file.pth")


@pytest.mark.slow
def test_ctrl_c_keeps_what_came_and_says_so(address: str, server: Server, path: Path) -> None:
    server.pause = 0.1
    code = (
        "import sys; from pathlib import Path; from convnext.weights.download import download\n"
        "try: download(sys.argv[1], Path(sys.argv[2]))\n"
        "except KeyboardInterrupt as interrupt: sys.exit(str(interrupt))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, address, str(path)], stderr=subprocess.PIPE, text=True)
    part = path.with_name("file.pth.part")
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert f"Interrupted. 0.0 MB are kept in {part}: the same call goes on from there." in said
    kept = part.stat().st_size
    server.pause = 0
    download(address, path, sha256=SHA256)
    assert server.ranges_asked == [None, f"bytes={kept}-"]
