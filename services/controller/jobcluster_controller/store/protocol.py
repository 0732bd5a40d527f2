"""What the controller needs of a store. Writes are decided in the order of the calls, and done when committed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from ..domain.job import Job
from ..domain.query import JobFilter
from ..domain.worker import Worker

IDEMPOTENCY_LIFETIME = timedelta(hours=24)


class StoreRefused(Exception):
    """The store cannot be used: damaged, unreadable, in use or not ours. One line that names the file."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """An Idempotency-Key as it is kept with its job: unique per (caller, route, key) for 24 hours."""

    caller: str
    route: str
    key: str
    body_hash: str
    created_at: datetime

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.caller, self.route, self.key)


@dataclass(frozen=True, slots=True)
class Repeat:
    """The key was used before: for this job, with this body."""

    job_id: str
    body_hash: str


class Store(Protocol):
    """Jobs, workers and Idempotency-Keys, durable.

    The three writers enqueue at the call itself, so that the store's order is that of the decisions; their future
    resolves after the commit, or fails with Unavailable and then nothing of that call was written.
    Readers see what is committed.
    """

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> asyncio.Future[Repeat | None]:
        """Adds a job and its key in one transaction; a Repeat, and nothing added, if the key is taken."""
        ...

    def save(
        self, jobs: Sequence[Job] = (), workers: Sequence[Worker] = (), lazy: bool = False
    ) -> asyncio.Future[None]:
        """Replaces what is kept of these jobs and workers, in one transaction. ``lazy``: it may wait some 20 ms."""
        ...

    def forget(self, keys_before: datetime, worker_ids: Sequence[str] = ()) -> asyncio.Future[None]:
        """Drops Idempotency-Keys made before then, and these workers."""
        ...

    async def job(self, job_id: str) -> Job | None: ...

    async def repeat(self, key: IdempotencyKey) -> Repeat | None:
        """What this key was used for in the 24 hours before ``key.created_at``."""
        ...

    async def list_jobs(self, which: JobFilter) -> tuple[list[Job], str | None]:
        """A page, newest first, and the next page's cursor.

        :raises BadRequest: the cursor is none of ours.
        """
        ...

    async def active_jobs(self) -> list[Job]:
        """All that have not ended, oldest first."""
        ...

    async def workers(self) -> list[Worker]: ...

    async def close(self) -> None:
        """Commits what is pending and lets go of the file."""
        ...
