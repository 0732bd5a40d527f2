"""A TCP proxy that harms what passes through: it resets, ends or freezes connections after so many bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

_READ_BYTES = 16 << 10
_RESET = struct.pack("ii", 1, 0)


class Harm(StrEnum):
    RST = "rst"
    FIN = "fin"
    FREEZE = "freeze"
    """Nothing passes any more, in either direction, and nobody is told."""


class Proxy:
    """Forwards to ``target``, in a thread of its own. ``harm`` arms it for connections that are open or come.

    Each armed time harms one connection: the first whose answer has so many more bytes.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._armed: list[tuple[Harm, int]] = []
        # Held here: nobody else knows of a frozen one, and a task that nobody holds is collected, its sockets closed.
        self._links: set[asyncio.Task[None]] = set()
        self.harmed = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def harm(self, kind: Harm, after_bytes: int) -> None:
        """The next connection that has forwarded ``after_bytes`` of answers (counted from now) suffers it."""
        self._loop.call_soon_threadsafe(self._armed.append, (kind, after_bytes))

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._came, "127.0.0.1", 0, limit=_READ_BYTES)

    async def _end(self) -> None:
        self._server.close()
        # Until none is left: one that is just being accepted gets its link a moment later.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for link in self._links:
                link.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def _came(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        link = self._loop.create_task(self._serve(near, to_near))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _serve(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        async with _closing(to_near):
            try:
                far, to_far = await asyncio.open_connection(*self._target, limit=_READ_BYTES)
            except OSError:
                _reset(to_near)
                return
            async with _closing(to_far):
                await self._forward(near, to_near, far, to_far)

    async def _forward(
        self,
        near: asyncio.StreamReader,
        to_near: asyncio.StreamWriter,
        far: asyncio.StreamReader,
        to_far: asyncio.StreamWriter,
    ) -> None:
        """Until one of them ends; for ever once it is frozen."""
        frozen = asyncio.Event()
        ways = (
            asyncio.create_task(self._pump(near, to_far, None, frozen)),
            asyncio.create_task(self._pump(far, to_near, to_far, frozen)),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if frozen.is_set():
                await asyncio.Event().wait()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        other: asyncio.StreamWriter | None,
        frozen: asyncio.Event,
    ) -> None:
        """``other`` is the writer of the other way, given for answers: those are what harm counts."""
        with contextlib.suppress(OSError):
            while data := await source.read(_READ_BYTES):
                if frozen.is_set():
                    return
                left, kind = self._passing(len(data)) if other is not None else (len(data), None)
                sink.write(data[:left])
                await sink.drain()
                if kind is not None and other is not None:
                    self._do(kind, sink, other, frozen)
                    return

    def _passing(self, size: int) -> tuple[int, Harm | None]:
        """How much of so many bytes of an answer may pass, and what happens then."""
        if not self._armed:
            return size, None
        kind, left = self._armed[0]
        if left > size:
            self._armed[0] = (kind, left - size)
            return size, None
        self._armed.pop(0)
        return left, kind

    def _do(
        self, kind: Harm, near: asyncio.StreamWriter, far: asyncio.StreamWriter, frozen: asyncio.Event
    ) -> None:
        self.harmed += 1
        if kind is Harm.FREEZE:
            frozen.set()
        elif kind is Harm.RST:
            for writer in (near, far):
                _reset(writer)


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Ends it in good order, or at once when the proxy itself ends."""
    try:
        yield
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextlib.contextmanager
def proxy_to(host: str, port: int) -> Iterator[Proxy]:
    proxy = Proxy((host, port))
    try:
        yield proxy
    finally:
        proxy.close()
