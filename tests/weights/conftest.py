"""Fixtures of published weights: empty folders to search, and a stand-in server for the authors' site and the hub."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The folders that are searched for weights, in their order, none of them there yet."""
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
class Server:
    """A server of files on this machine.

    Attributes:
        address: of its root.
        files: content by path.
        etag: of every file; its SHA-256 by default.
        cut: bytes of a body after which the connection closes; None for all.
        pause: seconds before every body.
        requests: method and path of each.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = None
    cut: int | None = None
    pause: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)


def handler_of(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Keep quiet."""

        def do_HEAD(self) -> None:
            server.requests.append((self.command, self.path))
            content = server.files.get(self.path)
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", "0" * 40)  # the hub's client requires it
            self.send_header("ETag", f'"{server.etag or hashlib.sha256(content).hexdigest()}"')
            return self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            time.sleep(server.pause)
            with suppress(ConnectionError):  # the client has left
                self.wfile.write(server.files.get(self.path, b"")[: server.cut])
            self.close_connection = True

    return Handler


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


@pytest.fixture
def published_here(server: Server, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Server:  # noqa: ARG001
    """The server in the place of the authors' site and of the Hugging Face hub; no weights are at hand."""
    hub = f"{server.address}/hub"
    monkeypatch.setattr("convnext.weights.published.BASE", f"{server.address}/convnext")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    for home in ("constants", "file_download"):  # the latter in older versions alone
        name = f"huggingface_hub.{home}.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(name, hub + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
    return server
