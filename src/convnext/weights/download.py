"""A file over HTTP: resumed where it broke off, checked, and under its own name only when it is whole.

By the standard library's client, which torch's own downloads use as well, so that proxies and certificates are set up
in one place; the one below ``huggingface_hub`` is another from version to version.
"""

import errno
import hashlib
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from convnext.console import PLAIN_SECONDS, console_on, say
from convnext.errors import RunError
from convnext.files import cannot_write
from convnext.quantities import megabytes

TIMEOUT = 10  # seconds without a connection, an answer or a byte
WAITS = (1, 2, 4, 8)  # seconds before the next attempts, after a connection that broke
PASSING = {408, 429, 500, 502, 503, 504}  # answers of a server that may answer otherwise in a moment
CHUNK = 1 << 18  # bytes


class DownloadError(RunError):
    """A file cannot be had from its address, or what came is not that file."""


def download(address: str, path: Path, *, sha256: str | None = None, size: int | None = None, least: int = 0) -> None:
    """Download a file, unless it is there; with a bar on stderr.

    What has come is kept in ``NAME.part`` until the file is whole, and the next call goes on from there if the server
    still has the same version of the file. Two processes do not download the same file: the second waits.

    Args:
        address: http or https.
        path: the file; its folder is made.
        sha256: its SHA-256 in hexadecimal digits, where it is known.
        size: its exact number of bytes, where it is known.
        least: bytes that it has to have in any case.

    Raises:
        DownloadError: no connection, no such file, a connection that breaks again and again, or a file that is not the
            expected one, which is deleted.
        RunError: the disk is full, or the folder cannot be written to.
        KeyboardInterrupt: Ctrl-C; the message says what is kept.
    """
    with sole(path):
        if path.is_file():
            return
        part = Part(path)
        try:
            with Shown(path.name) as shown:
                receive(address, part, size, shown)
            if problem := problem_of(part.path, sha256, size, least):
                part.discard()
                raise DownloadError(f"{address} gave another file than expected: {problem}. It is deleted")
            part.finish(path)
        except KeyboardInterrupt:
            kept = f" {megabytes(part.size)} are kept in {part.path}: the same call goes on from there."
            raise KeyboardInterrupt("Interrupted." + (kept if part.version else "")) from None


@contextmanager
def sole(path: Path) -> Iterator[None]:
    """Hold a file for this download alone; another download of it is waited for."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that downloads {path.name}", console_on(sys.stderr))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Say of a write that fails that it is one: errors of the network are ``OSError`` as well."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, size) from error


class Part:
    """What has come of a file, in ``NAME.part``, and of which version of it, in ``NAME.part.version``."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self.version_path = path.with_name(f"{path.name}.part.version")

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> str | None:
        """The server's mark of the version that the bytes are of; None without bytes, or without such a mark."""
        return self.version_path.read_text() if self.size and self.version_path.is_file() else None

    def begin(self, version: str | None) -> None:
        """Start from nothing."""
        self.discard()
        with writing(self.path):
            self.path.touch()
            if version:
                self.version_path.write_text(version)

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end, as many as the disk takes."""
        with writing(self.path, len(chunk)), self.path.open("ab", buffering=0) as file:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]

    def discard(self) -> None:
        """Delete what has come."""
        with writing(self.path):
            self.version_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Give the whole file its name."""
        with writing(path):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())  # before it is renamed: after a power cut the name never stands for half a file
            self.path.replace(path)
            self.version_path.unlink(missing_ok=True)


def receive(address: str, part: Part, size: int | None, shown: "Shown") -> None:
    """Fetch the rest of a file, in as many attempts as it takes while each of them gets further."""
    furthest, failures, answered = part.size, 0, False
    while True:
        try:
            transfer(address, part, size, shown)
            return
        except HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code not in PASSING:
                raise DownloadError(f"{address}: {reason}") from error
        except URLError as error:
            reason = f"no connection ({error.reason})"
            if not answered:  # to try again would only delay the word that there is none
                raise DownloadError(f"{address}: {reason}") from error
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        answered = True
        if part.size > furthest:
            furthest, failures = part.size, 0
        if failures == len(WAITS):
            raise DownloadError(f"{address}: {reason}, {failures + 1} times in a row")
        shown.note(f"{reason}; again in {WAITS[failures]} s")
        time.sleep(WAITS[failures])
        failures += 1


def transfer(address: str, part: Part, size: int | None, shown: "Shown") -> None:
    """One attempt: the rest of the file, or all of it where the server has another version or sends no parts."""
    have, version = part.size, part.version
    wanted = {"Range": f"bytes={have}-", "If-Range": version} if version else {}
    try:
        response: HTTPResponse = urlopen(Request(address, headers={"User-Agent": "convnext"} | wanted), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not wanted:
            raise
        error.close()
        if error.headers.get("Content-Range", "") == f"bytes */{have}":  # all of it has come
            return
        part.discard()
        raise ConnectionError("what had come is not the beginning of the file there") from error
    with response:
        if response.status != 206:
            have = 0
            part.begin(version_of(response))
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.discard()
            raise ConnectionError("the server sent another part than asked for")
        length = response.headers.get("Content-Length")
        total = size if length is None else have + int(length)
        if size is not None and total != size:
            part.discard()
            raise DownloadError(f"{address} has {total:,} bytes, not {size:,}: it is another file than expected")
        check_space(part.path, (total or have) - have)
        shown.begin(have, total)
        while chunk := response.read1(CHUNK):
            part.append(chunk)
            shown.advance(len(chunk))
    if length is not None and part.size != total:
        raise ConnectionError(f"the connection broke after {megabytes(part.size)} of {megabytes(have + int(length))}")


def version_of(response: HTTPResponse) -> str | None:
    """What marks this version of a file for ``If-Range``: a strong ETag, or else the date of its last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def check_space(path: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise cannot_write(path, OSError(errno.ENOSPC, f"{megabytes(free)} are free"), needed)


def problem_of(path: Path, sha256: str | None, size: int | None, least: int) -> str | None:
    """Why a file is not the expected one; None if nothing speaks against it."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes, not {size:,}"
    if found < least:
        return f"it has {found:,} bytes, and its tensors alone take {least:,}"
    if sha256 is not None:
        digest = sha256_of(path)
        return None if digest == sha256 else f"its SHA-256 is {digest}, not {sha256}"
    if zipfile.is_zipfile(path):  # torch's format, with a checksum of every tensor
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return f"{damaged} in it does not match its checksum" if damaged else None
    return None


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shown:
    """A download's progress on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.done, self.total = name, 0, None
        self.console = console_on(sys.stderr)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=None)
        self.last_line = time.perf_counter()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self, done: int, total: int | None) -> None:
        """An attempt begins with ``done`` bytes of ``total``."""
        self.done, self.total = done, total
        self.bar.update(self.task, completed=done, total=total)

    def advance(self, count: int) -> None:
        """More bytes have come."""
        self.done += count
        self.bar.update(self.task, completed=self.done)
        if not self.console.is_terminal and time.perf_counter() - self.last_line > PLAIN_SECONDS:
            self.note(megabytes(self.done) + (f" of {megabytes(self.total)}" if self.total else ""))
            self.last_line = time.perf_counter()

    def note(self, text: str) -> None:
        """Say something of this download."""
        say(f"{self.name}: {text}", self.console)
