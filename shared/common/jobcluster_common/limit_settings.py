"""The settings of limits that controller and worker have alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from . import limits
from .settings import Block, Size


def _enough(name: str) -> AfterValidator:
    def check(amount: float) -> float:
        if why := limits.too_little(name, amount):
            raise ValueError(f"{why}; leave it out for no limit")
        return amount

    return AfterValidator(check)


class IoLimitsBlock(Block):
    """Bytes and operations per second."""

    read_bps: Annotated[Size, Field(gt=0)] | None = None
    write_bps: Annotated[Size, Field(gt=0)] | None = None
    read_iops: int | None = Field(None, gt=0)
    write_iops: int | None = Field(None, gt=0)


class TaskLimitsBlock(Block):
    """Limits in cores, bytes and processes; None = none."""

    cpu: Annotated[float, _enough("cpu")] | None = None
    memory: Annotated[Size, _enough("memory")] | None = None
    pids: int | None = Field(None, gt=0)
    io: IoLimitsBlock | None = None

    def amounts(self) -> dict[str, float]:
        """What is set."""
        own = {"cpu": self.cpu, "memory": self.memory, "pids": self.pids}
        named = own | {
            f"io/{name}": value for name, value in (self.io or IoLimitsBlock()).model_dump().items()
        }
        return {name: value for name, value in named.items() if value is not None}


class TaskBoundsBlock(Block):
    """[limits]: what a task gets, and may get."""

    default: TaskLimitsBlock = TaskLimitsBlock()
    """Of a task whose spec says nothing. A spec may ask for less, or for more up to max."""
    max: TaskLimitsBlock = TaskLimitsBlock()
    """What no task may exceed; the limit of a task whose spec says nothing where there is no default either."""

    @field_validator("max", mode="after")
    @classmethod
    def _default_within_max(cls, value: TaskLimitsBlock, info: ValidationInfo) -> TaskLimitsBlock:
        default: TaskLimitsBlock | None = info.data.get("default")
        most = value.amounts()
        for name, amount in (default.amounts() if default is not None else {}).items():
            if name in most and amount > most[name]:
                key = name.replace("/", ".")
                raise ValueError(
                    f"{key} = {limits.text(name, most[name])} is less than limits.default.{key} ="
                    f" {limits.text(name, amount)}; raise it, or lower the default"
                )
        return value
