"""The store's twin in memory: the same promises without durability. For tests, and for those who want to see."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from jobcluster_common.errors import Internal

from ..domain.job import Job
from ..domain.query import JobFilter
from ..domain.worker import Worker
from . import cursor
from .protocol import IDEMPOTENCY_LIFETIME, IdempotencyKey, Repeat

T = TypeVar("T")


class MemoryStore:
    """A Store that forgets at its end. A write is seen at once and acknowledged at the loop's next turn."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._numbers: dict[str, int] = {}
        self._workers: dict[str, Worker] = {}
        self._keys: dict[tuple[str, str, str], tuple[IdempotencyKey, str]] = {}
        self._next = 1

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> asyncio.Future[Repeat | None]:
        repeat = self._find(key) if key is not None else None
        if repeat is None:
            self._jobs[job.job_id] = job
            self._numbers[job.job_id] = self._next
            self._next += 1
            if key is not None:
                self._keys[key.identity] = (key, job.job_id)
        return _done(repeat)

    def save(
        self, jobs: Sequence[Job] = (), workers: Sequence[Worker] = (), lazy: bool = False
    ) -> asyncio.Future[None]:
        unknown = [job.job_id for job in jobs if job.job_id not in self._jobs]
        if unknown:
            return failed(Internal(f"{len(unknown)} of {len(jobs)} jobs to save are not in the store"))
        self._jobs.update({job.job_id: job for job in jobs})
        for worker in workers:
            self._workers[worker.worker_id] = worker
        return _done(None)

    def forget(self, keys_before: datetime, worker_ids: Sequence[str] = ()) -> asyncio.Future[None]:
        self._keys = {i: v for i, v in self._keys.items() if v[0].created_at > keys_before}
        for worker_id in worker_ids:
            self._workers.pop(worker_id, None)
        return _done(None)

    async def job(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        return job.evolve(queue_reason=None) if job else None

    async def repeat(self, key: IdempotencyKey) -> Repeat | None:
        return self._find(key)

    async def list_jobs(self, which: JobFilter) -> tuple[list[Job], str | None]:
        before = cursor.decode(which.cursor)
        found = [
            job
            for job_id, job in reversed(self._jobs.items())
            if self._numbers[job_id] < before and _matches(job, which)
        ]
        shown = found[: which.limit]
        following = cursor.encode(self._numbers[shown[-1].job_id]) if len(found) > len(shown) > 0 else None
        return [job.evolve(queue_reason=None) for job in shown], following

    async def active_jobs(self) -> list[Job]:
        return [job.evolve(queue_reason=None) for job in self._jobs.values() if not job.done]

    async def workers(self) -> list[Worker]:
        return [self._workers[worker_id] for worker_id in sorted(self._workers)]

    async def close(self) -> None:
        """Nothing to let go of."""

    def _find(self, key: IdempotencyKey) -> Repeat | None:
        found = self._keys.get(key.identity)
        if found is None or found[0].created_at <= key.created_at - IDEMPOTENCY_LIFETIME:
            return None
        return Repeat(found[1], found[0].body_hash)


def _matches(job: Job, which: JobFilter) -> bool:
    return (
        (which.state is None or job.state is which.state)
        and (which.worker_id is None or job.worker_of(job.tasks[0]) == which.worker_id)
        and (which.name is None or job.spec.name == which.name)
        and (which.array_id is None or job.array_id == which.array_id)
        and which.labels.items() <= job.spec.labels.items()
    )


def _done(result: T) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    # Not at once: no store commits before its caller has gone on, and callers may count on that.
    loop.call_soon(lambda: None if future.done() else future.set_result(result))
    return future


def failed(error: Exception) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    loop.call_soon(lambda: None if future.done() else future.set_exception(error))
    return future
