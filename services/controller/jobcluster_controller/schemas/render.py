"""From the domain to the documents the HTTP API shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from ..domain.job import Enforcement, Job, Limits, Output, StreamTotals, Task, Usage
from ..domain.states import State
from ..domain.worker import Worker
from ..events import JobChange

_USAGE = tuple(f.name for f in fields(Usage))


def time_text(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, with microseconds."""
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def job_document(job: Job) -> dict[str, Any]:
    """The job as the API shows it. With several tasks ``worker_id`` and ``output`` are null."""
    spec, state, deciding = job.spec, job.state, job.deciding_task
    only = job.tasks[0] if len(job.tasks) == 1 else None
    return {
        "job_id": job.job_id,
        "spec": spec.document,
        "name": spec.name,
        "labels": spec.labels,
        "state": state,
        "reason": deciding.reason if deciding else None,
        "done": state.done,
        "error": state in (State.FAILED, State.LOST),
        "error_text": deciding.error_text or None if deciding else None,
        "exit_code": deciding.exit_code if deciding else None,
        "signal": deciding.signal or None if deciding else None,
        "worker_id": only.worker_id if only else None,
        "attempt": max(task.attempt for task in job.tasks),
        "tasks": [task_document(task) for task in job.tasks],
        "attempts": [_attempt(task) for task in (*job.past_attempts, *job.tasks)],
        "queue_reason": job.queue_reason,
        "created_at": time_text(job.created_at),
        "started_at": time_text(job.started_at),
        "finished_at": time_text(job.finished_at),
        "limits": {
            "requested": _limits(spec.limits),
            "effective": _limits(only.limits_effective) if only and only.limits_effective else None,
            "enforced": enforced_document(only.enforced) if only else {},
        },
        "usage": _usage(only.usage) if only else _sum_of_usage(job),
        "output": _output(only.output) if only else None,
    }


def job_change_document(change: JobChange) -> dict[str, Any]:
    """An event's job: the words are those of ``job_document``."""
    return {
        "job_id": change.job_id,
        "name": change.name,
        "labels": change.labels,
        "state": change.state,
        "reason": change.reason,
        "done": change.state.done,
        "exit_code": change.exit_code,
        "signal": change.signal,
        "worker_id": change.worker_id,
        "attempt": change.attempt,
        "created_at": time_text(change.created_at),
        "started_at": time_text(change.started_at),
        "finished_at": time_text(change.finished_at),
    }


def task_document(task: Task) -> dict[str, Any]:
    return {
        "rank": task.rank,
        "worker_id": task.worker_id,
        "state": task.state,
        "reason": task.reason,
        "exit_code": task.exit_code,
        "signal": task.signal or None,
        "usage": _usage(task.usage),
        "output": _output(task.output),
    }


def end_document(job: Job, stream: str) -> dict[str, Any]:
    """The last event of a job's output: how it ended, and what each task's stream must have come to."""
    deciding = job.deciding_task
    totals = [(task.rank, stream_totals(task.output, stream)) for task in job.tasks]
    return {
        "state": job.state,
        "reason": deciding.reason if deciding else None,
        "exit_code": deciding.exit_code if deciding else None,
        "tasks": [{"rank": rank, "bytes": total.bytes, "sha256": total.sha256} for rank, total in totals],
    }


def stream_totals(output: Output, stream: str) -> StreamTotals:
    return {"merged": output.merged, "stdout": output.stdout, "stderr": output.stderr}[stream]


def worker_document(worker: Worker, running: int) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "address": worker.address,
        "state": worker.state,
        "labels": worker.labels,
        "capacity": asdict(worker.capacity),
        "limits": {
            "default": _amounts(worker.limits.default),
            "max": _amounts(worker.limits.max),
            "worker": _amounts(worker.limits.worker),
        },
        "running": running,
        "enforced": enforced_document(worker.enforced),
        "version": worker.version,
        "registered_at": time_text(worker.registered_at),
        "last_seen_at": time_text(worker.last_seen_at),
    }


def enforced_document(enforced: Mapping[str, Enforcement]) -> dict[str, Any]:
    return {
        name: {"ok": True} if e.ok else {"ok": False, "why": e.why} for name, e in sorted(enforced.items())
    }


def _attempt(task: Task) -> dict[str, Any]:
    return {
        "attempt": task.attempt,
        "rank": task.rank,
        "worker_id": task.worker_id,
        "state": task.state,
        "reason": task.reason,
        "error_text": task.error_text or None,
        "exit_code": task.exit_code,
        "signal": task.signal or None,
        "started_at": time_text(task.started_at),
        "finished_at": time_text(task.finished_at),
    }


def _amounts(limits: Limits) -> dict[str, Any]:
    return {"cpu": limits.cpu, "memory": limits.memory, "pids": limits.pids, "io": asdict(limits.io)}


def _limits(limits: Limits) -> dict[str, Any]:
    return {**_amounts(limits), "oom": limits.oom}


def _usage(usage: Usage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in _USAGE}


def _sum_of_usage(job: Job) -> dict[str, Any]:
    """What all tasks used together; unknown of one is unknown of all."""
    columns = {name: [getattr(task.usage, name) for task in job.tasks] for name in _USAGE}
    return {name: None if None in values else sum(values) for name, values in columns.items()}


def _output(output: Output) -> dict[str, Any]:
    return {
        "path": output.path or None,
        "log_path": output.log_path or None,
        "bytes": output.merged.bytes,
        "sha256": output.merged.sha256 or None,
        "dropped_bytes": output.dropped_bytes,
        "available": output.available,
    }
