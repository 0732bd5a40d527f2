"""The job service: start, get, wait, stop, list, output. Doors call it; it decides, stores, then dispatches."""

from __future__ import annotations

import builtins
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import datetime

from jobcluster_common.errors import Conflict, Fault, Invalid, NotFound, QueueFull

from . import scheduler
from .dispatch import Dispatcher
from .domain.bounds import UNBOUNDED, Bounds
from .domain.changes import stop_asked
from .domain.job import Job, JobSpec, Task
from .domain.query import JobFilter, OutputChunk, OutputCut, OutputEnd, OutputItem, OutputQuery, OutputStart
from .domain.states import State, WorkerState
from .domain.worker import Worker
from .glances import Glances
from .ledger import Ledger
from .outputs import Outputs
from .placement import Placement
from .registry import Registry, utc_now
from .reports import Reports
from .store.protocol import IdempotencyKey, Repeat, Store
from .waiting import Ask

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


# Asked again when so many jobs wait: about how long it takes until some of them have gone.
_QUEUE_RETRY_SECONDS = 5.0


class JobService:
    """All that can be done with jobs. What it shows is committed; what it acknowledges is committed."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        registry: Registry,
        dispatcher: Dispatcher,
        *,
        queue_max: int = 10_000,
        bounds: Bounds = UNBOUNDED,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._registry = registry
        self._dispatcher = dispatcher
        self._queue_max = queue_max
        self._bounds = bounds
        self._now = now
        self._placement = Placement(ledger, registry, clock)
        self._reports = Reports(ledger, registry, dispatcher, self._placement, now)
        self._outputs = Outputs(ledger, registry, dispatcher, self._reports)
        self._glances = Glances(dispatcher)
        self._in_flight: set[tuple[str, str, str]] = set()
        dispatcher.attach(self._reports)
        ledger.on_committed += [self._placement.committed, self._reports.committed]
        ledger.on_reverted.append(self._placement.reverted)
        registry.listeners += [dispatcher.worker_changed, self.worker_changed]

    async def load(self) -> None:
        """Takes active jobs from the store. To be awaited (after Registry.load) before any door opens."""
        for job in await self._ledger.load():
            if job.state is State.QUEUED:
                self._placement.queue(job)
        await self.settle()
        for worker in self._registry.all():
            if worker.alive:
                await self._dispatcher.worker_changed(worker)

    async def start(
        self, spec: JobSpec, caller: Caller, idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        """Accepts a job: durable when this returns. The bool says whether it was created (False: a repeat).

        :raises NotFound: spec.worker_id is unknown.
        :raises Conflict: that worker takes no jobs, or the same Idempotency-Key is in flight.
        :raises Invalid: the Idempotency-Key was used with another body, or it asks for more than the cluster allows or
            any known worker could ever give.
        :raises QueueFull: as many jobs wait as are allowed to.
        :raises Unavailable: the store could not commit.
        """
        if idempotency is None:
            return await self._accept(spec, None)
        key = IdempotencyKey(
            caller.name, idempotency.route, idempotency.key, idempotency.body_hash, self._now()
        )
        if key.identity in self._in_flight:
            raise Conflict("a request with this Idempotency-Key is in flight; ask again")
        self._in_flight.add(key.identity)
        try:
            # Looked up before all else: a repeat is answered even when its worker is gone or the queue is full.
            repeat = await self._store.repeat(key)
            if repeat is not None:
                return await self._repeated(repeat, key), False
            return await self._accept(spec, key)
        finally:
            self._in_flight.discard(key.identity)

    async def get(self, job_id: str) -> Job:
        """:raises NotFound: no such job."""
        job = await self._ledger.find(job_id)
        if job is None:
            raise NotFound(f"no such job: {job_id[:80]}")
        return self._presented(job)

    async def observed(self, job: Job) -> Job:
        """The job with what its running tasks use and have written at this moment, where their workers can tell."""
        return await self._glances.at(job)

    async def get_on_worker(self, worker_id: str, job_id: str) -> Job:
        """:raises NotFound: no such job, or that worker holds no task of it and none waits for it."""
        job = await self.get(job_id)
        if worker_id not in map(job.worker_of, job.tasks):
            raise NotFound(f"worker {worker_id[:80]} holds no task of job {job_id}")
        return job

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job at its end, or as it is after that many seconds.

        :raises NotFound: no such job.
        """
        job = await self.get(job_id)
        if not job.done:
            await self._ledger.wait(job_id, seconds, lambda: self._ledger.head(job_id) is None)
            job = await self.get(job_id)
        return job

    async def stop(self, job_id: str, signal: str = "TERM", grace_seconds: float = 10.0) -> Job:
        """Asks for a stop, durable when this returns; again, it can only hasten the end.

        :raises NotFound: no such job.
        :raises Unavailable: the store could not commit.
        """
        await self.get(job_id)
        job = self._ledger.head(job_id)
        if job is not None:
            stopped = stop_asked(job, signal, grace_seconds, self._now())
            if stopped is not job:
                await self._ledger.change([stopped])
            elif (under_way := self._ledger.committing([job_id])) is not None:
                await under_way  # the stop before, or the end: not acknowledged before it is durable
        return await self.get(job_id)

    async def list(self, which: JobFilter) -> tuple[builtins.list[Job], str | None]:
        """A page of jobs, newest first, and the cursor of the next one (None: this was the last).

        :raises BadRequest: the cursor is none of ours.
        """
        jobs, following = await self._store.list_jobs(which)
        # Many wait for the same reason, and to find it out takes a look at every worker.
        reasons: dict[Ask, str] = {}
        return [self._presented(job, reasons) for job in jobs], following

    def open_output(self, job_id: str, rank: int, query: OutputQuery) -> AsyncGenerator[OutputItem]:
        """A task's output: one OutputStart, chunks, one OutputEnd. With follow it waits for a queued job.

        The caller closes it (``contextlib.aclosing``). Raised at the first item, never later:

        :raises NotFound: no such job or task.
        :raises RangeNotSatisfiable: the offset is beyond the stream's size.
        :raises Gone: expired, or gone with its worker.
        :raises Unavailable: its worker is unreachable.
        :raises OutputCut: at any later item: it broke off, which is not an end.
        """
        return self._outputs.open(job_id, rank, query)

    async def settle(self) -> None:
        """What a failed commit or a crash left undone: tasks of lost and gone workers end, who waits is placed."""
        for worker in self._registry.all():
            if not worker.alive and self._ledger.running(worker.worker_id):
                self._reports.lose_all(worker.worker_id)
        for worker_id in self._ledger.holders():
            if self._registry.find(worker_id) is None:
                self._reports.lose_all(worker_id)
        self._placement.drain()

    async def worker_changed(self, worker: Worker) -> None:
        """A listener of the registry: what the worker held is lost with it; one with room takes who waits."""
        if not worker.alive:
            lost = self._reports.lose_all(worker.worker_id)
            if lost is not None:
                await lost
        elif worker.state is WorkerState.READY:
            self._placement.drain([worker.worker_id])

    def active(self) -> builtins.list[Job]:
        """All jobs that have not ended."""
        return self._ledger.committed()

    @property
    def open_outputs(self) -> int:
        """How many outputs workers are asked for now."""
        return self._dispatcher.streams

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state that is not an end."""
        return {state: self._ledger.count(state) for state in State if not state.done}

    async def _accept(self, spec: JobSpec, key: IdempotencyKey | None) -> tuple[Job, bool]:
        self._bounds.check(spec.limits)
        self._check_worker(spec)
        spec = self._bounds.filled(spec)
        job = self._placement.place_new(
            Job(job_id=str(uuid.uuid4()), spec=spec, created_at=self._now(), tasks=(Task(),))
        )
        if job.state is State.QUEUED and self._placement.waiting >= self._queue_max:
            raise QueueFull(
                f"the queue is full: {self._queue_max} may wait ([jobs] queue_max); ask again later",
                retry_after=_QUEUE_RETRY_SECONDS,
            )
        if job.state is State.QUEUED:
            self._placement.queue(job)
        repeat = await self._ledger.insert(job, key)
        if repeat is not None and key is not None:
            return await self._repeated(repeat, key), False
        return self._presented(job), True

    async def _repeated(self, repeat: Repeat, key: IdempotencyKey) -> Job:
        if repeat.body_hash != key.body_hash:
            raise Invalid([Fault("", "this Idempotency-Key was used with another body")])
        return await self.get(repeat.job_id)

    def _check_worker(self, spec: JobSpec) -> None:
        if spec.worker_id is None:
            known = [worker for worker in self._registry.all() if worker.state is not WorkerState.GONE]
        else:
            worker = self._registry.get(spec.worker_id)
            if worker.state in (WorkerState.DRAINING, WorkerState.LOST, WorkerState.GONE):
                raise Conflict(f"worker {worker.worker_id} is {worker.state} and takes no jobs")
            known = [worker]
        if faults := scheduler.never_fits(spec, known):
            raise Invalid(faults)

    def _presented(self, job: Job, reasons: dict[Ask, str] | None = None) -> Job:
        """With the reason it waits for, or whether its output can be had: true at this moment, and kept nowhere."""
        if job.state is not State.QUEUED:
            return self._outputs.presented(job)
        asked = Ask.of(job.spec)
        reason = reasons.get(asked) if reasons is not None else None
        if reason is None:
            reason = self._placement.reason(job.spec)
            if reasons is not None:
                reasons[asked] = reason
        return job.evolve(queue_reason=reason)
