"""The outputs of jobs: where to get one from, when, and what to say when it cannot be had."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

from jobcluster_common.errors import Gone, NotFound, Unavailable

from .dispatch import Dispatcher
from .domain.changes import TaskKey
from .domain.job import Job, Task
from .domain.query import OutputEnd, OutputItem, OutputQuery
from .domain.states import State, WorkerState
from .domain.worker import Worker
from .feeds import Feeds
from .ledger import Ledger
from .registry import Registry
from .relay import empty, relay
from .reports import Reports

# After the last byte, how long to wait for the job's end to be committed, so that who has read all of the output
# finds the job ended.
_END_SECONDS = 10.0
# No bound but the reader's own: a followed job may wait and run for as long as it likes.
_FOREVER = 366 * 86400.0


class Outputs:
    """Opens them. Bytes pass through, and who reads slowly slows nobody but himself."""

    def __init__(self, ledger: Ledger, registry: Registry, dispatcher: Dispatcher, reports: Reports) -> None:
        self._ledger = ledger
        self._registry = registry
        self._dispatcher = dispatcher
        self._reports = reports
        self._feeds = Feeds()

    async def open(self, job_id: str, rank: int, query: OutputQuery) -> AsyncGenerator[OutputItem]:
        """See JobService.open_output."""
        while True:
            task = await self._task(job_id, rank)
            if task.worker_id is None and (task.state.done or not query.follow):
                for nothing in empty(query, task.state.done, task):
                    yield nothing
                return
            if not self._is_there(job_id, task):
                if query.follow:
                    await self._next_change(job_id, rank, task)
                    continue
                if task.worker_id is not None and not task.state.done:
                    for nothing in empty(query, False, task):
                        yield nothing
                    return
            try:
                async with contextlib.aclosing(self._from_worker(job_id, task, query)) as items:
                    async for item in items:
                        yield item
                return
            except NotFound as error:
                if task.state.done or not query.follow:
                    await self._note_gone(job_id, task)
                    raise Gone(_facts(task, str(error))) from error
            # It was accepted and is not there yet, or the worker lost it: either is told to us soon.
            await self._next_change(job_id, rank, task)

    def presented(self, job: Job) -> Job:
        """The job, its outputs available only where the worker that has them is neither lost nor gone."""
        for task in job.tasks:
            if task.output.available and task.worker_id is not None and self._alive(task.worker_id) is None:
                job = job.with_task(task.evolve(output=replace(task.output, available=False)))
        return job

    def _alive(self, worker_id: str) -> Worker | None:
        worker = self._registry.find(worker_id)
        return worker if worker is not None and worker.alive else None

    async def _task(self, job_id: str, rank: int) -> Task:
        shown = await self._ledger.find(job_id)
        if shown is None:
            raise NotFound(f"no such job: {job_id[:80]}")
        # What is decided comes first: whether bytes can be had does not hang on a commit.
        task = (self._ledger.head(job_id) or shown).task(rank)
        if task is None:
            raise NotFound(f"job {job_id} has no task {rank}")
        return task

    def _is_there(self, job_id: str, task: Task) -> bool:
        """Whether its worker is known to have this attempt."""
        if task.worker_id is None:
            return False
        seen = task.state.done or task.state is State.RUNNING or task.started_at is not None
        return seen or self._reports.is_accepted(TaskKey(job_id, task.rank, task.attempt))

    async def _note_gone(self, job_id: str, task: Task) -> None:
        """Its worker, which answers, has it no more."""
        job = await self._ledger.find(job_id)
        if job is not None and job.done and task.output.available and job.task(task.rank) == task:
            self._ledger.amend(job.with_task(task.evolve(output=replace(task.output, available=False))))

    async def _next_change(self, job_id: str, rank: int, seen: Task) -> None:
        """Waits until the task is another than was seen, or its worker has told of it."""
        there = self._is_there(job_id, seen)

        def changed() -> bool:
            job = self._ledger.head(job_id)
            task = job.task(rank) if job is not None else None
            return task is None or task != seen or self._is_there(job_id, task) != there

        await self._ledger.wait(job_id, _FOREVER, changed)

    async def _from_worker(self, job_id: str, task: Task, query: OutputQuery) -> AsyncGenerator[OutputItem]:
        worker_id = task.worker_id or ""
        worker = self._alive(worker_id)
        if worker is None:
            known = self._registry.find(worker_id)
            raise Gone(_facts(task, f"worker {worker_id} is {known.state if known else 'forgotten'}"))
        if worker.state is WorkerState.UNREACHABLE and not self._dispatcher.connected(worker_id):
            raise Unavailable(f"worker {worker_id} is unreachable", retry_after=5.0)
        async with contextlib.aclosing(self._items(worker_id, job_id, task, query)) as items:
            async for item in items:
                if isinstance(item, OutputEnd) and item.complete and query.follow:
                    await self._ledger.wait(job_id, _END_SECONDS, lambda: self._ledger.head(job_id) is None)
                yield item

    def _items(
        self, worker_id: str, job_id: str, task: Task, query: OutputQuery
    ) -> AsyncGenerator[OutputItem]:
        if not query.follow or query.tail_lines is not None or query.limit_bytes is not None:
            return relay(self._dispatcher, worker_id, job_id, task, query)
        key = (worker_id, job_id, task.rank, task.attempt, query.stream)

        def open_at(offset: int) -> AsyncGenerator[OutputItem]:
            return relay(self._dispatcher, worker_id, job_id, task, replace(query, offset=offset))

        return self._feeds.follow(key, query.offset, open_at)


def _facts(task: Task, why: str) -> str:
    size = task.output.merged.bytes
    known = f"; it had {size} bytes, sha256 {task.output.merged.sha256}" if task.output.merged.sha256 else ""
    return f"the output is gone: {why}{known}"
