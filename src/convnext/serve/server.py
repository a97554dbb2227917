"""The process: a socket that is bound before the network is loaded, and a stop that finishes what is under way."""

import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from convnext.errors import RunError, UsageError
from convnext.inference.inputs import pillow_warnings
from convnext.serve.app import create_app
from convnext.serve.connection import Connection
from convnext.serve.service import Service

BACKLOG = 512  # connections that wait to be accepted
KEEP_ALIVE = 10  # seconds that a connection is kept for the next request
SPARE_SECONDS = 5  # beyond a request's time limit, until what is under way at a stop is cut off


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: who comes is turned away until the network is ready.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        UsageError: the host is not known or not this machine's, or the port is out of range.
        RunError: the port is in use, or not to be had by this user.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}, needs 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host!r} is unknown ({error}): name this machine, or 0.0.0.0 for all ways to it"
        ) from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise cannot_bind(host, port, error) from error
    return bound


def cannot_bind(host: str, port: int, error: OSError) -> UsageError | RunError:
    """The error for a socket that could not be bound."""
    if error.errno == errno.EADDRINUSE:
        return RunError(f"port {port} of {host} is in use: stop what uses it, or take another with --port")
    if error.errno in (errno.EACCES, errno.EPERM):
        return RunError(f"port {port} is not to be had without more rights: take one from 1024 on with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"--host {host} is no address of this machine: 127.0.0.1 is, or 0.0.0.0 for all of them")
    return RunError(f"cannot listen on port {port} of {host}: {error.strerror}")


def address_of(bound: socket.socket) -> str:
    """What a browser on this machine opens."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_local(bound: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    host = bound.getsockname()[0]
    return host.startswith("127.") or host == "::1"


class Server(uvicorn.Server):
    """uvicorn's, which tells when it listens, and of which SIGTERM is the ordinary end.

    Args:
        config: uvicorn's.
        ready: called once it listens.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stop on SIGTERM and Ctrl-C.

        Raises:
            KeyboardInterrupt: it was Ctrl-C; all has been answered.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        interrupted = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted |= number == signal.SIGINT
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if interrupted:
            cut = "What was under way was cut off." if self.force_exit else "What was under way has been answered."
            raise KeyboardInterrupt(f"Stopped. {cut}")


def make_server(service: Service, ready: Callable[[], None] = lambda: None) -> Server:
    """A server of a service, to be run on sockets.

    Args:
        service: which answers; who made it closes it.
        ready: called once it listens.
    """
    config = uvicorn.Config(
        create_app(service),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(service.limits.timeout + SPARE_SECONDS),
    )
    return Server(config, ready)


def serve(service: Service, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; what is under way then is finished, within the time of a request.

    Args:
        service: which answers; it is closed in the end.
        bound: where to listen.
        ready: called once it listens.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # which warns of clients' mistakes
    try:
        with pillow_warnings():
            make_server(service, ready).run(sockets=[bound])
    finally:
        service.close()
