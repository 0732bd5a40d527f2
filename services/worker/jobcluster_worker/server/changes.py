"""The stream of changes to the controller: a snapshot, then each change as it comes, ends until acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from jobcluster.v1 import worker_pb2 as pb

from jobcluster_worker.launcher.shapes import TaskKey
from jobcluster_worker.server import convert
from jobcluster_worker.server.tasks import MINTED_ATTEMPT, TaskTable

CHANGES_PER_MESSAGE = 256
"""About half a MiB at the most usual sizes of a task's report."""


class Changes:
    """Serves WatchJobs. What waits to be sent is one key per task, however often it changed: bounded by the tasks.

    ``acknowledge`` gets the keys of ends that are durable at the controller.
    """

    def __init__(
        self, table: TaskTable, incarnation: str, acknowledge: Callable[[list[TaskKey]], None]
    ) -> None:
        self._table = table
        self._incarnation = incarnation
        self._acknowledge = acknowledge
        self.known = asyncio.Event()
        """Set once every task that may live is in the table: before that no snapshot is complete."""
        self._current: _Stream | None = None

    async def watch(
        self, requests: AsyncIterator[pb.WatchJobsRequest]
    ) -> AsyncGenerator[pb.WatchJobsResponse, None]:
        """One stream, until the controller leaves or opens another one."""
        await self.known.wait()
        stream = _Stream(secrets.token_hex(8))
        if self._current is not None:
            # One controller has one stream: the older one is a connection that it has given up.
            self._current.close()
        self._current = stream
        reader = asyncio.create_task(self._read(requests, stream))
        try:
            with self._table.listening(stream.note):
                for key in self._table:
                    stream.note(key)
                stream.snapshot_left = len(stream.dirty)
                async with aclosing(self._messages(stream)) as messages:
                    async for message in messages:
                        yield message
        finally:
            if self._current is stream:
                self._current = None
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _messages(self, stream: _Stream) -> AsyncGenerator[pb.WatchJobsResponse, None]:
        complete = False
        while stream.open:
            changes = [pb.JobChange(sequence=n, task=t) for n, t in self._next(stream)]
            now_complete = not complete and stream.snapshot_left <= 0
            complete = complete or now_complete
            if changes or now_complete:
                yield pb.WatchJobsResponse(
                    stream_id=stream.stream_id,
                    incarnation=self._incarnation,
                    changes=changes,
                    snapshot_complete=now_complete,
                )
            elif not stream.dirty:
                # No await lies between the look and this: no change is missed.
                stream.wake.clear()
                await stream.wake.wait()

    def _next(self, stream: _Stream) -> list[tuple[int, convert.TaskStatus]]:
        """At most a message's worth of changes, in the order in which they happened, each task as it is now."""
        taken: list[tuple[int, convert.TaskStatus]] = []
        while stream.dirty and len(taken) < CHANGES_PER_MESSAGE:
            key = next(iter(stream.dirty))
            del stream.dirty[key]
            stream.snapshot_left -= 1
            entry = self._table.get(key)
            if entry is None or key[2] == MINTED_ATTEMPT:
                continue
            sequence = next(stream.numbers)
            if entry.ended:
                stream.ends[sequence] = key
            taken.append((sequence, convert.task_to_proto(entry.task)))
        return taken

    async def _read(self, requests: AsyncIterator[pb.WatchJobsRequest], stream: _Stream) -> None:
        try:
            async for request in requests:
                if request.stream_id == stream.stream_id:
                    self._acknowledge(stream.acknowledged(request.acknowledged_sequence))
        finally:
            # The other side has closed its half: nobody would acknowledge what we still send.
            stream.close()


class _Stream:
    """What one stream has sent and still has to send."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.numbers = itertools.count(1)
        self.dirty: dict[TaskKey, None] = {}
        self.ends: dict[int, TaskKey] = {}
        """Ends that were sent and not acknowledged, by their sequence, which grows."""
        self.wake = asyncio.Event()
        self.open = True
        self.snapshot_left = 0
        """Of the tasks known at its beginning, which are the first in ``dirty``, how many were not sent."""

    def note(self, key: TaskKey) -> None:
        self.dirty.setdefault(key)
        self.wake.set()

    def close(self) -> None:
        self.open = False
        self.wake.set()

    def acknowledged(self, sequence: int) -> list[TaskKey]:
        """The ends up to ``sequence``, once."""
        done = list(itertools.takewhile(lambda number: number <= sequence, self.ends))
        return [self.ends.pop(number) for number in done]
