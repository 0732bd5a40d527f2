"""What the HTTP API answers with. ``render`` makes it; these models say, and tests check, its form."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from ..domain.states import Reason, State, WorkerState
from .spec import Closed, JobSpecBody

RFC3339 = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$"
Time = str | None


class FaultDocument(Closed):
    """One fault of a request."""

    model_config = ConfigDict(title="Fault")

    pointer: str = Field(description="JSON pointer into the body, or the parameter's name; empty = the whole")
    detail: str


class Problem(Closed):
    """RFC 9457: why a request was not done."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultDocument]
    request_id: str = Field(description="also in the header X-Request-ID, and in the log")


class EnforcementDocument(Closed):
    """Whether one resource's limits are enforced by the kernel, and if not, why."""

    model_config = ConfigDict(title="Enforcement")

    ok: bool
    why: str | None = None


class IoNumbers(Closed):
    """Per second; null = none."""

    read_bps: int | None
    write_bps: int | None
    read_iops: int | None
    write_iops: int | None


class Amounts(Closed):
    """Cores, bytes, processes, per second; null = none."""

    cpu: float | None
    memory: int | None
    pids: int | None
    io: IoNumbers


class LimitNumbers(Amounts):
    """Limits as plain numbers: cores, bytes, per second; null = none."""

    oom: str


class JobLimits(Closed):
    """What was asked for, what the kernel holds (null until the start), and what of it is enforced."""

    requested: LimitNumbers
    effective: LimitNumbers | None
    enforced: dict[str, EnforcementDocument]


class UsageDocument(Closed):
    """From the kernel's counters; null = nobody can measure it there.

    Pressure: for how long some, or all, of the task's processes stood still for want of CPU, memory or IO (PSI).
    """

    model_config = ConfigDict(title="Usage")

    cpu_seconds: float | None
    memory_peak_bytes: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    pids_peak: int | None
    cpu_throttled_seconds: float | None
    oom_kills: int | None
    cpu_pressure_some_seconds: float | None
    cpu_pressure_full_seconds: float | None
    memory_pressure_some_seconds: float | None
    memory_pressure_full_seconds: float | None
    io_pressure_some_seconds: float | None
    io_pressure_full_seconds: float | None


class OutputDocument(Closed):
    """A task's output as captured, on its worker."""

    model_config = ConfigDict(title="Output")

    path: str | None = Field(description="the file on the worker; null before the start")
    log_path: str | None = Field(
        description="that worker's own log; null where it goes to stderr, as in a container"
    )
    bytes: int = Field(description="kept so far; of a running task when it is asked for by its id")
    sha256: str | None = Field(description="null until the task has ended")
    dropped_bytes: int = Field(description="written after what is kept, and not kept")
    available: bool = Field(description="it can be read; false when expired, or its worker is lost or gone")


class TaskDocument(Closed):
    """One process of a job."""

    model_config = ConfigDict(title="Task")

    rank: int
    worker_id: str | None
    state: State
    reason: Reason | None
    exit_code: int | None
    signal: str | None
    usage: UsageDocument
    output: OutputDocument


class AttemptDocument(Closed):
    """One start of one task."""

    model_config = ConfigDict(title="Attempt")

    attempt: int
    rank: int
    worker_id: str | None
    state: State
    reason: Reason | None
    error_text: str | None
    exit_code: int | None
    signal: str | None
    started_at: Time
    finished_at: Time


class SpecDocument(JobSpecBody):
    """The spec as posted, its defaults filled."""

    model_config = ConfigDict(title="Spec", json_schema_extra=None)


class JobDocument(Closed):
    """A job: what was asked for and what became of it."""

    model_config = ConfigDict(title="Job")

    job_id: str
    spec: SpecDocument
    name: str | None
    labels: dict[str, str]
    state: State
    reason: Reason | None
    done: bool = Field(description="the state is terminal and never changes")
    error: bool = Field(description="failed or lost")
    error_text: str | None = Field(description="what went wrong, where there is more to say than the reason")
    exit_code: int | None = Field(description="null when a signal ended it")
    signal: str | None = Field(description="the name of the signal that ended it, as in TERM")
    worker_id: str | None = Field(description="null while queued, and where tasks run on several workers")
    attempt: int = Field(description="from 1")
    tasks: list[TaskDocument]
    attempts: list[AttemptDocument] = Field(description="oldest first, the present one last")
    queue_reason: str | None = Field(description="why it waits now")
    created_at: str = Field(pattern=RFC3339)
    started_at: Time
    finished_at: Time
    limits: JobLimits
    usage: UsageDocument | None
    output: OutputDocument | None


class JobList(Closed):
    """A page of jobs, newest first."""

    jobs: list[JobDocument]
    next_cursor: str | None = Field(description="for ?cursor=; null: this was the last page")


class CapacityDocument(Closed):
    """What a worker has: cores, bytes, tasks at once."""

    model_config = ConfigDict(title="Capacity")

    cpu: float
    memory: int
    tasks: int


class WorkerLimitsDocument(Closed):
    """The limits that a worker was started with."""

    model_config = ConfigDict(title="WorkerLimits")

    default: Amounts = Field(description="of a task that asks for nothing")
    max: Amounts = Field(
        description="what no task may exceed; also the limit where nothing is asked or default"
    )
    worker: Amounts = Field(description="of all its tasks together")


class WorkerDocument(Closed):
    """A worker as the controller knows it."""

    model_config = ConfigDict(title="Worker")

    worker_id: str
    address: str
    state: WorkerState
    labels: dict[str, str]
    capacity: CapacityDocument
    limits: WorkerLimitsDocument
    running: int = Field(description="tasks that have not ended")
    enforced: dict[str, EnforcementDocument]
    version: str
    registered_at: str = Field(pattern=RFC3339)
    last_seen_at: str = Field(pattern=RFC3339)


class WorkerList(Closed):
    """The workers."""

    workers: list[WorkerDocument]


class EnrolledDocument(Closed):
    """A worker's new identity."""

    model_config = ConfigDict(title="Enrolled")

    worker_id: str
    certificate: str = Field(description="PEM")
    ca: str = Field(description="PEM")


class Health(Closed):
    """How the controller is."""

    status: str


class OpenApi(Closed):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
