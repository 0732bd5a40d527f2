"""What workers tell, taken into the ledger; and what the ledger still wants of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence, Set
from datetime import datetime

import structlog

from .dispatch import Dispatcher
from .domain.changes import Fate, Report, Source, TaskKey, ended, merged, reconciled, refused
from .domain.job import Job, Task
from .domain.states import Reason, State
from .ledger import Ledger
from .placement import Placement
from .registry import Registry

log = structlog.get_logger()


class Reports:
    """The books that the dispatcher's links write in."""

    def __init__(
        self,
        ledger: Ledger,
        registry: Registry,
        dispatcher: Dispatcher,
        placement: Placement,
        now: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._dispatcher = dispatcher
        self._placement = placement
        self._now = now
        self._accepted: set[TaskKey] = set()

    def believes(self, source: Source) -> bool:
        return self._registry.believes(source)

    def reported(self, source: Source, reports: Sequence[Report]) -> asyncio.Future[None] | None:
        if not self.believes(source):
            return None
        changed: dict[str, Job] = {}
        for report in reports:
            job = changed.get(report.job_id) or self._ledger.head(report.job_id)
            held = self._held_by(source, report.key, job)
            if job is None or held is None:
                continue
            task = merged(held, report.task)
            if task is held:
                continue
            if task.state.done and task.finished_at is None:
                task = task.evolve(finished_at=self._now())
            changed[report.job_id] = job.with_task(task)
        if changed:
            # A start that is soon overtaken by its end need not be written: it may wait a little for it.
            lazy = not any(job.done for job in changed.values())
            self._change(source.worker_id, changed.values(), lazy)
        # What was told before on a stream that broke may not be committed yet, and is then told here again.
        return self._ledger.committing(report.job_id for report in reports)

    def all_told(self, source: Source, keys: Set[TaskKey]) -> asyncio.Future[None] | None:
        lost: dict[str, Job] = {}
        for job, task in self._ledger.held(source.worker_id):
            key = TaskKey(job.job_id, task.rank, task.attempt)
            match reconciled(task, source, key in keys):
                case Fate.START:
                    self._send_start(key)
                case Fate.STOP:
                    self._send_stop(key)
                case Fate.LOSE:
                    job = lost.get(job.job_id, job)
                    lost[job.job_id] = job.with_task(self._lost(job, task))
        return self._change(source.worker_id, lost.values()) if lost else None

    async def unwanted(self, source: Source, report: Report) -> bool:
        job = self._ledger.head(report.job_id) or await self._ledger.find(report.job_id)
        if job is None:
            return False  # started on the worker by somebody else, not by us
        task = job.task(report.task.rank)
        return (
            task is None
            or task.state.done
            or (task.attempt, task.worker_id) != (report.task.attempt, source.worker_id)
        )

    def accepted(self, keys: Sequence[TaskKey]) -> None:
        for key in keys:
            head = self._ledger.head(key.job_id)
            if head is not None and not head.done:
                self._accepted.add(key)
                self._ledger.wake(key.job_id)

    def is_accepted(self, key: TaskKey) -> bool:
        """Whether its worker is known to have this attempt."""
        return key in self._accepted

    def refused(
        self, source: Source, key: TaskKey, again: bool, error_text: str
    ) -> asyncio.Future[None] | None:
        job = self._ledger.head(key.job_id)
        if job is None or not self.believes(source) or self._held_by(source, key, job) is None:
            return None
        log.warning("start_refused", worker_id=source.worker_id, reason=error_text, **key.ids())
        if again:
            self._placement.avoid(source.worker_id, error_text)
        changed = refused(job, key.rank, again, error_text, self._now())
        return self._change(source.worker_id, [changed]) if changed is not job else None

    def wants_start(self, source: Source, key: TaskKey) -> bool:
        return self._wants(source, key, State.STARTING)

    def wanted_stop(self, source: Source, key: TaskKey) -> tuple[str, float] | None:
        found = self._ledger.committed_task(key)
        wanted = found is not None and self._wants(source, key, State.STOPPING)
        return found[0].stop_requested if found is not None and wanted else None

    def unseen(self, source: Source, key: TaskKey) -> bool:
        task = self._held_by(source, key, self._ledger.head(key.job_id))
        return task is not None and task.state is State.STOPPING and task.started_at is None

    def never_started(self, source: Source, key: TaskKey) -> asyncio.Future[None] | None:
        job = self._ledger.head(key.job_id)
        if job is None or not self.believes(source) or not self.unseen(source, key):
            return None
        task = ended(job.tasks[key.rank], State.STOPPED, Reason.STOPPED, self._now())
        return self._change(source.worker_id, [job.with_task(task)])

    def lose_all(self, worker_id: str) -> asyncio.Future[None] | None:
        """Ends all that a lost or gone worker still held; None: it held nothing."""
        lost: dict[str, Job] = {}
        for job, task in self._ledger.held(worker_id):
            job = lost.get(job.job_id, job)
            lost[job.job_id] = job.with_task(self._lost(job, task))
        return self._change(worker_id, lost.values()) if lost else None

    def committed(self, before: Job | None, job: Job) -> None:
        """Sends what a commit decided: not earlier, so that nothing runs which a restart would not know of."""
        for task in job.tasks:
            key = TaskKey(job.job_id, task.rank, task.attempt)
            old = before.tasks[task.rank] if before is not None else None
            moved = old is None or (old.state, old.worker_id) != (task.state, task.worker_id)
            asked = before is None or before.stop_requested != job.stop_requested
            if task.state.done:
                self._accepted.discard(key)
            elif task.state is State.STARTING and moved:
                self._send_start(key)
            elif task.state is State.STOPPING and asked:
                self._send_stop(key)

    def _send_start(self, key: TaskKey) -> None:
        found = self._ledger.committed_task(key)
        head = self._ledger.head(key.job_id)
        # Not yet committed: its commit sends it. A stop decided meanwhile: there is nothing to start any more.
        if found is None or head is None:
            return
        if found[1].state is State.STARTING and head.tasks[key.rank].state is State.STARTING:
            self._dispatcher.start(*found)

    def _send_stop(self, key: TaskKey) -> None:
        """Not to one that its worker stops by itself (its timeout, a shutdown): that has its own grace."""
        found = self._ledger.committed_task(key)
        if found is not None and found[1].state is State.STOPPING and found[0].stop_requested is not None:
            self._dispatcher.stop(*found)

    def _wants(self, source: Source, key: TaskKey, state: State) -> bool:
        task = self._held_by(source, key, self._ledger.head(key.job_id))
        return task is not None and task.state is state

    def _held_by(self, source: Source, key: TaskKey, job: Job | None) -> Task | None:
        """The task, if by our decisions it is this attempt on this worker that has not ended."""
        task = job.task(key.rank) if job is not None else None
        if task is None or task.state.done:
            return None
        return task if (task.attempt, task.worker_id) == (key.attempt, source.worker_id) else None

    def _lost(self, job: Job, task: Task) -> Task:
        key = TaskKey(job.job_id, task.rank, task.attempt)
        log.warning("task_lost", worker_id=task.worker_id, **key.ids())
        return ended(task, State.LOST, Reason.WORKER_LOST, self._now())

    def _change(self, worker_id: str, jobs: Iterable[Job], lazy: bool = False) -> asyncio.Future[None]:
        future = self._ledger.change(jobs, lazy)
        self._placement.drain([worker_id])  # there may be room now
        return future
