"""Changes of jobs and workers, as they are committed: the last ones are remembered, and nothing is kept per follower.

A follower has a position only. One that falls behind what is remembered is told so, and begins with the present.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass
from datetime import datetime

from .domain.job import Job
from .domain.states import Reason, State
from .domain.worker import Worker

REMEMBERED = 4096
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class JobChange:
    """What a job had come to. Without its spec, which may hold a mebibyte of files."""

    job_id: str
    name: str | None
    labels: dict[str, str]
    state: State
    reason: Reason | None
    exit_code: int | None
    signal: str | None
    worker_id: str | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job) -> JobChange:
        deciding = job.deciding_task
        only = job.tasks[0] if len(job.tasks) == 1 else None
        return cls(
            job.job_id,
            job.spec.name,
            job.spec.labels,
            job.state,
            deciding.reason if deciding else None,
            deciding.exit_code if deciding else None,
            deciding.signal or None if deciding else None,
            only.worker_id if only else None,
            max(task.attempt for task in job.tasks),
            job.created_at,
            job.started_at,
            job.finished_at,
        )


Change = JobChange | Worker


@dataclass(frozen=True, slots=True)
class Event:
    """``number``: its place among all events since the controller's start; the first has 1."""

    number: int
    change: Change


class Events:
    """The memory of one controller start, which ``start`` names."""

    def __init__(self, remembered: int = REMEMBERED, start: str | None = None) -> None:
        self.start = start or secrets.token_hex(8)
        self.last = 0
        """The newest event's number; 0: there was none."""
        self._kept: deque[Event] = deque(maxlen=remembered)
        self._came = asyncio.Event()

    def job_committed(self, before: Job | None, job: Job) -> None:
        """A hook of the ledger. Commits that change nothing of what is shown here are no events."""
        if before is None or _face(before) != _face(job):
            self._add(JobChange.of(job))

    async def worker_changed(self, worker: Worker) -> None:
        """A listener of the registry."""
        self._add(worker)

    def after(self, number: int) -> list[Event] | None:
        """The next events after that one, AT_ONCE at most; None: some of them are forgotten, or it never was."""
        oldest = self._kept[0].number if self._kept else self.last + 1
        if not oldest - 1 <= number <= self.last:
            return None
        first = number + 1 - oldest
        return [self._kept[at] for at in range(first, min(first + AT_ONCE, len(self._kept)))]

    async def came(self, number: int) -> None:
        """Waits till there is an event after that one."""
        while self.last <= number:
            await self._came.wait()

    def _add(self, change: Change) -> None:
        self.last += 1
        self._kept.append(Event(self.last, change))
        self._came.set()
        self._came = asyncio.Event()


def _face(job: Job) -> tuple[object, ...]:
    return (job.state, [(task.state, task.worker_id, task.attempt) for task in job.tasks])
