"""What may happen to a task or job, as pure functions from the old value to the new one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from .job import Job, Output, StreamTotals, Task
from .states import Reason, State, may_follow
from .worker import Worker

_EMPTY = StreamTotals(0, hashlib.sha256().hexdigest())
_NO_OUTPUT = Output(merged=_EMPTY, stdout=_EMPTY, stderr=_EMPTY, available=True)


@dataclass(frozen=True, slots=True)
class TaskKey:
    """One attempt of one task."""

    job_id: str
    rank: int
    attempt: int

    def ids(self) -> dict[str, str | int]:
        """By the names that events carry them under."""
        return {"job_id": self.job_id, "task_rank": self.rank, "attempt": self.attempt}


@dataclass(frozen=True, slots=True)
class Report:
    """A task as a worker tells of it; of ``task`` only what a worker can know is set."""

    job_id: str
    task: Task

    @property
    def key(self) -> TaskKey:
        return TaskKey(self.job_id, self.task.rank, self.task.attempt)


@dataclass(frozen=True, slots=True)
class Source:
    """Who reports: a worker in one incarnation and epoch. Of an older one nothing is believed."""

    worker_id: str
    incarnation: str
    epoch: int

    @classmethod
    def of(cls, worker: Worker) -> Source:
        return cls(worker.worker_id, worker.incarnation, worker.epoch)


def placed(job: Job, rank: int, worker: Worker) -> Job:
    """The job with that task given to ``worker``; whether it starts there is not known yet."""
    task = job.tasks[rank].evolve(
        state=State.STARTING,
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
        epoch=worker.epoch,
    )
    return job.with_task(task).evolve(queue_reason=None)


def refused(job: Job, rank: int, again: bool, error_text: str, now: datetime) -> Job:
    """After its worker said that it did not and will not start it: queued again, or failed; stopped if so asked."""
    task = job.tasks[rank]
    if task.state is State.STOPPING:
        return job.with_task(ended(task, State.STOPPED, Reason.STOPPED, now))
    if task.state is not State.STARTING:
        return job
    if again:
        return job.with_task(task.evolve(state=State.QUEUED, worker_id=None, incarnation="", epoch=0))
    return job.with_task(ended(task, State.FAILED, Reason.START_FAILED, now, error_text))


def stop_asked(job: Job, signal: str, grace_seconds: float, now: datetime) -> Job:
    """After a stop was asked for; the job itself when that changes nothing: it has ended, or a stop of it is as strict.

    Of two stops the one with the shorter grace is kept. Whether it still hastens the end its worker decides, which
    knows when the first one arrived.
    """
    if job.done or (job.stop_requested and _grace(signal, grace_seconds) >= _grace(*job.stop_requested)):
        return job
    tasks = tuple(
        ended(t, State.STOPPED, Reason.STOPPED, now)
        if t.state is State.QUEUED
        else t
        if t.state.done
        else t.evolve(state=State.STOPPING)
        for t in job.tasks
    )
    return job.evolve(tasks=tasks, stop_requested=(signal, grace_seconds), queue_reason=None)


def _grace(signal: str, grace_seconds: float) -> float:
    return 0.0 if signal == "KILL" else grace_seconds


def ended(task: Task, state: State, reason: Reason, now: datetime, error_text: str | None = None) -> Task:
    """The task ended by the controller's own decision; of an ended one nothing changes."""
    if task.state.done:
        return task
    # That a task which was nowhere wrote nothing is known, and can be read.
    output = task.output if task.worker_id is not None else _NO_OUTPUT
    return task.evolve(state=state, reason=reason, finished_at=now, error_text=error_text, output=output)


def merged(held: Task, reported: Task) -> Task:
    """What is held after a report; ``held`` itself when the report is late, repeated or of another attempt."""
    if held.state.done or held.attempt != reported.attempt or reported.state is State.QUEUED:
        return held
    if reported.state.done:
        news = reported.evolve(
            worker_id=held.worker_id,
            incarnation=held.incarnation,
            epoch=held.epoch,
            started_at=reported.started_at or held.started_at,
        )
        return news
    advances = may_follow(held.state, reported.state)
    # A task that we told to stop before we knew of its start: that it started is still news.
    fills = held.started_at is None and reported.started_at is not None
    if not advances and not fills and reported.state is not held.state:
        return held
    news = held.evolve(
        state=reported.state if advances else held.state,
        started_at=reported.started_at or held.started_at,
        usage=reported.usage,
        output=reported.output,
        limits_effective=reported.limits_effective or held.limits_effective,
        enforced=reported.enforced or held.enforced,
    )
    return held if news == held else news


class Fate(StrEnum):
    """What to do with a task that a worker holds by our books, after the worker told all it has."""

    KEEP = "keep"
    """It is there."""
    START = "start"
    """The start never arrived, or is on its way: to be sent (again)."""
    STOP = "stop"
    """The stop is to be sent (again)."""
    LOSE = "lose"
    """It was there and is not: nobody will ever tell its end."""


def reconciled(held: Task, source: Source, reported: bool) -> Fate:
    """The fate of a held task that ``source`` did, or did not, name in its whole list."""
    if held.state.done or held.state is State.QUEUED:
        return Fate.KEEP
    if reported:
        return Fate.STOP if held.state is State.STOPPING else Fate.KEEP
    if held.incarnation != source.incarnation:
        return Fate.LOSE  # its launcher, and so its processes, are gone
    if held.state is State.STARTING:
        return Fate.START
    if held.state is State.STOPPING and held.started_at is None:
        return Fate.STOP
    return Fate.LOSE
