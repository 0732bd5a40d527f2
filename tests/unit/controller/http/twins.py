"""A job service and a registry in memory, for tests of the HTTP door: real answers, no workers, no store."""

from __future__ import annotations

import asyncio
import builtins
import functools
import hashlib
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

from jobcluster_common.errors import Fault, Invalid, NotFound, RangeNotSatisfiable
from jobcluster_controller.domain.job import Job, JobSpec, Limits, Output, StreamTotals, Task
from jobcluster_controller.domain.query import (
    JobFilter,
    OutputChunk,
    OutputCut,
    OutputEnd,
    OutputItem,
    OutputQuery,
    OutputStart,
)
from jobcluster_controller.domain.states import Reason, State, WorkerState
from jobcluster_controller.domain.worker import Capacity, Worker
from jobcluster_controller.jobs import Caller, Idempotency, JobService
from jobcluster_controller.registry import Registry


class TwinJobs(JobService):
    """Jobs run on "w1" and write what a test tells them to. ``cut_at`` breaks each follower off at that byte."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.written: dict[tuple[str, int], bytearray] = {}
        self.keys: dict[tuple[Caller, str, str], tuple[str, str]] = {}
        self.changed = asyncio.Condition()
        self.fails_with: Exception | None = None
        self.output_fails_with: Exception | None = None
        self.cut_at: int | None = None
        self.readers = 0

    async def start(
        self, spec: JobSpec, caller: Caller, idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        if self.fails_with is not None:
            raise self.fails_with
        if spec.worker_id not in (None, "w1"):
            raise NotFound(f"no worker {spec.worker_id}")
        if idempotency is not None:
            key = (caller, idempotency.route, idempotency.key)
            if key in self.keys:
                job_id, body_hash = self.keys[key]
                if body_hash != idempotency.body_hash:
                    raise Invalid([Fault("Idempotency-Key", "was used with another body")])
                return self.jobs[job_id], False
        job = self.add(spec)
        if idempotency is not None:
            self.keys[key] = (job.job_id, idempotency.body_hash)
        return job, True

    def add(self, spec: JobSpec | None = None, tasks: int = 1) -> Job:
        spec = spec or JobSpec(command=("true",), document={"command": "true"})
        job = Job(
            str(uuid.uuid4()),
            spec,
            datetime.now(UTC),
            tuple(Task(rank, state=State.RUNNING, worker_id="w1") for rank in range(tasks)),
        )
        self.jobs[job.job_id] = job
        for rank in range(tasks):
            self.written[job.job_id, rank] = bytearray()
        return job

    async def write(self, job: Job, data: bytes, rank: int = 0) -> None:
        async with self.changed:
            self.written[job.job_id, rank] += data
            self.changed.notify_all()

    async def end(self, job: Job, exit_code: int = 0) -> Job:
        async with self.changed:
            for task in job.tasks:
                data = self.written[job.job_id, task.rank]
                totals = StreamTotals(len(data), hashlib.sha256(data).hexdigest())
                job = job.with_task(
                    task.evolve(
                        state=State.FAILED if exit_code else State.SUCCEEDED,
                        reason=Reason.EXITED,
                        exit_code=exit_code,
                        finished_at=datetime.now(UTC),
                        output=Output(merged=totals, stdout=totals, available=True),
                        limits_effective=Limits(cpu=0.5),
                    )
                )
            self.jobs[job.job_id] = job
            self.changed.notify_all()
        return job

    async def get(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise NotFound(f"no job {job_id}")
        return self.jobs[job_id]

    async def get_on_worker(self, worker_id: str, job_id: str) -> Job:
        job = await self.get(job_id)
        if worker_id not in {task.worker_id for task in job.tasks}:
            raise NotFound(f"worker {worker_id} holds no task of job {job_id}")
        return job

    async def observed(self, job: Job) -> Job:
        return job

    async def wait(self, job_id: str, seconds: float) -> Job:
        try:
            async with asyncio.timeout(seconds), self.changed:
                await self.changed.wait_for(lambda: self.jobs[job_id].done)
        except TimeoutError:
            pass
        return self.jobs[job_id]

    async def stop(self, job_id: str, signal: str = "TERM", grace_seconds: float = 10.0) -> Job:
        job = await self.get(job_id)
        if not job.done:
            stopping = tuple(task.evolve(state=State.STOPPING) for task in job.tasks)
            job = job.evolve(tasks=stopping, stop_requested=(signal, grace_seconds))
            self.jobs[job_id] = job
        return job

    async def list(self, which: JobFilter) -> tuple[builtins.list[Job], str | None]:
        found = [job for job in self.jobs.values() if which.state in (None, job.state)]
        return found[::-1][: which.limit], None

    def active(self) -> builtins.list[Job]:
        return [job for job in self.jobs.values() if not job.done]

    async def open_output(
        self, job_id: str, rank: int, query: OutputQuery
    ) -> AsyncGenerator[OutputItem, None]:
        if self.output_fails_with is not None:
            raise self.output_fails_with
        self.readers += 1
        try:
            async for item in self._items(job_id, rank, query):
                yield item
        finally:
            self.readers -= 1

    async def _items(self, job_id: str, rank: int, query: OutputQuery) -> AsyncGenerator[OutputItem, None]:
        data, at = self.written[job_id, rank], query.offset
        if query.tail_lines is not None:
            lines = bytes(data).splitlines(keepends=True)
            at = len(data) - len(b"".join(lines[len(lines) - query.tail_lines :]))
        if at > len(data):
            raise RangeNotSatisfiable(f"offset {at} is beyond {len(data)}")
        limit = None if query.limit_bytes is None else at + query.limit_bytes
        yield OutputStart(at, len(data), self.jobs[job_id].done)
        while True:
            async with self.changed:
                if query.follow:
                    news = functools.partial(self._news, job_id, rank, at)
                    await self.changed.wait_for(news)
                piece = bytes(data[at : limit or len(data)][: 256 << 10])
                done = self.jobs[job_id].done
            if self.cut_at is not None and at + len(piece) >= self.cut_at:
                if self.cut_at > at:
                    yield OutputChunk(piece[: self.cut_at - at], at)
                raise OutputCut(self.cut_at, "the test cut it")
            if not piece:
                yield OutputEnd(at, done)
                return
            yield OutputChunk(piece, at)
            at += len(piece)

    def _news(self, job_id: str, rank: int, at: int) -> bool:
        return len(self.written[job_id, rank]) > at or self.jobs[job_id].done


class TwinRegistry(Registry):
    """One ready worker."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        self.workers = {
            "w1": Worker(
                "w1", "127.0.0.1:7444", WorkerState.READY, "i", 1, now, now, capacity=Capacity(2, 1, 3)
            )
        }

    def list(self, state: WorkerState | None = None) -> builtins.list[Worker]:
        return [w for w in self.workers.values() if state in (None, w.state)]

    def get(self, worker_id: str) -> Worker:
        if worker_id not in self.workers:
            raise NotFound(f"no worker {worker_id}")
        return self.workers[worker_id]

    def running(self, worker_id: str) -> int:
        return 0
