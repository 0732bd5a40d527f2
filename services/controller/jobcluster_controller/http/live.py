"""Answers that last. What breaks off must not look like an end: no terminating chunk, the connection is reset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import structlog
from jobcluster_common.errors import JobclusterError
from starlette.types import Receive, Scope, Send

from ..domain.query import OutputCut
from .call import ClientGone, unless_gone
from .doors import Doors

log = structlog.get_logger()

ABORT_EXTENSION = "jobcluster.abort"
T = TypeVar("T")


class Pull(Generic[T]):
    """An asynchronous iterator whose next item can be asked for ahead and awaited by whoever comes, without losing it.

    It holds one item at most: what is not asked for stays where it is, down to the file.
    """

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._pending: asyncio.Task[T] | None = None

    async def next(self) -> T:
        """:raises StopAsyncIteration: at the end."""
        if self._pending is None:
            return await anext(self._items)
        try:
            return await asyncio.shield(self._pending)
        finally:
            if self._pending.done():
                self._pending = None

    def asked(self) -> asyncio.Task[T]:
        """The task of the next item; ``next`` takes its result."""
        if self._pending is None:
            self._pending = asyncio.create_task(_item(self._items))
        return self._pending

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)
            self._pending = None
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await close()


async def _item(items: AsyncIterator[T]) -> T:
    return await anext(items)


class LiveStream:
    """An ASGI answer from a generator of bytes. It pulls: nothing is read that the client has not made room for."""

    def __init__(
        self,
        doors: Doors,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Mapping[str, str] | None = None,
        status: int = 200,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``close`` is called in any case, also when the generator was never begun and so cannot clean up."""
        self._doors = doors
        self._chunks = chunks
        self._close = close
        self._status = status
        given = {"content-type": media_type, "x-accel-buffering": "no", **(headers or {})}
        self._headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in given.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = self._doors.metrics
        metrics.streams.inc()
        try:
            with self._doors.live.entered():
                await unless_gone(receive, self._send(scope, send))
        except ClientGone:
            raise
        except BaseException as error:
            metrics.cuts.inc()
            if isinstance(error, OutputCut | JobclusterError | TimeoutError):
                log.warning("stream_cut", reason=str(error) or "the reader took nothing")
            elif isinstance(error, Exception):
                log.error("stream_failed", exc_info=error)
            if not await _aborted(scope, receive):
                raise
        finally:
            metrics.streams.dec()
            if self._close is not None:
                await self._close()

    async def _send(self, scope: Scope, send: Send) -> None:
        async with contextlib.aclosing(self._chunks):
            await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
            if scope["method"] != "HEAD":
                async for chunk in self._chunks:
                    # uvicorn's send waits while the client's buffer is full, before it takes the next chunk.
                    async with asyncio.timeout(self._doors.send_seconds):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _aborted(scope: Scope, receive: Receive) -> bool:
    """Resets the connection where the server lets us, and waits until it is gone."""
    abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is None:
        return False
    abort()
    while (await receive())["type"] != "http.disconnect":
        pass
    return True
