"""One connection to the launcher or a supervisor: its messages as they come, and requests matched with replies."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from jobcluster_worker.launcher import wire

log = structlog.get_logger()

BACKLOG_BYTES = 16 << 20
"""With more unsent the peer does not read: it gets no more requests."""


class PeerLost(Exception):
    """The other side closed, or does not read or answer. Whether it acted on a request is not known."""


class Peer:
    """A connected peer. ``on_message`` gets every message that is no reply; ``on_closed`` is called once."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[wire.Message], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._channel = wire.Channel(sock)
        self._on_message = on_message
        self._on_closed = on_closed
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[wire.Message]] = {}
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self.closed = False
        self._loop.add_reader(self._channel.fileno(), self._read)

    @classmethod
    def connect(
        cls, path: Path, on_message: Callable[[wire.Message], None], on_closed: Callable[[], None]
    ) -> Peer:
        """Connects without waiting: a listening unix socket takes the connection at once or not at all.

        :raises OSError: if nobody listens, or as many wait there as may
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock, on_message, on_closed)

    def send(self, message: Mapping[str, Any]) -> None:
        """Queues a message.

        :raises PeerLost: if the connection is closed, or the peer does not read
        :raises OSError: if the message's memfd could not be made
        """
        if self.closed:
            raise PeerLost("closed")
        if self._channel.backlog_bytes > BACKLOG_BYTES:
            raise PeerLost("it does not read")
        self._channel.queue(message)
        self._write()

    async def request(self, message: Mapping[str, Any], timeout_seconds: float) -> wire.Message:
        """Sends a message with an id of its own and gives the reply to it.

        :raises PeerLost: if there is none in time, or the connection is lost before it
        """
        number = next(self._numbers)
        future: asyncio.Future[wire.Message] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self.send({**message, "id": number})
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError:
            raise PeerLost(f"no answer within {timeout_seconds} s") from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Closes the connection; requests under way fail. Again, it does nothing."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PeerLost("closed"))
        self._on_closed()

    def _read(self) -> None:
        try:
            messages = self._channel.receive()
        except (OSError, wire.ProtocolError) as error:
            log.warning("peer_failed", reason=str(error))
            messages = None
        if messages is None:
            self.close()
            return
        for message in messages:
            self._dispatch(message)

    def _dispatch(self, message: wire.Message) -> None:
        if message.get("event") == "reply":
            future = self._waiting.get(message.get("id", 0))
            if future is not None and not future.done():
                future.set_result(message)
        elif not self.closed:
            self._on_message(message)

    def _write(self) -> None:
        try:
            done = self._channel.flush()
        except OSError as error:
            log.warning("peer_failed", reason=str(error))
            self.close()
            return
        if done and self._writing:
            self._loop.remove_writer(self._channel.fileno())
        elif not done and not self._writing:
            self._loop.add_writer(self._channel.fileno(), self._write)
        self._writing = not done
