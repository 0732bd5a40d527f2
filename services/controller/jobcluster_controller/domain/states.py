"""The states and reasons of jobs, tasks and workers, and which change may follow which."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """State of a job or of one of its tasks. A terminal state never changes."""

    QUEUED = "queued"
    """Waits for a worker."""
    STARTING = "starting"
    """Given to a worker; whether its process exists is not known yet."""
    RUNNING = "running"
    """Its process exists."""
    STOPPING = "stopping"
    """A stop was asked for; its processes may still live."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def done(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED, State.LOST})

_ORDER = {State.QUEUED: 0, State.STARTING: 1, State.RUNNING: 2, State.STOPPING: 3}


def may_follow(old: State, new: State) -> bool:
    """Whether ``new`` is news after ``old``: states only go forward, and late or repeated reports change nothing."""
    if old.done:
        return False
    return new.done or _ORDER[new] > _ORDER[old]


class Reason(StrEnum):
    """Why a job or task ended: what happened first."""

    EXITED = "exited"
    SIGNALED = "signaled"
    STOPPED = "stopped"
    TIMED_OUT = "timed_out"
    OOM_KILLED = "oom_killed"
    OUTPUT_LIMIT = "output_limit"
    START_FAILED = "start_failed"
    TASK_FAILED = "task_failed"
    WORKER_SHUTDOWN = "worker_shutdown"
    SUPERVISOR_LOST = "supervisor_lost"
    WORKER_LOST = "worker_lost"
    SPAWN_TIMEOUT = "spawn_timeout"


class WorkerState(StrEnum):
    """State of a worker as the controller sees it."""

    STARTING = "starting"
    """Made by the provisioner, not registered yet."""
    READY = "ready"
    DRAINING = "draining"
    """Takes no new jobs."""
    UNREACHABLE = "unreachable"
    """Silent, within its lease."""
    LOST = "lost"
    """Silent past its lease: its jobs were given up."""
    GONE = "gone"
    """Deregistered."""
