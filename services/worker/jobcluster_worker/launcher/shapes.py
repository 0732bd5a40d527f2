"""What crosses the unix sockets and lies in claims and end logs: the proto's fields as JSON. Stdlib only."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, NotRequired, TypedDict, cast

State = Literal["starting", "running", "stopping", "succeeded", "failed", "stopped", "lost"]

TERMINAL: Final = frozenset({"succeeded", "failed", "stopped", "lost"})

# A job id is a file name in the claims and jobs directories: no separator, no leading dot.
JOB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class TaskId(TypedDict):
    """One attempt at one task of one job."""

    job_id: str
    task_rank: int
    attempt: int


TaskKey = tuple[str, int, int]
"""A TaskId as a dictionary key: (job_id, task_rank, attempt)."""


class IoLimits(TypedDict, total=False):
    """Per second; 0 or absent = none."""

    read_bps: int
    write_bps: int
    read_iops: int
    write_iops: int


class Limits(TypedDict, total=False):
    """Limits of one task; 0 or absent = none."""

    cpu: float
    memory_bytes: int
    pids: int
    io: IoLimits
    oom: str


class OutputOptions(TypedDict, total=False):
    """How to keep a task's output: ``max_bytes`` 0 = the worker's default, ``on_limit`` truncate or stop."""

    max_bytes: int
    on_limit: str
    separate: bool


class Spec(TypedDict):
    """A start: the fields of StartJobRequest by the same names; bytes are base64 strings."""

    job_id: str
    task_rank: int
    attempt: int
    task_count: NotRequired[int]
    worker_id: NotRequired[str]
    command_words: NotRequired[list[str]]
    path: NotRequired[str]
    args: NotRequired[list[str]]
    files: NotRequired[dict[str, str]]
    env: NotRequired[dict[str, str]]
    cwd: NotRequired[str]
    stdin: NotRequired[str | None]
    timeout_seconds: NotRequired[float]
    limits: NotRequired[Limits]
    network: NotRequired[str]
    output: NotRequired[OutputOptions]
    peers: NotRequired[list[str]]
    array_index: NotRequired[int | None]


class Enforcement(TypedDict):
    """Whether one resource's limits are enforced here; ``why`` not is empty when ok."""

    ok: bool
    why: str


class Usage(TypedDict):
    """What a task used; None = nobody can measure it here."""

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


class StreamTotals(TypedDict):
    """One stream's size and lower-case hex hash; the hash is empty while the task runs."""

    bytes: int
    sha256: str


class OutputInfo(TypedDict):
    """Where a task's output is, and how much of it."""

    path: str
    log_path: str
    merged: StreamTotals
    stdout: StreamTotals
    stderr: StreamTotals
    dropped_bytes: int
    available: bool


class Task(TypedDict):
    """A task as its supervisor knows it: the fields of TaskStatus by the same names, and the leader's pid."""

    job_id: str
    task_rank: int
    attempt: int
    state: State
    reason: str
    error_text: str
    exit_code: int | None
    signal: str
    started_at_us: int
    finished_at_us: int
    usage: Usage
    output: OutputInfo
    limits_effective: Limits
    enforced: dict[str, Enforcement]
    pid: int


def no_usage() -> Usage:
    """Usage of which nothing could be measured."""
    return cast(Usage, dict.fromkeys(Usage.__annotations__))


def no_output(path: str = "", log_path: str = "", available: bool = False) -> OutputInfo:
    """Output of zero bytes at ``path``."""
    return {
        "path": path,
        "log_path": log_path,
        "merged": {"bytes": 0, "sha256": ""},
        "stdout": {"bytes": 0, "sha256": ""},
        "stderr": {"bytes": 0, "sha256": ""},
        "dropped_bytes": 0,
        "available": available,
    }


def new_task(key: TaskKey, state: State) -> Task:
    """A task of which nothing is known but its id and state."""
    return {
        "job_id": key[0],
        "task_rank": key[1],
        "attempt": key[2],
        "state": state,
        "reason": "",
        "error_text": "",
        "exit_code": None,
        "signal": "",
        "started_at_us": 0,
        "finished_at_us": 0,
        "usage": no_usage(),
        "output": no_output(),
        "limits_effective": {},
        "enforced": {},
        "pid": 0,
    }


def key_of(value: Any) -> TaskKey:
    """The key of anything that carries a TaskId (an id, a spec, a task).

    :raises ValueError: unless job_id is a plain file name, and rank and attempt are >= 0 (attempt 0: a job that the
        worker minted itself and the controller does not know).
    """
    try:
        job_id, rank, attempt = value["job_id"], value["task_rank"], value["attempt"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no task id: {error}") from None
    if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
        raise ValueError(f"job_id {job_id!r} is not letters, digits, '.', '_' and '-', 128 at most")
    if type(rank) is not int or type(attempt) is not int or rank < 0 or attempt < 0:
        raise ValueError(f"task_rank {rank!r} or attempt {attempt!r} is out of range")
    return job_id, rank, attempt


def id_of(key: TaskKey) -> TaskId:
    """The TaskId of a key."""
    return {"job_id": key[0], "task_rank": key[1], "attempt": key[2]}
