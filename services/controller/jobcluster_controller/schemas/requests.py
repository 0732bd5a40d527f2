"""What requests carry beside a job spec: query parameters, headers, and the small bodies."""

from __future__ import annotations

import signal
from typing import Annotated, Any, Literal

from pydantic import Field

from ..domain.states import State, WorkerState
from .fields import NUMBER_MAX, WHOLE, LabelKey, Matches, Read, Text, fault
from .spec import Closed, Limits

WAIT_SECONDS_MAX = 3600.0
TAIL_LINES_MAX = 1_000_000
STREAMS = ("merged", "stdout", "stderr")


def _number(whole: bool, low: float, high: float) -> Read:
    """A number as it stands in a URL."""
    words = f"must be a {'whole ' if whole else ''}number from {low:g} to {high:.16g}"

    def read(value: Any) -> int | float:
        try:
            # float() would take "1_0", " 1" and "nan" too.
            if not isinstance(value, str) or not value.isascii() or not set(value) <= set("0123456789.eE+-"):
                raise ValueError
            number = int(value) if whole and len(value) < 20 and value.isdigit() else float(value)
        except ValueError:
            raise fault(words) from None
        if not low <= number <= high or (whole and number != int(number)):
            raise fault(words)
        return int(number) if whole else float(number)

    return Read(read, {"type": "integer" if whole else "number", "minimum": low, "maximum": high})


def _read_flag(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise fault("must be true or false")


Flag = Annotated[bool, Read(_read_flag, {"type": "boolean"})]
Seconds = Annotated[float, _number(False, 0, WAIT_SECONDS_MAX)]


class WaitQuery(Closed):
    """?wait: answer at the job's end, or after that many seconds."""

    wait: Seconds = Field(0.0, description="seconds to wait for the job's end")


class NoQuery(Closed):
    """No parameters."""


class JobsQuery(Closed):
    """Which jobs."""

    state: Literal[tuple(str(s) for s in State)] | None = None  # type: ignore[valid-type]
    worker_id: str | None = Field(None, description="of the worker that holds it, or that it waits for")
    name: str | None = None
    label: list[Annotated[str, Matches(r"^[^\x00-\x1f\x7f=]{1,255}=[^\x00]*$", "must be key=value")]] = Field(
        default_factory=list, description="key=value; several must all match"
    )
    array_id: str | None = None
    limit: Annotated[int, _number(True, 1, 1000)] = Field(
        100, description="at most so many on a page; fewer where jobs carry much"
    )
    cursor: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="the next_cursor given before"
    )


class OutputParameters(Closed):
    """Which stretch of a job's output."""

    task: Annotated[int, _number(True, 0, 9999)] | None = Field(None, description="rank; default: all tasks")
    stream: Literal["merged", "stdout", "stderr"] = "merged"
    offset: Annotated[int, _number(True, 0, NUMBER_MAX)] | None = Field(
        None, description="in bytes of that very stream"
    )
    tail: Annotated[int, _number(True, 0, TAIL_LINES_MAX)] | None = Field(
        None, description="the last lines only"
    )
    follow: Flag = Field(False, description="until the job's end")


class WorkersQuery(Closed):
    """Which workers."""

    state: Literal[tuple(str(s) for s in WorkerState)] | None = None  # type: ignore[valid-type]


# Linux's, without those that a name cannot tell (RTMIN+n).
SIGNALS = tuple(sig.name.removeprefix("SIG") for sig in signal.Signals if not sig.name.startswith("SIGRT"))


def _read_signal(value: Any) -> str:
    name = value.removeprefix("SIG") if isinstance(value, str) else None
    if name not in SIGNALS:
        raise fault('must be a signal\'s name, as in "TERM"')
    return name


class StopBody(Closed):
    """How to stop a job."""

    signal: Annotated[
        str,
        Read(_read_signal, {"type": "string", "enum": [*SIGNALS, *(f"SIG{name}" for name in SIGNALS)]}),
    ] = Field("TERM", description='"SIGTERM" is understood too')
    grace_seconds: Annotated[float, Field(ge=0, le=86400)] = Field(
        10.0, description="then the whole tree is killed"
    )


class EnrollBody(Closed):
    """A worker's request for an identity."""

    csr: Annotated[str, Field(min_length=1, max_length=65536)] = Field(
        description="certificate signing request in PEM, for an EC P-256 key; the controller decides the name"
    )


class AddWorkersBody(Closed):
    """Workers to be made."""

    count: Annotated[int, Field(ge=1, le=1000), WHOLE] = 1
    labels: dict[LabelKey, Text] = Field(default_factory=dict)
    limits: Limits = Field(default_factory=Limits)
    ephemeral: bool = False


class IdempotencyHeader(Closed):
    """Idempotency-Key."""

    idempotency_key: (
        Annotated[str, Matches(r"^[\x21-\x7e]{1,255}$", "must be 1 to 255 visible characters")] | None
    ) = Field(None, alias="Idempotency-Key", description="the same key and body within 24 h is the same job")


class OutputHeaders(Closed):
    """What a reader of output may send."""

    range: str | None = Field(
        None, alias="Range", description="one range of bytes of an ended job's raw output, as in bytes=0-99"
    )
    if_range: str | None = Field(None, alias="If-Range", description="the ETag the range is of")
    last_event_id: str | None = Field(
        None,
        alias="Last-Event-ID",
        description="of events: the id of the last one that was read; go on after it",
    )


class LastEventHeader(Closed):
    """Last-Event-ID."""

    last_event_id: str | None = Field(
        None, alias="Last-Event-ID", description="the id of the last event that was read: go on after it"
    )
