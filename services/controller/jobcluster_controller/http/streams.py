"""A job's output as one stream of bytes in one form: opened, merged over its tasks, and truly ended or cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ..domain.job import Job
from ..domain.query import OutputChunk, OutputCut, OutputEnd, OutputItem, OutputQuery
from ..schemas.render import end_document
from .doors import Doors
from .forms import Form
from .live import Pull

# After the last byte the job's own end is committed within this time, or the stream is cut.
END_SECONDS_MAX = 30.0


class OpenedOutput:
    """Output of tasks, opened: its errors have been raised, or it is known that they may still come."""

    def __init__(
        self, doors: Doors, job_id: str, query: OutputQuery, pulls: Mapping[int, Pull[OutputItem]]
    ) -> None:
        self._doors = doors
        self._job_id = job_id
        self._query = query
        self._pulls = dict(pulls)

    @classmethod
    async def open(
        cls, doors: Doors, job_id: str, offsets: Mapping[int, int], query: OutputQuery
    ) -> OpenedOutput:
        """Opens the tasks named in ``offsets``, each at its offset.

        An error that comes at once is raised here, where it can still become a status; a queued job that is followed
        says nothing yet, and does not hold the headers back for longer than ``patience_seconds``.

        :raises JobclusterError: as ``JobService.open_output``.
        """
        pulls = {
            rank: Pull(
                doors.jobs.open_output(
                    job_id,
                    rank,
                    OutputQuery(query.stream, offset, query.follow, query.tail_lines, query.limit_bytes),
                )
            )
            for rank, offset in offsets.items()
        }
        opened = cls(doors, job_id, query, pulls)
        try:
            tasks = [pull.asked() for pull in pulls.values()]
            patience = doors.patience_seconds if query.follow else None
            await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        except BaseException:
            await opened.close()
            raise
        return opened

    async def first(self) -> OutputItem:
        """The first item of the only task."""
        (pull,) = self._pulls.values()
        return await pull.next()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The only task's bytes, to the end. A follower's end is the task's end.

        :raises OutputCut: if it breaks off before.
        """
        (pull,) = self._pulls.values()
        try:
            while True:
                item = await pull.next()
                if isinstance(item, OutputChunk):
                    yield item.data
                elif isinstance(item, OutputEnd):
                    self._check(item)
                    return
        except StopAsyncIteration:
            raise OutputCut(-1, "its worker's stream ended without an end") from None
        finally:
            await self.close()

    async def formed(self, form: Form) -> AsyncGenerator[bytes, None]:
        """All tasks' output in ``form``, then how the job ended.

        :raises OutputCut: if one of them breaks off before.
        """
        try:
            async with contextlib.aclosing(self._merged()) as merged:
                async for rank, item in merged:
                    if isinstance(item, OutputChunk):
                        yield form.output(rank, item)
                    elif isinstance(item, OutputEnd):
                        self._check(item)
                    elif item is None and form.heartbeat:
                        yield form.heartbeat
            last = form.end(end_document(await self._ended(), self._query.stream))
            if last:
                yield last
        finally:
            await self.close()

    async def close(self) -> None:
        for pull in self._pulls.values():
            await pull.close()

    def _check(self, end: OutputEnd) -> None:
        if self._query.follow and not end.complete:
            raise OutputCut(end.offset, "it stopped before the task's end")

    async def _ended(self) -> Job:
        if not self._query.follow:
            return await self._doors.jobs.get(self._job_id)
        job = await self._doors.jobs.wait(self._job_id, END_SECONDS_MAX)
        if not job.done:
            raise OutputCut(-1, "its output has ended, but the job's end is not known")
        return job

    async def _merged(self) -> AsyncGenerator[tuple[int, OutputItem | None], None]:
        """Items of all tasks as they come, at most one held per task; None after a silence."""
        open_pulls = dict(self._pulls)
        while open_pulls:
            asked = {pull.asked(): rank for rank, pull in open_pulls.items()}
            done, _ = await asyncio.wait(
                asked, timeout=self._doors.heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                yield -1, None
            for rank in sorted(asked[task] for task in done):
                try:
                    item = await open_pulls[rank].next()
                except StopAsyncIteration:
                    raise OutputCut(-1, "its worker's stream ended without an end") from None
                if isinstance(item, OutputEnd):
                    del open_pulls[rank]
                yield rank, item


async def of_new_job(
    doors: Doors, form: Form, document: Mapping[str, Any], stream: str = "merged"
) -> AsyncGenerator[bytes, None]:
    """What a POST that streams gives: the job, then all its output as it comes, then its end.

    :raises OutputCut: if it breaks off before.
    :raises JobclusterError: if its output cannot be opened.
    """
    first = form.job(document)
    if first:
        yield first
    offsets = {task["rank"]: 0 for task in document["tasks"]}
    opened = await OpenedOutput.open(doors, document["job_id"], offsets, OutputQuery(stream, follow=True))
    try:
        async with contextlib.aclosing(opened.formed(form)) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        await opened.close()
