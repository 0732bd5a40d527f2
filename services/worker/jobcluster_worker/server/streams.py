"""StreamJob: one task's output from an offset on, as messages. A stream without OutputEnd was cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import cast

from jobcluster.v1 import worker_pb2 as pb
from jobcluster_common.errors import BadRequest, Gone, NotFound, RangeNotSatisfiable, Unavailable

from jobcluster_worker.launcher.shapes import Task, TaskKey
from jobcluster_worker.output.follow import IndexWatch, follow, snapshot
from jobcluster_worker.output.reader import WINDOW_BYTES, OutputReader
from jobcluster_worker.server import convert
from jobcluster_worker.server.remains import Remains
from jobcluster_worker.server.tasks import TaskTable

WINDOWS_BYTES = 2 << 20
"""All streams together hold about so much of output, and grpc as much again while it sends: many get small pieces."""
LEAST_WINDOW_BYTES = 16 << 10


class Streams:
    """Opens outputs. Holds nothing per stream but a window and two descriptors."""

    def __init__(self, table: TaskTable, remains: Remains, watch: IndexWatch) -> None:
        self._table = table
        self._remains = remains
        self._watch = watch
        self._open = 0

    def window(self) -> int:
        """Bytes of one piece, now that so many streams are open."""
        return max(LEAST_WINDOW_BYTES, min(WINDOW_BYTES, WINDOWS_BYTES // max(1, self._open)))

    async def open(
        self, key: TaskKey, request: pb.StreamJobRequest
    ) -> AsyncGenerator[pb.StreamJobResponse, None]:
        """First a message with OutputStart, then output, last one with OutputEnd.

        :raises NotFound, Gone, RangeNotSatisfiable, BadRequest, Unavailable: before the first message
        """
        changed = asyncio.Event()
        with self._table.watching(key, changed):
            reader = await self._reader(key, request.stream or "merged", changed)
            if reader is None:
                for message in self._nothing(key, request):
                    yield message
                return
            self._open += 1
            try:
                with reader:
                    async with aclosing(self._messages(key, request, reader, changed)) as messages:
                        async for message in messages:
                            yield message
            finally:
                self._open -= 1

    async def _messages(
        self, key: TaskKey, request: pb.StreamJobRequest, reader: OutputReader, changed: asyncio.Event
    ) -> AsyncGenerator[pb.StreamJobResponse, None]:
        offset = request.offset
        if request.HasField("tail_lines"):
            offset = await asyncio.to_thread(reader.tail_offset, request.tail_lines)
        # Before the look for its end: a task that is known of no more after that may have been sealed in between.
        grows = self._may_grow(key)
        final = reader.sealed() is not None
        size = reader.size()
        if offset > size:
            raise RangeNotSatisfiable(f"offset {offset} is beyond the end of {reader.stream}: {size}")
        yield pb.StreamJobResponse(
            offset=offset, start=pb.OutputStart(offset=offset, size_bytes=size, complete=final)
        )
        limit = request.limit_bytes or None
        if request.snapshot or final or not grows:
            end = size if limit is None else min(size, offset + limit)
            async for at, data in snapshot(reader, offset, end, self.window):
                yield pb.StreamJobResponse(output=data, offset=at)
                offset = at + len(data)
        else:
            with ExitStack() as watching:
                try:
                    watching.enter_context(self._watch.changes(reader.index_fd, changed))
                except OSError as error:
                    raise Unavailable(f"the output cannot be followed: {error}") from error
                ended = partial(self._ended, key)
                async for at, data in follow(reader, changed, offset, limit, ended, self.window):
                    yield pb.StreamJobResponse(output=data, offset=at)
                    offset = at + len(data)
        yield self._end(key, reader, offset)

    async def _reader(self, key: TaskKey, stream: str, changed: asyncio.Event) -> OutputReader | None:
        """Waits for the output of a task that is being prepared; None if it ended without one."""
        while True:
            changed.clear()
            ended = self._ended(key)
            try:
                return OutputReader(self._remains.directory(key), stream)
            except ValueError as error:
                raise BadRequest(str(error)) from None
            except FileNotFoundError:
                if ended:
                    return None
                if self._table.get(key) is None:
                    raise NotFound(f"no output of job {key[0]} on this worker") from None
            await changed.wait()

    def _end(self, key: TaskKey, reader: OutputReader, offset: int) -> pb.StreamJobResponse:
        sealed = reader.sealed()
        entry = self._table.get(key)
        task = cast("Task | None", sealed) or (entry.task if entry is not None else None)
        complete = sealed is not None and offset == reader.size()
        if sealed is None and self._ended(key):
            # The disk was full to the last: what was kept is all there is, if the totals agree.
            complete = entry is not None and offset == _kept_bytes(entry.task, reader.stream)
        status = None if task is None else convert.task_to_proto(task)
        return pb.StreamJobResponse(
            offset=offset, end=pb.OutputEnd(offset=offset, complete=complete, task=status)
        )

    def _nothing(self, key: TaskKey, request: pb.StreamJobRequest) -> list[pb.StreamJobResponse]:
        entry = self._table.get(key)
        if entry is None:
            raise Gone(f"the output of job {key[0]} is gone")
        if request.offset:
            raise RangeNotSatisfiable(f"offset {request.offset} is beyond the end of an output of 0 bytes")
        end = pb.OutputEnd(complete=True, task=convert.task_to_proto(entry.task))
        return [
            pb.StreamJobResponse(start=pb.OutputStart(complete=True)),
            pb.StreamJobResponse(end=end),
        ]

    def _may_grow(self, key: TaskKey) -> bool:
        """Not if nobody here knows of the task any more: its output stays without an end."""
        return self._table.get(key) is not None or self._remains.is_claimed(key)

    def _ended(self, key: TaskKey) -> bool:
        entry = self._table.get(key)
        return entry is not None and entry.ended


def _kept_bytes(task: Task, stream: str) -> int | None:
    """None if nobody counted them."""
    output = task["output"]
    totals = {"merged": output["merged"], "stdout": output["stdout"], "stderr": output["stderr"]}
    return totals[stream]["bytes"] if totals[stream]["sha256"] else None
