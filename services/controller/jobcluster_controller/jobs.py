"""The job service: start, get, wait, stop, list, output. Doors call it; it decides, stores, then dispatches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from .domain.job import Job, JobSpec
from .domain.query import JobFilter, OutputChunk, OutputCut, OutputEnd, OutputItem, OutputQuery, OutputStart

__all__ = [
    "Caller",
    "Idempotency",
    "JobFilter",
    "JobService",
    "OutputChunk",
    "OutputCut",
    "OutputEnd",
    "OutputItem",
    "OutputQuery",
    "OutputStart",
]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of a token or certificate, and its role."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Idempotency:
    """An Idempotency-Key, unique per (caller, route, key); ``body_hash`` tells a repeat from another request."""

    route: str
    key: str
    body_hash: str


class JobService:
    """All that can be done with jobs. What it shows is committed; what it acknowledges is committed."""

    async def load(self) -> None:
        """Takes active jobs from the store. To be awaited (after Registry.load) before any door opens."""
        raise NotImplementedError

    async def start(
        self, spec: JobSpec, caller: Caller, idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        """Accepts a job: durable when this returns. The bool says whether it was created (False: a repeat).

        :raises NotFound: spec.worker_id is unknown.
        :raises Conflict: that worker takes no jobs, or the same Idempotency-Key is in flight.
        :raises Invalid: the Idempotency-Key was used with another body, or no known worker could ever fit it.
        :raises QueueFull: as many jobs wait as are allowed to.
        :raises Unavailable: the store could not commit.
        """
        raise NotImplementedError

    async def get(self, job_id: str) -> Job:
        """:raises NotFound: no such job."""
        raise NotImplementedError

    async def get_on_worker(self, worker_id: str, job_id: str) -> Job:
        """:raises NotFound: no such job, or that worker holds no task of it."""
        raise NotImplementedError

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job at its end, or as it is after that many seconds.

        :raises NotFound: no such job.
        """
        raise NotImplementedError

    async def stop(self, job_id: str, signal: str = "TERM", grace_seconds: float = 10.0) -> Job:
        """Asks for a stop, durable when this returns; again, or on an ended job, it changes nothing.

        :raises NotFound: no such job.
        :raises Unavailable: the store could not commit.
        """
        raise NotImplementedError

    async def list(self, which: JobFilter) -> tuple[list[Job], str | None]:
        """A page of jobs, newest first, and the cursor of the next one (None: this was the last).

        :raises BadRequest: the cursor is none of ours.
        """
        raise NotImplementedError

    def open_output(self, job_id: str, rank: int, query: OutputQuery) -> AsyncIterator[OutputItem]:
        """A task's output: one OutputStart, chunks, one OutputEnd. With follow it waits for a queued job.

        The caller closes it (``contextlib.aclosing``). Raised at the first item, never later:

        :raises NotFound: no such job or task.
        :raises RangeNotSatisfiable: the offset is beyond the stream's size.
        :raises Gone: expired, or gone with its worker.
        :raises Unavailable: its worker is unreachable.
        :raises OutputCut: at any later item: it broke off, which is not an end.
        """
        raise NotImplementedError
