"""What waits to be sent to one worker: starts in batches, stops one by one; kept until it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from jobcluster_common.logs import own_context

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Batch = dict[K, V]


class Outbox(Generic[K, V]):
    """Sends items in batches; what comes while a batch is under way goes with the next one.

    A batch that is not answered within ``patience_seconds`` does not hold the next one back, up to ``flights_max``
    at once. Items of a batch whose ``send`` raises one of ``retryable`` are kept, and sent again after
    ``retry_seconds``.
    """

    def __init__(
        self,
        send: Callable[[Batch[K, V]], Awaitable[None]],
        take: Callable[[Batch[K, V]], Batch[K, V]],
        retryable: tuple[type[Exception], ...],
        *,
        patience_seconds: float = 0.02,
        flights_max: int = 8,
        retry_seconds: float = 1.0,
    ) -> None:
        self._send = send
        self._take = take
        self._retryable = retryable
        self._patience_seconds = patience_seconds
        self._flights_max = flights_max
        self._retry_seconds = retry_seconds
        self._pending: Batch[K, V] = {}
        self._flights: dict[asyncio.Task[None], float] = {}
        self._retries: set[asyncio.TimerHandle] = set()
        self._next_flush: asyncio.Handle | None = None
        self._open = False
        self._loop = asyncio.get_running_loop()
        # A batch is sent for many requests, so for none of them.
        self._context = own_context()

    def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        """Forgets all that waits, and ends what is under way: its fate is unknown."""
        self._open = False
        self._pending.clear()
        for handle in [*self._retries, *([self._next_flush] if self._next_flush else [])]:
            handle.cancel()
        self._retries.clear()
        self._next_flush = None
        flights = list(self._flights)
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def put(self, key: K, item: V) -> None:
        """Sends it at the loop's next turn, together with all that comes till then. Closed: it is dropped."""
        if self._open:
            self._pending[key] = item
            self._wake()

    def drop(self, key: K) -> None:
        """Not to be sent after all, if it has not gone yet."""
        self._pending.pop(key, None)

    def _wake(self) -> None:
        if self._next_flush is None:
            self._next_flush = self._loop.call_soon(self._flush, context=self._context)

    def _flush(self) -> None:
        self._next_flush = None
        now = self._loop.time()
        while self._pending and self._open and len(self._flights) < self._flights_max:
            newest = max(self._flights.values(), default=0.0)
            if self._flights and now - newest < self._patience_seconds:
                self._next_flush = self._loop.call_at(newest + self._patience_seconds, self._flush)
                return
            batch = self._take(self._pending)
            flight = self._loop.create_task(self._fly(batch))
            self._flights[flight] = now
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        del self._flights[flight]
        if self._pending and self._open:
            if self._next_flush is not None:
                self._next_flush.cancel()
                self._next_flush = None
            self._wake()
        if not flight.cancelled() and (error := flight.exception()) is not None:
            self._loop.call_exception_handler({"message": "sending to a worker failed", "exception": error})

    async def _fly(self, batch: Batch[K, V]) -> None:
        try:
            await self._send(batch)
        except self._retryable:
            if self._open:
                self._retry_later(batch)

    def _retry_later(self, batch: Batch[K, V]) -> None:
        def again() -> None:
            self._retries.discard(timer)
            for key, item in batch.items():
                self.put(key, self._pending.get(key, item))

        timer = self._loop.call_later(self._retry_seconds, again)
        self._retries.add(timer)
