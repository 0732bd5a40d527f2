"""The worker's settings; every key has its sentence here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from jobcluster_common.limit_settings import TaskBoundsBlock, TaskLimitsBlock
from jobcluster_common.settings import (
    Address,
    AnyPath,
    Block,
    ControllerBlock,
    ExistingFile,
    GrpcServerBlock,
    LogBlock,
    Size,
)
from pydantic import AfterValidator, Field, model_validator


def _must_be_directory(value: Path) -> Path:
    if not value.is_dir():
        raise ValueError(f"no such directory: {value}; make it, or name another")
    if not os.access(value, os.R_OK | os.X_OK):
        raise ValueError(f"cannot be read: {value}; let this user read it")
    return value


ExistingDirectory = Annotated[AnyPath, AfterValidator(_must_be_directory)]


class WorkerGrpcBlock(GrpcServerBlock):
    """[grpc_server]: where the controller calls this worker. Without crt_file and key_file the worker enrols."""

    addr: Address = "0.0.0.0:7444"

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> Self:
        if self.use_tls and self.ca_file is None:
            raise ValueError("ca_file is needed; give the cluster's CA certificate")
        return self


class WorkerControllerBlock(ControllerBlock):
    """[controller]: whom the worker registers with, and where it enrols."""

    enroll_url: str = Field("https://127.0.0.1:8443", pattern=r"^https://[^\s/]+/?$")
    """Scheme, host and port of the controller's HTTPS server."""


class AuthBlock(Block):
    """[auth]."""

    join: ExistingFile | None = None
    """File with the join token; needed once, to enrol."""


class WorkerBlock(Block):
    """[worker]."""

    state_directory: AnyPath
    """Key, certificate, ends not yet acknowledged: kept across restarts, this worker's alone."""


class JobsBlock(Block):
    """[jobs]."""

    template_directory: ExistingDirectory | None = None
    """Where a relative path of a job is looked for; jobs read it."""
    data_directory: AnyPath | None = None
    """Output and work directories; without it ``data`` in the state directory."""
    log_file: AnyPath | None = None
    """Without it the log goes to stderr."""
    output_max_bytes: Size | None = Field(None, gt=0)
    """The most that is kept of a task's output, whatever its spec says; None: what the spec says."""
    max_tasks: int = Field(1000, gt=0, le=2000)
    """Tasks that run at once."""


class LimitsBlock(TaskBoundsBlock):
    """[limits]: set when the worker starts; nothing changes them later."""

    require: bool = True
    """A worker that cannot enforce limits does not start, and a task whose limits cannot be set fails."""
    worker: TaskLimitsBlock = TaskLimitsBlock()
    """Of all tasks together."""


class ShutdownBlock(Block):
    """[shutdown]: what SIGTERM does. The worker is gone after the sum of the seconds and 5 more, at the latest."""

    on_sigterm: Literal["stop", "drain"] = "stop"
    """Stop running tasks at once, or let them end by themselves for drain_seconds."""
    grace_seconds: float = Field(10.0, ge=0)
    """From TERM to KILL of a task."""
    drain_seconds: float = Field(0.0, ge=0)
    handover_seconds: float = Field(5.0, ge=0)
    """For the controller to take the last ends."""


class LeaseBlock(Block):
    """[lease]."""

    stop_on_partition_seconds: float | None = Field(None, gt=0)
    """Tasks are stopped when no heartbeat was acknowledged for so long; None: they run on."""

    @model_validator(mode="after")
    def _not_there_yet(self) -> Self:
        # Better refused than believed in.
        if self.stop_on_partition_seconds is not None:
            raise ValueError("stop_on_partition_seconds is not built yet; leave it out")
        return self


class RetentionBlock(Block):
    """[retention]: how long outputs and work directories of ended tasks are kept; then they are gone (410)."""

    output_seconds: float | None = Field(7 * 86400.0, gt=0)
    """From the task's end; None: for ever."""
    output_bytes: Size | None = Field(None, gt=0)
    """On the disk, of all ended tasks together; the oldest go first. None: no limit."""


class WorkerSettings(Block):
    """One file, one worker."""

    grpc_server: WorkerGrpcBlock
    controller: WorkerControllerBlock = WorkerControllerBlock()
    auth: AuthBlock = AuthBlock()
    worker: WorkerBlock
    jobs: JobsBlock = JobsBlock()
    limits: LimitsBlock = LimitsBlock()
    labels: dict[str, str] = Field(default_factory=dict)
    """What a job's selector is compared with."""
    shutdown: ShutdownBlock = ShutdownBlock()
    lease: LeaseBlock = LeaseBlock()
    retention: RetentionBlock = RetentionBlock()
    log: LogBlock = LogBlock()

    @property
    def data_directory(self) -> Path:
        return self.jobs.data_directory or self.worker.state_directory / "data"


ELSEWHERE = frozenset(
    {
        "http_server",
        "enrollment",
        "store",
        "auth.admin",
        "auth.operator",
        "auth.viewer",
        "jobs.queue_max",
        "lease.heartbeat_seconds",
        "lease.unreachable_seconds",
        "lease.lost_seconds",
    }
)
"""What only the controller has."""
