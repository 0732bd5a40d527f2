"""Job, Task and Attempt: what was asked for and what became of it. Pure values; ``evolve`` makes the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from jobcluster_common.limits import NAMES

from .states import Reason, State


@dataclass(frozen=True, slots=True)
class IoLimits:
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Per task. None = none. cpu in cores, memory in bytes."""

    cpu: float | None = None
    memory: int | None = None
    pids: int | None = None
    io: IoLimits = IoLimits()
    oom: str = "group"

    @classmethod
    def of(cls, amounts: Mapping[str, float]) -> Self:
        """From amounts by name ("memory", "io/read_bps"); what is not there is none."""
        whole = {name: int(amount) for name, amount in amounts.items() if name != "cpu"}
        io = {name.removeprefix("io/"): amount for name, amount in whole.items() if name.startswith("io/")}
        return cls(amounts.get("cpu"), whole.get("memory"), whole.get("pids"), IoLimits(**io))

    def get(self, name: str) -> float | None:
        """One amount by its name."""
        found: float | None = getattr(self.io, name[3:]) if name.startswith("io/") else getattr(self, name)
        return found

    def amounts(self) -> dict[str, float]:
        """What is limited, by its name."""
        return {name: amount for name in NAMES if (amount := self.get(name)) is not None}


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class OutputOptions:
    max_bytes: int = 1 << 30
    on_limit: str = "truncate"
    separate: bool = True


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A checked job spec. ``document`` is what the API shows: as posted, defaults filled.

    ``limits`` is what was asked for, ``limits_default`` what the cluster gives where nothing was.
    """

    command: tuple[str, ...] = ()
    path: str | None = None
    args: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    stdin: bytes | None = None
    timeout_seconds: float | None = None
    limits: Limits = Limits()
    limits_default: Limits = Limits()
    network: str = "host"
    output: OutputOptions = OutputOptions()
    tasks: int = 1
    worker_id: str | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamTotals:
    bytes: int = 0
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """Where a task's output is on its worker, and how much of it."""

    path: str | None = None
    log_path: str | None = None
    merged: StreamTotals = StreamTotals()
    stdout: StreamTotals = StreamTotals()
    stderr: StreamTotals = StreamTotals()
    dropped_bytes: int = 0
    available: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """From the kernel's counters; None = nobody can measure it there."""

    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    pids_peak: int | None = None
    cpu_throttled_seconds: float | None = None
    oom_kills: int | None = None
    cpu_pressure_some_seconds: float | None = None
    cpu_pressure_full_seconds: float | None = None
    memory_pressure_some_seconds: float | None = None
    memory_pressure_full_seconds: float | None = None
    io_pressure_some_seconds: float | None = None
    io_pressure_full_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Enforcement:
    ok: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One process of a job, in its newest attempt.

    ``epoch`` and ``incarnation`` are those its worker had when the task was given to it.
    """

    rank: int = 0
    attempt: int = 1
    state: State = State.QUEUED
    worker_id: str | None = None
    incarnation: str = ""
    epoch: int = 0
    reason: Reason | None = None
    error_text: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    usage: Usage = Usage()
    output: Output = Output()
    limits_effective: Limits | None = None
    enforced: dict[str, Enforcement] = field(default_factory=dict)

    def evolve(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Job:
    """A job and its tasks 0..N-1. State, reason and times are what its tasks add up to.

    ``stop_requested`` is the strictest stop that was acknowledged to a caller: (signal, grace_seconds).
    """

    job_id: str
    spec: JobSpec
    created_at: datetime
    tasks: tuple[Task, ...] = (Task(),)
    past_attempts: tuple[Task, ...] = ()
    queue_reason: str | None = None
    array_id: str | None = None
    stop_requested: tuple[str, float] | None = None

    def evolve(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    def with_task(self, task: Task) -> Self:
        return self.evolve(tasks=tuple(task if t.rank == task.rank else t for t in self.tasks))

    @property
    def state(self) -> State:
        """The first failing task decides; else stopped, lost, succeeded; while one lives, the most advanced state."""
        if len(self.tasks) == 1:
            return self.tasks[0].state
        states = [t.state for t in self.tasks]
        if all(s.done for s in states):
            for candidate in (State.FAILED, State.STOPPED, State.LOST):
                if candidate in states:
                    return candidate
            return State.SUCCEEDED
        if State.STOPPING in states or (self.stop_requested and State.QUEUED not in states):
            return State.STOPPING
        if State.RUNNING in states or any(s.done for s in states):
            return State.RUNNING
        return State.STARTING if State.STARTING in states else State.QUEUED

    @property
    def done(self) -> bool:
        return all(t.state.done for t in self.tasks)

    def task(self, rank: int) -> Task | None:
        return self.tasks[rank] if 0 <= rank < len(self.tasks) else None

    def worker_of(self, task: Task) -> str | None:
        """The worker that holds the task, or that it waits for: who pinned it there knows it by that name only."""
        return task.worker_id or self.spec.worker_id

    @property
    def deciding_task(self) -> Task | None:
        """The task whose reason and exit code are the job's: of those in the job's state, the one that ended first."""
        if not self.done:
            return None
        state = self.state
        ended = [t for t in self.tasks if t.state is state]
        return min(ended, key=lambda t: (t.finished_at is None, t.finished_at, t.rank))

    @property
    def started_at(self) -> datetime | None:
        return min((t.started_at for t in self.tasks if t.started_at), default=None)

    @property
    def finished_at(self) -> datetime | None:
        return max((t.finished_at for t in self.tasks if t.finished_at), default=None) if self.done else None
