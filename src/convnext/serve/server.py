"""The process: a socket that is bound before the model is loaded, and a stop that finishes requests in progress."""

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn

from convnext.errors import RunError, UsageError
from convnext.inference.inputs import pillow_warnings
from convnext.serve.app import create_app
from convnext.serve.service import Service

BACKLOG = 512  # connections that wait to be accepted
KEEP_ALIVE_SECONDS = 10
SPARE_SECONDS = 5  # after a request's time limit, until a stop cancels what is still in progress


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that does not listen yet: connections are refused until the model is ready.

    Raises:
        UsageError: the host is unknown or another machine's, or the port is out of range.
        RunError: the port is in use, or needs more rights.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}, needs 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host!r} is unknown ({error}): pass a name or address of this machine, or 0.0.0.0 for all"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host} is another machine: pass 127.0.0.1, or 0.0.0.0 for all") from error
        hint = "a --port from 1024" if error.errno in (errno.EACCES, errno.EPERM) else "another --port"
        raise RunError(f"cannot listen on port {port} of {host}: {error.strerror}; choose {hint}") from error
    return listener


def browser_address(listener: socket.socket) -> str:
    """Return the URL for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_local(listener: socket.socket) -> bool:
    """True if only this machine can reach a socket."""
    host = listener.getsockname()[0]
    return host.startswith("127.") or host == "::1"


def make_server(service: Service) -> uvicorn.Server:
    """Return a server to be run on sockets; the caller closes the service."""
    config = uvicorn.Config(
        create_app(service),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(service.limits.timeout + SPARE_SECONDS),
    )
    return uvicorn.Server(config)


def serve(service: Service, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in progress are then finished within their time limit.

    ``announce`` is called once connections are accepted. The service is closed at the end.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of clients' mistakes
    server = make_server(service)
    try:
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal once more after its shutdown: the default handler would kill the process.
            signal.signal(signal.SIGTERM, server.handle_exit)
        listener.listen(BACKLOG)
        announce()
        with pillow_warnings():
            server.run(sockets=[listener])
    except KeyboardInterrupt:
        outcome = "Requests in progress were cut off." if server.force_exit else "Requests in progress were answered."
        raise KeyboardInterrupt(f"Stopped. {outcome}") from None
    finally:
        service.close()
