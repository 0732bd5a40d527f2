"""The ledger: active jobs in memory, each as it is decided (head) and as it is committed (shown).

Decisions are made on heads, at once and in order; the store takes them in that order; only what it has committed is
shown, waited for, dispatched or acknowledged. A commit that fails takes its decision back.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from .domain.changes import TaskKey
from .domain.job import Job, Task
from .domain.states import State
from .store.protocol import IdempotencyKey, Repeat, Store

T = TypeVar("T")

Committed = Callable[[Job | None, Job], None]
"""Called with the job as it was shown before (None: new) and as it is now."""

_ENDED_MAX = 4096
_ENDED_BYTES_MAX = 16 << 20
_JOB_BYTES = 2048  # about what a job without files takes in memory


class Ledger:
    """Owns all jobs that have not ended, and a bounded number of those that have."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heads: dict[str, Job] = {}
        self._shown: dict[str, Job] = {}
        self._ended = _Ended()
        self._by_worker: dict[str, dict[tuple[str, int], None]] = {}
        self._counts: Counter[State] = Counter()
        self._commits: dict[str, asyncio.Future[Any]] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self.on_committed: list[Committed] = []
        self.on_reverted: list[Callable[[Job | None, Job], None]] = []

    async def load(self) -> list[Job]:
        """Takes the active jobs from the store, oldest first."""
        jobs = await self._store.active_jobs()
        for job in jobs:
            self._decide(None, job)
            self._shown[job.job_id] = job
        return jobs

    def head(self, job_id: str) -> Job | None:
        """The newest decision on an active job, committed or not."""
        return self._heads.get(job_id)

    def shown(self, job_id: str) -> Job | None:
        """The newest commit of a job in memory."""
        return self._shown.get(job_id) or self._ended.get(job_id)

    async def find(self, job_id: str) -> Job | None:
        """The newest commit of a job, of the store where it is not in memory."""
        found = self.shown(job_id)
        if found is not None:
            return found
        stored = await self._store.job(job_id)
        # Meanwhile it may have come (back) into memory, and then memory is newer.
        found = self.shown(job_id)
        if found is None and stored is not None and stored.done:
            self._ended.put(stored)
        return found or stored

    def committed(self) -> list[Job]:
        """The active jobs as they are committed."""
        return list(self._shown.values())

    def active(self) -> Iterator[Job]:
        return iter(list(self._heads.values()))

    def count(self, state: State) -> int:
        """How many jobs are in that state; ended ones are not counted here."""
        return self._counts[state]

    def running(self, worker_id: str) -> int:
        """How many tasks that have not ended the worker holds."""
        return len(self._by_worker.get(worker_id, ()))

    def holders(self) -> list[str]:
        """The workers that hold a task that has not ended."""
        return list(self._by_worker)

    def held(self, worker_id: str) -> list[tuple[Job, Task]]:
        """The tasks that the worker holds, by our decisions."""
        keys = self._by_worker.get(worker_id, {})
        return [(self._heads[job_id], self._heads[job_id].tasks[rank]) for job_id, rank in keys]

    def committed_task(self, key: TaskKey) -> tuple[Job, Task] | None:
        """That attempt as it is committed, while its job has not ended."""
        job = self._shown.get(key.job_id)
        task = job.task(key.rank) if job is not None else None
        return (job, task) if job is not None and task is not None and task.attempt == key.attempt else None

    def insert(self, job: Job, key: IdempotencyKey | None) -> asyncio.Future[Repeat | None]:
        """Decides a new job. With a Repeat in the future it is as if it had never been."""
        self._decide(None, job)
        future = self._store.insert(job, key)
        return self._track([job], future)

    def change(self, jobs: Iterable[Job], lazy: bool = False) -> asyncio.Future[None]:
        """Decides the next state of jobs, in one transaction."""
        decided = list(jobs)
        for job in decided:
            self._decide(self._heads.get(job.job_id), job)
            self.wake(job.job_id)
        future = self._store.save(jobs=decided, lazy=lazy)
        return self._track(decided, future)

    def amend(self, job: Job) -> None:
        """Takes news of a job that has ended, about what is left of it; its end stays as it is."""
        self._ended.put(job)
        saved = self._store.save(jobs=[job], lazy=True)
        # Nobody waits: if it is not kept, it is found out again by the next who asks.
        saved.add_done_callback(lambda done: done.cancelled() or done.exception())

    def committing(self, job_ids: Iterable[str]) -> asyncio.Future[None] | None:
        """The commits under way of these jobs; None when there are none."""
        under_way = {self._commits[job_id] for job_id in job_ids if job_id in self._commits}
        if len(under_way) <= 1:
            found = next(iter(under_way), None)
            return None if found is None else asyncio.shield(found)
        return asyncio.ensure_future(_all(under_way))

    async def wait(self, job_id: str, timeout_seconds: float, until: Callable[[], bool]) -> bool:
        """Waits for changes of a job till ``until()``; False: the time was over before."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds):
                while not until():
                    waiter = loop.create_future()
                    self._waiters.setdefault(job_id, set()).add(waiter)
                    try:
                        await waiter
                    finally:
                        self._forget_waiter(job_id, waiter)
        except TimeoutError:
            return until()
        return True

    def wake(self, job_id: str) -> None:
        for waiter in self._waiters.get(job_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _forget_waiter(self, job_id: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(job_id)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job_id]

    def _decide(self, before: Job | None, job: Job) -> None:
        self._unindex(before)
        self._heads[job.job_id] = job
        if not job.done:
            self._counts[job.state] += 1
        for task in job.tasks:
            if task.worker_id is not None and not task.state.done:
                self._by_worker.setdefault(task.worker_id, {})[job.job_id, task.rank] = None

    def _unindex(self, job: Job | None) -> None:
        if job is None:
            return
        if not job.done:
            self._counts[job.state] -= 1
        for task in job.tasks:
            held = self._by_worker.get(task.worker_id or "")
            if held is not None:
                held.pop((job.job_id, task.rank), None)
                if not held:
                    del self._by_worker[task.worker_id or ""]

    def _track(self, jobs: Sequence[Job], future: asyncio.Future[T]) -> asyncio.Future[T]:
        future.add_done_callback(partial(self._settle, jobs))
        # For callers, who may be cancelled while they wait: that must not look like a commit that failed.
        outer = asyncio.shield(future)
        # Not all callers wait; a failure has been dealt with in any case.
        outer.add_done_callback(lambda done: done.cancelled() or done.exception())
        for job in jobs:
            self._commits[job.job_id] = future
        return outer

    def _settle(self, jobs: Sequence[Job], future: asyncio.Future[Any]) -> None:
        """After the commit, before anybody who awaits it: callers may go away, this does not."""
        failed = future.cancelled() or future.exception() is not None or future.result() is not None
        for job in jobs:
            if self._commits.get(job.job_id) is future:
                del self._commits[job.job_id]
            if failed:
                self._take_back(job)
            else:
                self._show(job)
            self.wake(job.job_id)

    def _show(self, job: Job) -> None:
        before = self._shown.get(job.job_id)
        self._shown[job.job_id] = job
        if job.done:
            del self._shown[job.job_id]
            self._ended.put(job)
            if self._heads.get(job.job_id) is job:
                del self._heads[job.job_id]
        for hook in self.on_committed:
            hook(before, job)

    def _take_back(self, job: Job) -> None:
        # A later decision stands on this one and holds all of it: its own commit settles both.
        if self._heads.get(job.job_id) is not job:
            return
        shown = self._shown.get(job.job_id)
        if shown is None:
            self._unindex(job)
            del self._heads[job.job_id]
        else:
            self._decide(job, shown)
        for hook in self.on_reverted:
            hook(shown, job)


class _Ended:
    """Jobs that have ended, the least recently asked for dropped first; bounded in number and bytes."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, tuple[Job, int]] = OrderedDict()
        self._bytes = 0

    def get(self, job_id: str) -> Job | None:
        found = self._jobs.get(job_id)
        if found is None:
            return None
        self._jobs.move_to_end(job_id)
        return found[0]

    def put(self, job: Job) -> None:
        self._drop(job.job_id)
        size = _size(job)
        self._jobs[job.job_id] = (job, size)
        self._bytes += size
        while len(self._jobs) > 1 and (len(self._jobs) > _ENDED_MAX or self._bytes > _ENDED_BYTES_MAX):
            self._drop(next(iter(self._jobs)))

    def _drop(self, job_id: str) -> None:
        found = self._jobs.pop(job_id, None)
        if found is not None:
            self._bytes -= found[1]


async def _all(futures: Iterable[asyncio.Future[Any]]) -> None:
    for future in futures:
        await asyncio.shield(future)


def _size(job: Job) -> int:
    spec = job.spec
    contents = sum(map(len, spec.files.values())) + len(spec.stdin or b"")
    words = sum(map(len, spec.args)) + sum(len(k) + len(v) for k, v in spec.env.items())
    # Once as bytes, once as text in the document that the API shows.
    return _JOB_BYTES + 3 * contents + 2 * words
