"""Servers on sockets: what clients may send, how a stop ends, and how a socket is bound."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from convnext.errors import RunError, UsageError
from convnext.serve import uploads
from convnext.serve.server import bind, browser_address, is_local
from tests.serve.conftest import COLOURS, RUNNING, Gated, MakeServer, MakeService, picture

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes; all that comes until the server closes the connection."""
    response = b""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client, contextlib.suppress(ConnectionResetError):
        client.sendall(request)
        while piece := client.recv(65536):
            response += piece
    return response


def test_many_clients_at_once(make_server_on_a_port: MakeServer) -> None:
    port, names = make_server_on_a_port(), [*COLOURS] * 20

    def ask(name: str) -> str:
        return client.post("/predict", files={"f": picture(name)}).json()[0]["label"]

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, names)) == names


def test_a_chunked_body_is_counted_as_it_arrives(make_server_on_a_port: MakeServer) -> None:
    address = f"http://127.0.0.1:{make_server_on_a_port(max_bytes=100_000)}/predict"

    def body(count: int) -> Iterator[bytes]:
        yield PART + picture()
        for _ in range(count):
            yield bytes(1000)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert httpx.post(address, content=body(10), headers=headers).status_code == 200
    assert httpx.post(address, content=body(3000), headers=headers).status_code == 413


def test_a_body_shorter_than_announced(
    make_server_on_a_port: MakeServer, make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "DISCARD_SECONDS", 0.1)
    service = make_service(timeout=0.5)
    port = make_server_on_a_port(service=service)
    assert exchange(port, HEAD + b"Content-Length: 1000\r\n\r\n" + PART).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + PART)  # and closes the connection
    deadline = time.monotonic() + 10
    while service.admission.images or service.admission.bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_bodies_longer_than_announced_or_allowed(
    make_server_on_a_port: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "DISCARD_SECONDS", 10)
    port, body = make_server_on_a_port(max_bytes=1000), PART + picture() + b"\r\n--b--\r\n"
    response = exchange(port, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"more than that\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 400 ")
    assert response.count(b"HTTP/1.1 ") == 1
    expecting = HEAD + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n"
    assert exchange(port, expecting).startswith(b"HTTP/1.1 413 ")
    sending = HEAD + b"Content-Length: 5000000\r\n\r\n" + bytes(5_000_000)
    assert exchange(port, sending).startswith(b"HTTP/1.1 413 ")  # not a reset connection


def test_a_stop_finishes_what_is_under_way(make_server_on_a_port: MakeServer, make_service: MakeService) -> None:
    model = Gated()
    service = make_service(model)
    port = make_server_on_a_port(service=service)
    model.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"http://127.0.0.1:{port}/predict", files={"f": picture("green")}, timeout=20)
        assert model.entered.wait(10)
        RUNNING[port].should_exit = True  # as a signal does
        with pytest.raises(ConnectionRefusedError):  # noqa: PT012
            for _ in range(500):
                with socket.create_connection(("127.0.0.1", port)):
                    time.sleep(0.02)
        assert not asked.done()
        model.gate.set()
        assert asked.result().json()[0]["label"] == "green"


def test_sockets_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--port is 70000, needs 0"):
        bind("127.0.0.1", 70_000)
    with pytest.raises(UsageError, match=r"--host 'no\.such\.host\.invalid' is unknown"):
        bind("no.such.host.invalid", 0)
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(RunError, match=r"port \d+ of 127\.0\.0\.1"):
            bind("127.0.0.1", taken.getsockname()[1])

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(RunError, match=r"port 80 .*1024"):
        bind("127.0.0.1", 80)


def test_addresses() -> None:
    with bind("0.0.0.0", 0) as everywhere, bind("127.0.0.1", 0) as here:
        assert browser_address(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}/"
        assert (is_local(everywhere), is_local(here)) == (False, True)
