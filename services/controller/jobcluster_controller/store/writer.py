"""The one thread that writes: it takes all that is pending into one transaction and commits it once."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from jobcluster_common.errors import Internal, Unavailable

from ..domain.job import Job
from ..domain.worker import Worker
from . import codec
from .protocol import IDEMPOTENCY_LIFETIME, IdempotencyKey, Repeat

log = structlog.get_logger()

# How long a lazy write waits for company. A short job's "running" is mostly overtaken by its end within this
# time, and is then never written.
LAZY_SECONDS = 0.02


@dataclass(slots=True)
class Write:
    """One call's writes. All of one are committed together, in the order of their enqueueing."""

    future: asyncio.Future[Any]
    new: Job | None = None
    key: IdempotencyKey | None = None
    jobs: Sequence[Job] = ()
    workers: Sequence[Worker] = ()
    run: Callable[[sqlite3.Connection], None] | None = None
    lazy: bool = False


_Outcome = tuple[asyncio.Future[Any], Any, BaseException | None]


class Writer:
    """Owns the writing connection. Futures resolve on the loop, after the commit, in the order of the writes."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        statements: dict[str, str],
        loop: asyncio.AbstractEventLoop,
        lazy_seconds: float = LAZY_SECONDS,
    ) -> None:
        self._connection = connection
        self._sql = statements
        self._loop = loop
        self._lazy_seconds = lazy_seconds
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self.commits = 0
        self.failed = False
        """Whether the disk refused the last commit that was tried."""
        self._thread.start()

    def submit(self, write: Write) -> None:
        self._queue.put(write)

    def close(self) -> None:
        """Commits what is pending and ends the thread. Blocks: not for the event loop."""
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while True:
            group, last = self._gather()
            if group:
                outcomes = self._commit_group(group)
                self._loop.call_soon_threadsafe(_resolve, outcomes)
            if last:
                return

    def _gather(self) -> tuple[list[Write], bool]:
        """Waits for a write, then takes all that are there; a group of lazy ones only waits a little for others."""
        group: list[Write] = []
        deadline: float | None = None
        while True:
            try:
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
                write = self._queue.get(timeout=timeout)
                while True:
                    if write is None:
                        return group, True
                    group.append(write)
                    write = self._queue.get_nowait()
            except queue.Empty:
                pass
            if deadline is not None and time.monotonic() >= deadline:
                return group, False
            if not all(write.lazy for write in group):
                return group, False
            deadline = deadline or time.monotonic() + self._lazy_seconds

    def _commit_group(self, group: list[Write]) -> list[_Outcome]:
        try:
            results = self._transaction(group)
        except Exception as error:
            if len(group) == 1:
                self.failed = isinstance(error, sqlite3.Error)
                return [(group[0].future, None, _as_unavailable(error))]
            # One of them is at fault, or the disk: each alone tells which, and none fails for its neighbour.
            return [outcome for write in group for outcome in self._commit_group([write])]
        return [(write.future, result, None) for write, result in zip(group, results, strict=True)]

    def _transaction(self, group: list[Write]) -> list[Repeat | None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [self._insert(w.new, w.key) if w.new is not None else None for w in group]
            # Of many versions of a job in one commit only the last one is ever seen.
            jobs = {job.job_id: job for write in group for job in write.jobs}
            workers = {worker.worker_id: worker for write in group for worker in write.workers}
            self._update(jobs, workers)
            for write in group:
                if write.run is not None:
                    write.run(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self.commits += 1
        self.failed = False
        return results

    def _insert(self, job: Job, key: IdempotencyKey | None) -> Repeat | None:
        execute = self._connection.execute
        if key is not None:
            found = execute(self._sql["find_key"], key_parameters(key)).fetchone()
            if found is not None:
                return Repeat(*found)
        row = job_parameters(job)
        row["name"] = job.spec.name
        row["array_id"] = job.array_id
        number = execute(self._sql["insert_job"], row).lastrowid
        execute(self._sql["insert_spec"], {"number": number, "spec": codec.job_spec(job.spec)})
        for name, value in job.spec.labels.items():
            execute(self._sql["insert_label"], {"key": name, "value": value, "number": number})
        if key is not None:
            execute(self._sql["insert_key"], {**key_parameters(key), "job_id": job.job_id})
        return None

    def _update(self, jobs: dict[str, Job], workers: dict[str, Worker]) -> None:
        if jobs:
            rows = [job_parameters(job) for job in jobs.values()]
            changed = self._connection.executemany(self._sql["update_job"], rows).rowcount
            if changed != len(rows):
                # Its insert failed, or was a repeat: what was decided on it meanwhile must not seem written.
                raise Internal(f"{len(rows) - changed} of {len(rows)} jobs to save are not in the store")
        if workers:
            documents = [{"worker_id": w.worker_id, "document": codec.worker(w)} for w in workers.values()]
            self._connection.executemany(self._sql["save_worker"], documents)


def job_parameters(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "state": job.state.value,
        "worker_id": job.worker_of(job.tasks[0]),
        "status": codec.job_status(job),
    }


def key_parameters(key: IdempotencyKey) -> dict[str, Any]:
    return {
        "caller": key.caller,
        "route": key.route,
        "key": key.key,
        "body_hash": key.body_hash,
        "created_us": codec.to_us(key.created_at),
        "after_us": codec.to_us(key.created_at - IDEMPOTENCY_LIFETIME),
    }


def _as_unavailable(error: Exception) -> Exception:
    log.error("store_commit_failed", exc_info=error)
    if isinstance(error, sqlite3.Error):
        return Unavailable(f"the store could not commit: {error}", retry_after=5.0)
    return error


def _resolve(outcomes: list[_Outcome]) -> None:
    for future, result, error in outcomes:
        # A caller that went away has cancelled its future; the write stands all the same.
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
