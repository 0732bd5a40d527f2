"""The job spec as it is posted (DESIGN 2.2), strict: whatever is not understood is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from jobcluster_common.limits import too_little
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ..domain.states import Reason
from .fields import (
    NUMBER_MAX,
    WHOLE,
    Command,
    Content,
    EnvName,
    FileName,
    LabelKey,
    Name,
    Size,
    TemplatePath,
    Text,
    fault,
)

# Fields whose feature is not built yet: any other value than the default is refused. One line each, to be lifted.
NOT_YET = frozenset(
    {
        "tasks",
        "placement",
        "on_task_failure",
        "array",
        "selector",
        "ephemeral",
        "priority",
        "retry",
    }
)

Whole = Annotated[int, Field(ge=1, le=NUMBER_MAX), WHOLE]


class Closed(BaseModel):
    """A document with these fields and no others, each of exactly its type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class IoLimits(Closed):
    """Disk IO, on the device behind the task's work directory."""

    read_bps: Size | None = Field(None, description="bytes read per second")
    write_bps: Size | None = Field(None, description="bytes written per second")
    read_iops: Whole | None = Field(None, description="reads per second")
    write_iops: Whole | None = Field(None, description="writes per second")


def _enough(name: str) -> AfterValidator:
    def check(amount: float) -> float:
        if why := too_little(name, amount):
            raise fault(why)
        return amount

    return AfterValidator(check)


class Limits(Closed):
    """What one task may use; null = no limit."""

    cpu: Annotated[float, Field(gt=0, le=65536), _enough("cpu")] | None = Field(
        None, description="cores, 0.01 or more"
    )
    memory: Annotated[Size, _enough("memory")] | None = Field(None, description="bytes, 2 MiB or more")
    pids: Annotated[int, Field(ge=1, le=4194304), WHOLE] | None = Field(
        None, description="processes and threads"
    )
    io: IoLimits | None = Field(default_factory=IoLimits)
    oom: Literal["group", "process"] = Field("group", description="what an out-of-memory kill ends")

    @field_validator("io", mode="after")
    @classmethod
    def _null_is_none(cls, value: IoLimits | None) -> IoLimits:
        return value or IoLimits()


class OutputOptions(Closed):
    """How a task's output is kept."""

    max_bytes: Size = Field(1 << 30, description="beyond it output is dropped, or the task is stopped")
    on_limit: Literal["truncate", "stop"] = "truncate"
    separate: bool = Field(True, description="stdout and stderr in two pipes, or in one")


class Array(Closed):
    """Independent copies of a job."""

    count: Annotated[int, Field(ge=1, le=1_000_000), WHOLE]
    parallel: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None


class Retry(Closed):
    """When a job is started again."""

    max: Annotated[int, Field(ge=0, le=1000), WHOLE]
    on: list[Literal[tuple(str(reason) for reason in Reason)]] = Field(default_factory=list)  # type: ignore[valid-type]


def _describe(schema: dict[str, Any]) -> None:
    """Tells JSON Schema what the checks here know besides: one of command and path, and what is not there yet."""
    for name in NOT_YET & schema["properties"].keys():
        found = schema["properties"][name]
        allowed = [None, *([found["default"]] if found.get("default") is not None else [])]
        schema["properties"][name] = {
            "enum": allowed,
            "description": f"{found.get('description', name)}; not there yet, so only the default is accepted",
        }
    given: dict[str, Any] = {"not": {"type": "null"}}
    schema["anyOf"] = [{"required": [n], "properties": {n: given}} for n in ("command", "path")]


class JobSpecBody(Closed):
    """A job: what to run, with what, where, and how much it may use. ``command`` or ``path`` is needed."""

    model_config = ConfigDict(title="JobSpec", json_schema_extra=_describe)

    worker_id: Text | None = Field(None, description="that worker, else the scheduler chooses")
    command: Command | None = Field(
        None,
        description="program and its flags; a string is split like a shell's words, never run by a shell",
    )
    path: TemplatePath | None = Field(
        None, description="script: one of files, else relative to the worker's templates, else absolute there"
    )
    args: list[Text] | None = Field(default_factory=list, description="argv = command + [path] + args")
    files: dict[FileName, Content] | None = Field(
        default_factory=dict, description="put into the working directory before the start; 1 MiB in all"
    )
    env: dict[EnvName, Text] | None = Field(default_factory=dict)
    cwd: TemplatePath | None = Field(None, description="default: a fresh directory of the task's own")
    stdin: Content | None = Field(None, description="up to 1 MiB; default: /dev/null")
    timeout_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None, description="from the start of the process"
    )
    limits: Limits | None = Field(default_factory=Limits)
    network: Literal["host", "none"] | None = "host"
    output: OutputOptions | None = Field(default_factory=OutputOptions)
    tasks: Annotated[int, Field(ge=1, le=10_000), WHOLE] | None = Field(
        1, description="processes of a distributed job"
    )
    placement: Literal["spread", "pack"] | None = "spread"
    on_task_failure: Literal["stop_all", "continue"] | None = "stop_all"
    array: Array | None = None
    selector: dict[LabelKey, Text] | None = Field(
        default_factory=dict, description="worker labels that must match"
    )
    ephemeral: bool | None = Field(False, description="on a new worker, made for it")
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31), WHOLE] | None = Field(
        0, description="higher first"
    )
    retry: Retry | None = None
    labels: dict[LabelKey, Text] | None = Field(default_factory=dict)
    name: Name | None = None

    @field_validator("*", mode="after")
    @classmethod
    def _is_there(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if name not in NOT_YET or value is None:
            return value
        if value != cls.model_fields[name].get_default(call_default_factory=True, validated_data={}):
            raise fault(f"{name} is not there yet: only its default is accepted")
        return value
