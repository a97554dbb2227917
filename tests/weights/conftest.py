"""What the tests of published weights share: folders of their own, and a server that misbehaves as it is told."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The folders that are looked into for weights, in their order, none of them there yet."""
    named = {
        "CONVNEXT_WEIGHTS": tmp_path / "own",
        "TORCH_HOME": tmp_path / "torch",
        "XDG_CACHE_HOME": tmp_path / "cache",
    }
    for name, folder in named.items():
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return {
        "own": tmp_path / "own",
        "hub": tmp_path / "torch" / "hub" / "checkpoints",
        "cache": tmp_path / "cache" / "convnext" / "weights",
        "hf": tmp_path / "hf",
    }


def put(folder: Path, name: str) -> Path:
    """Put a file that stands for weights into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"weights")
    return folder / name


@dataclass
class Asked:
    """One request that the server had, and the bytes that it sent for it."""

    method: str
    path: str
    range: str | None
    sent: int = 0


@dataclass
class Server:
    """A server of files on this machine.

    Attributes:
        address: of its root.
        files: content by path.
        ranges: whether it sends parts.
        marks: what it marks versions by: an ``ETag``, ``Last-Modified``, or nothing that can be relied on.
        shift: bytes by which the parts that it sends are not those asked for.
        statuses: what it answers first, one a request; 200 for the file.
        cuts: bytes of a body after which it closes the connection, one a request that sends a body.
        pause: seconds before each piece of a body.
        asked: the requests that it had.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    marks: Literal["ETag", "Last-Modified", "weak"] = "ETag"
    shift: int = 0
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    pause: float = 0.0
    asked: list[Asked] = field(default_factory=list)

    def mark(self, path: str) -> tuple[str, str]:
        """The header that marks a file's version, and its value."""
        digest = hashlib.sha256(self.files[path]).hexdigest()
        if self.marks == "Last-Modified":
            return "Last-Modified", f"Mon, 01 Jan 2024 00:00:{int(digest, 16) % 60:02d} GMT"
        return "ETag", f'W/"{digest}"' if self.marks == "weak" else f'"{digest}"'

    @property
    def ranges_asked(self) -> list[str | None]:
        return [request.range for request in self.asked if request.method == "GET"]

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.asked)


PIECE = 1 << 14


def handler_of(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Keep quiet."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            request = Asked(self.command, self.path, self.headers.get("Range"))
            server.asked.append(request)
            status = server.statuses.pop(0) if server.statuses else 200
            content = server.files.get(self.path)
            if status != 200 or content is None:
                return self.send_error(404 if status == 200 else status)
            mark, start = server.mark(self.path), 0
            if request.range and server.ranges and self.headers.get("If-Range") in (None, mark[1]):
                start = int(request.range.removeprefix("bytes=").removesuffix("-")) + server.shift
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("X-Repo-Commit", "0" * 40)  # the hub's, which its client asks for
            self.send_header(*mark)
            self.end_headers()
            if request.method == "GET":
                self.send_body(request, content[start:])
            return None

        def send_body(self, request: Asked, content: bytes) -> None:
            end = server.cuts.pop(0) if server.cuts else len(content)
            for position in range(0, end, PIECE):
                time.sleep(server.pause)
                piece = content[position : min(end, position + PIECE)]
                with suppress(ConnectionError):  # who asked has left
                    self.wfile.write(piece)
                    request.sent += len(piece)
            self.close_connection = True

    return Handler


@pytest.fixture
def published_here(server: Server, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Server:  # noqa: ARG001
    """The server in the place of the authors' address and of the Hugging Face hub; nothing is at hand."""
    hub = f"{server.address}/hub"
    monkeypatch.setattr("convnext.weights.published.BASE", f"{server.address}/convnext")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    for home in ("constants", "file_download"):  # the latter in older versions alone
        name = f"huggingface_hub.{home}.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(name, hub + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
    return server


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine, until the test ends."""
    served = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(served)) as running:
        served.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield served
        running.shutdown()
        thread.join()
