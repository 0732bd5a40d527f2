"""uvicorn as a task of the controller's loop: TLS 1.3, no signal handlers of its own, bounded headers, true resets."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from jobcluster_common import logs
from jobcluster_common.errors import BadRequest, JobclusterError
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .live import ABORT_EXTENSION
from .problems import HeadersTooLarge, RequestTimeout, problem

HEADER_BYTES_MAX = 16 << 10
_TOO_LARGE = f"the request line and headers have more than {HEADER_BYTES_MAX} bytes"
HEADER_SECONDS_MAX = 20.0
KEEP_ALIVE_SECONDS = 75
STOP_SECONDS_MAX = 5
# What a connection may hold of an answer that its client does not take; asyncio's own mark for TLS is 512 KiB.
WRITE_BUFFER_BYTES = 16 << 10
# Each TLS connection makes a read buffer of this size at once, and asyncio's 256 KiB are more than requests need.
asyncio.sslproto.SSLProtocol.max_size = 8 << 10


class Protocol(HttpToolsProtocol):
    """uvicorn's, with limits on what comes before the body, and a reset for answers that break off."""

    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        # Below TLS there is a second buffer, with a mark of its own, to which asyncio has no public way.
        below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        if below is not None:
            below.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._expect_headers()
        # Its type knows the standard's extensions only, whose values are dictionaries.
        self.scope["extensions"] = cast(Any, {ABORT_EXTENSION: self._abort})

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._headers_came()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES_MAX:
            raise HeadersTooLarge(_TOO_LARGE)

    def _expect_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS_MAX, self._headers_are_late)

    def _headers_came(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        if not self.transport.is_closing():
            self._refuse(
                RequestTimeout(f"the request's headers did not come within {HEADER_SECONDS_MAX:g} s")
            )

    def send_400_response(self, msg: str) -> None:
        """What could not be parsed as HTTP is a problem document too."""
        large = self._header_bytes > HEADER_BYTES_MAX
        self._refuse(HeadersTooLarge(_TOO_LARGE) if large else BadRequest("not a valid HTTP request"))

    def _refuse(self, error: JobclusterError) -> None:
        request_id = logs.request_id(None)
        status, headers, body = problem(error, request_id)
        headers |= {"content-length": str(len(body)), "connection": "close", "x-request-id": request_id}
        lines = [
            STATUS_LINE[status],
            *(f"{name}: {value}\r\n".encode() for name, value in headers.items()),
            b"\r\n",
        ]
        self.transport.write(b"".join([*lines, body]))
        self.transport.close()

    def _abort(self) -> None:
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            # Closing then sends RST instead of FIN: a reader cannot take it for an end (socket(7), SO_LINGER).
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class HttpServer(uvicorn.Server):
    """Serves one application on one socket until ``stop``."""

    def __init__(self, app: ASGIApp, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                reset_contextvars=True,  # else a request is begun with the ids of the one before it
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS_MAX,
                ssl_context_factory=None if context is None else (lambda _config, _default: context),
            )
        )
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        self._serving: asyncio.Task[None] | None = None
        self._began = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The controller owns the signals: two owners would each undo what the other does."""
        yield

    async def start(self) -> None:
        """Serves from now on.

        :raises OSError: if the socket cannot be served.
        """
        self._serving = asyncio.create_task(self.serve([self._listener]))
        began = asyncio.create_task(self._began.wait())
        await asyncio.wait({self._serving, began}, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        if self._serving.done():
            self._serving.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._began.set()

    async def stop(self) -> None:
        """Takes no new connection, lets answers finish for a few seconds, then cuts them."""
        self.should_exit = True
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)


def listen(address: str) -> socket.socket:
    """A bound socket for host:port.

    :raises OSError: if it cannot be bound.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, int(port)), family=family, backlog=1024)
    # Accepted sockets inherit it. asyncio sets it only on sockets made with IPPROTO_TCP, which this is not; without it
    # the second write of an answer waits for the client's delayed ACK: 40 ms a call.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def tls_context(crt_file: str, key_file: str) -> ssl.SSLContext:
    """TLS 1.3 only.

    :raises OSError: if the files cannot be read or do not fit each other (``ssl.SSLError`` is one).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(crt_file, key_file)
    return context
