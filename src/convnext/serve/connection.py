"""A connection that gives up on clients who dawdle: uvicorn's own puts no limits on a request's head."""

import json
import sys
from asyncio import TimerHandle, Transport
from functools import cache
from http import HTTPStatus
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10  # for a request's line and headers to come
HEAD_BYTES = 64 * 2**10
FETCH_SECONDS = 60  # for an answer to be fetched
MOST_CONNECTIONS = 1024


@cache
def most_connections() -> int:
    """Connections at a time: half of the files that the process may open, so that there is always one to be had."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(1, min(MOST_CONNECTIONS, files // 2))


class Connection(HttpToolsProtocol):
    """One client's connection.

    It ends when a request's head is too long or has not come in time, when an answer is not fetched, and at once where
    there are too many.
    """

    in_head = True  # the next bytes are a head's
    head_bytes = 0  # while in a head: its bytes, but for those that came along with what was before
    deadline: TimerHandle | None = None  # by which a head is to be there

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self.cut(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
        else:
            self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self.stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self.head_bytes += len(data)
        super().data_received(data)
        if self.in_head:
            if self.head_bytes > HEAD_BYTES:
                self.cut(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head of more than {HEAD_BYTES:,} bytes")
            elif self.is_idle:
                self.expect_head()

    def on_headers_complete(self) -> None:
        """A head is there."""
        self.in_head = False
        self.stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A body is there; a head may follow."""
        self.in_head, self.head_bytes = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is on its way."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(FETCH_SECONDS, self.abort_unfetched, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self.cut(HTTPStatus.BAD_REQUEST, msg[:1].lower() + msg[1:].rstrip("."))

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def expect_head(self) -> None:
        """Begin to wait for a head, unless that has begun."""
        if self.deadline is None and not self.transport.is_closing():
            self.deadline = self.loop.call_later(
                HEAD_SECONDS, self.cut, HTTPStatus.REQUEST_TIMEOUT, f"no request within {HEAD_SECONDS} s"
            )

    def stop_waiting(self) -> None:
        """No head is waited for any more."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def cut(self, status: HTTPStatus, reason: str) -> None:
        """Say why, where an answer may still be given, and end the connection."""
        self.stop_waiting()
        if self.transport.is_closing():
            return
        if self.is_idle or not self.cycle.response_started:
            body = json.dumps({"error": reason})
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write((head + body).encode())
        self.transport.close()

    def abort_unfetched(self, cycle: object) -> None:
        """End the connection where the answer of back then still has not been fetched."""
        if self.cycle is cycle and cast("Transport", self.transport).get_write_buffer_size():
            self.transport.abort()
