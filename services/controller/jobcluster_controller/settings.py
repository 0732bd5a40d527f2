"""The controller's settings; every key has its sentence here."""

from __future__ import annotations

from typing import Self

from jobcluster_common.certificates import split_names
from jobcluster_common.limit_settings import TaskBoundsBlock
from jobcluster_common.settings import Address, AnyPath, Block, ExistingFile, GrpcServerBlock, LogBlock
from pydantic import Field, field_validator, model_validator


class HttpServerBlock(Block):
    """[http_server]: the HTTPS API."""

    addr: Address = "127.0.0.1:8443"
    names: list[str] = Field(default_factory=list)
    """Names and addresses, beside localhost, 127.0.0.1 and controller, in a certificate made at the start."""
    crt_file: ExistingFile | None = None
    """None: a certificate is made at each start, signed by the CA of [enrollment]."""
    key_file: ExistingFile | None = None

    @field_validator("names", mode="after")
    @classmethod
    def _are_names(cls, value: list[str]) -> list[str]:
        split_names(value)
        return value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.crt_file is None) != (self.key_file is None):
            raise ValueError("crt_file and key_file go together; give both or neither")
        return self


class AuthBlock(Block):
    """[auth]: files of tokens, one a line, in clear or as sha256:HEX. A role without a file is nobody's."""

    admin: ExistingFile
    operator: ExistingFile | None = None
    viewer: ExistingFile | None = None
    join: ExistingFile | None = None
    """Without it no worker can enrol; ready-made certificates still work."""


class EnrollmentBlock(Block):
    """[enrollment]: the cluster's CA, which signs workers' certificates."""

    ca_crt_file: ExistingFile
    ca_key_file: ExistingFile
    certificate_hours: float = Field(720.0, gt=0, le=24 * 3650)


class StoreBlock(Block):
    """[store]: the one file that holds the truth."""

    path: AnyPath


class JobsBlock(Block):
    """[jobs]."""

    queue_max: int = Field(10_000, ge=0)
    """How many jobs may wait; the next one is refused (429)."""


class LeaseBlock(Block):
    """[lease]: how long a worker may be silent."""

    heartbeat_seconds: float = Field(2.0, gt=0)
    unreachable_seconds: float = Field(10.0, gt=0)
    lost_seconds: float = Field(60.0, gt=0)
    """Silent for longer: lost, and its jobs with it."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.heartbeat_seconds < self.unreachable_seconds < self.lost_seconds:
            raise ValueError(
                "heartbeat_seconds < unreachable_seconds < lost_seconds is needed; correct one of them"
            )
        return self


class ControllerGrpcBlock(GrpcServerBlock):
    """[grpc_server]: where workers call."""

    addr: Address = "127.0.0.1:7443"

    @model_validator(mode="after")
    def _certificates_are_given(self) -> Self:
        if self.use_tls and (self.crt_file is None or self.ca_file is None):
            raise ValueError("crt_file, key_file and ca_file are needed; make them with make certs")
        return self


class ControllerSettings(Block):
    """One file, one controller."""

    grpc_server: ControllerGrpcBlock
    http_server: HttpServerBlock = HttpServerBlock()
    auth: AuthBlock
    enrollment: EnrollmentBlock
    store: StoreBlock
    jobs: JobsBlock = JobsBlock()
    lease: LeaseBlock = LeaseBlock()
    limits: TaskBoundsBlock = TaskBoundsBlock()
    log: LogBlock = LogBlock()


ELSEWHERE = frozenset(
    {
        "controller",
        "worker",
        "limits.require",
        "limits.worker",
        "labels",
        "shutdown",
        "retention",
        "jobs.template_directory",
        "jobs.data_directory",
        "jobs.log_file",
        "jobs.output_max_bytes",
        "jobs.max_tasks",
        "lease.stop_on_partition_seconds",
    }
)
"""What only a worker has."""
