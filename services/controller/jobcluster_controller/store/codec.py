"""Jobs and workers as JSON text and back. What has its default is left out: most of a job has, most of the time."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from ..domain.job import (
    Enforcement,
    IoLimits,
    Job,
    JobSpec,
    Limits,
    Output,
    OutputOptions,
    StreamTotals,
    Task,
    Usage,
)
from ..domain.states import Reason, State, WorkerState
from ..domain.worker import Capacity, Worker, WorkerLimits

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch; exact, which a float is not."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def job_status(job: Job) -> str:
    """All of a job that changes."""
    document: dict[str, Any] = {"created_us": to_us(job.created_at), "tasks": [_task(t) for t in job.tasks]}
    if job.past_attempts:
        document["past_attempts"] = [_task(t) for t in job.past_attempts]
    if job.stop_requested is not None:
        document["stop_requested"] = job.stop_requested
    if job.array_id is not None:
        document["array_id"] = job.array_id
    return _dumps(document)


def job_spec(spec: JobSpec) -> str:
    """All of a job that never changes."""
    document = _sparse(spec, _SPEC, _NO_SPEC)
    if spec.files:
        document["files"] = {name: _base64(content) for name, content in spec.files.items()}
    if spec.stdin is not None:
        document["stdin"] = _base64(spec.stdin)
    if spec.limits != _NO_SPEC.limits:
        document["limits"] = _limits(spec.limits)
    if spec.limits_default != _NO_SPEC.limits_default:
        document["limits_default"] = _limits(spec.limits_default)
    if spec.output != _NO_SPEC.output:
        document["output"] = _sparse(spec.output, _OUTPUT_OPTIONS, _NO_SPEC.output)
    return _dumps(document)


def job(job_id: str, status: str, spec: str) -> Job:
    """The job of a row.

    :raises ValueError, KeyError, TypeError: if the texts are not of this codec.
    """
    document = json.loads(status)
    stop = document.get("stop_requested")
    return Job(
        job_id=job_id,
        spec=_spec_from(json.loads(spec)),
        created_at=from_us(document["created_us"]),
        tasks=tuple(_task_from(t) for t in document["tasks"]),
        past_attempts=tuple(_task_from(t) for t in document.get("past_attempts", ())),
        array_id=document.get("array_id"),
        stop_requested=(stop[0], stop[1]) if stop else None,
    )


def worker(value: Worker) -> str:
    document = {
        "address": value.address,
        "state": value.state,
        "incarnation": value.incarnation,
        "epoch": value.epoch,
        "registered_us": to_us(value.registered_at),
        "last_seen_us": to_us(value.last_seen_at),
        "version": value.version,
        "labels": value.labels,
        "capacity": [value.capacity.cpu, value.capacity.memory, value.capacity.tasks],
        "enforced": _enforced(value.enforced),
        "retired": value.retired,
    }
    if value.limits != WorkerLimits():
        document["limits"] = {name: _limits(getattr(value.limits, name)) for name in _WORKER_LIMITS}
    return _dumps(document)


def worker_from(worker_id: str, text: str) -> Worker:
    """The worker of a row.

    :raises ValueError, KeyError, TypeError: if the text is not of this codec.
    """
    document = json.loads(text)
    cpu, memory, tasks = document["capacity"]
    return Worker(
        worker_id=worker_id,
        address=document["address"],
        state=WorkerState(document["state"]),
        incarnation=document["incarnation"],
        epoch=document["epoch"],
        registered_at=from_us(document["registered_us"]),
        last_seen_at=from_us(document["last_seen_us"]),
        version=document["version"],
        labels=document["labels"],
        capacity=Capacity(cpu, memory, tasks),
        limits=WorkerLimits(
            **{name: _limits_from(held) for name, held in document.get("limits", {}).items()}
        ),
        enforced=_enforced_from(document["enforced"]),
        retired=tuple(document["retired"]),
    )


def labels(value: Mapping[str, str]) -> str:
    return _dumps(dict(value))


_SPEC = (
    "command",
    "path",
    "args",
    "env",
    "cwd",
    "timeout_seconds",
    "network",
    "tasks",
    "worker_id",
    "name",
    "labels",
    "document",
)
_NO_SPEC = JobSpec()
_OUTPUT_OPTIONS = ("max_bytes", "on_limit", "separate")
_TASK = (
    "rank",
    "attempt",
    "worker_id",
    "incarnation",
    "epoch",
    "reason",
    "error_text",
    "exit_code",
    "signal",
)
_NO_TASK = Task()
_USAGE = tuple(f.name for f in fields(Usage))
_NO_USAGE = Usage()
_WORKER_LIMITS = ("default", "max", "worker")
_IO = ("read_bps", "write_bps", "read_iops", "write_iops")
_OUTPUT = ("path", "log_path", "dropped_bytes", "available")
_NO_OUTPUT = Output()
_STREAMS = ("merged", "stdout", "stderr")


def _dumps(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _sparse(value: object, names: Iterable[str], default: object) -> dict[str, Any]:
    found = ((name, getattr(value, name)) for name in names)
    return {name: v for name, v in found if v != getattr(default, name)}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _limits(limits: Limits) -> dict[str, Any]:
    document = _sparse(limits, ("cpu", "memory", "pids", "oom"), Limits())
    if limits.io != IoLimits():
        document["io"] = _sparse(limits.io, _IO, IoLimits())
    return document


def _limits_from(document: dict[str, Any]) -> Limits:
    return Limits(**{**document, "io": IoLimits(**document.get("io", {}))})


def _enforced(enforced: dict[str, Enforcement]) -> dict[str, Any]:
    return {name: [e.ok, e.why] for name, e in enforced.items()}


def _enforced_from(document: dict[str, Any]) -> dict[str, Enforcement]:
    return {name: Enforcement(ok, why) for name, (ok, why) in document.items()}


def _spec_from(document: dict[str, Any]) -> JobSpec:
    fields = dict(document)
    for name in ("command", "args"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if "files" in fields:
        fields["files"] = {name: base64.b64decode(text) for name, text in fields["files"].items()}
    if "stdin" in fields:
        fields["stdin"] = base64.b64decode(fields["stdin"])
    for name in ("limits", "limits_default"):
        if name in fields:
            fields[name] = _limits_from(fields[name])
    if "output" in fields:
        fields["output"] = OutputOptions(**fields["output"])
    return JobSpec(**fields)


def _task(task: Task) -> dict[str, Any]:
    document = _sparse(task, _TASK, _NO_TASK)
    document["state"] = task.state
    if task.started_at is not None:
        document["started_us"] = to_us(task.started_at)
    if task.finished_at is not None:
        document["finished_us"] = to_us(task.finished_at)
    if task.usage != _NO_USAGE:
        document["usage"] = _sparse(task.usage, _USAGE, _NO_USAGE)
    if task.output != _NO_OUTPUT:
        document["output"] = _sparse(task.output, _OUTPUT, _NO_OUTPUT)
        for stream in _STREAMS:
            totals: StreamTotals = getattr(task.output, stream)
            if totals != StreamTotals():
                document["output"][stream] = [totals.bytes, totals.sha256]
    if task.limits_effective is not None:
        document["limits_effective"] = _limits(task.limits_effective)
    if task.enforced:
        document["enforced"] = _enforced(task.enforced)
    return document


def _task_from(document: dict[str, Any]) -> Task:
    fields = dict(document)
    fields["state"] = State(fields["state"])
    if "reason" in fields:
        fields["reason"] = Reason(fields["reason"])
    for name in ("started", "finished"):
        if f"{name}_us" in fields:
            fields[f"{name}_at"] = from_us(fields.pop(f"{name}_us"))
    if "usage" in fields:
        fields["usage"] = Usage(**fields["usage"])
    if "output" in fields:
        output = dict(fields["output"])
        for stream in _STREAMS:
            if stream in output:
                output[stream] = StreamTotals(*output[stream])
        fields["output"] = Output(**output)
    if "limits_effective" in fields:
        fields["limits_effective"] = _limits_from(fields["limits_effective"])
    if "enforced" in fields:
        fields["enforced"] = _enforced_from(fields["enforced"])
    return Task(**fields)
