"""The store's twin that fails on demand, as a full disk does: nothing of a failed write is there afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from jobcluster_common.errors import Unavailable

from ..domain.job import Job
from ..domain.query import JobFilter
from ..domain.worker import Worker
from .memory import MemoryStore, failed
from .protocol import IdempotencyKey, Repeat, Store


class FailingStore:
    """Another store, whose writes (and with ``reads_too`` reads) fail while ``failing``."""

    def __init__(self, inner: Store | None = None, failing: bool = True, reads_too: bool = False) -> None:
        self.inner: Store = inner if inner is not None else MemoryStore()
        self.failing = failing
        self.reads_too = reads_too

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> asyncio.Future[Repeat | None]:
        return failed(_full()) if self.failing else self.inner.insert(job, key)

    def save(
        self, jobs: Sequence[Job] = (), workers: Sequence[Worker] = (), lazy: bool = False
    ) -> asyncio.Future[None]:
        return failed(_full()) if self.failing else self.inner.save(jobs, workers, lazy)

    def forget(self, keys_before: datetime, worker_ids: Sequence[str] = ()) -> asyncio.Future[None]:
        return failed(_full()) if self.failing else self.inner.forget(keys_before, worker_ids)

    async def job(self, job_id: str) -> Job | None:
        self._check()
        return await self.inner.job(job_id)

    async def repeat(self, key: IdempotencyKey) -> Repeat | None:
        self._check()
        return await self.inner.repeat(key)

    async def list_jobs(self, which: JobFilter) -> tuple[list[Job], str | None]:
        self._check()
        return await self.inner.list_jobs(which)

    async def active_jobs(self) -> list[Job]:
        self._check()
        return await self.inner.active_jobs()

    async def workers(self) -> list[Worker]:
        self._check()
        return await self.inner.workers()

    async def close(self) -> None:
        await self.inner.close()

    def _check(self) -> None:
        if self.failing and self.reads_too:
            raise _full()


def _full() -> Unavailable:
    return Unavailable("the store could not commit: database or disk is full", retry_after=5.0)
