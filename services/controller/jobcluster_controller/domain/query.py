"""What callers ask for: a page of jobs, a stretch of output; and what they get of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .job import Task
from .states import State


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows, newest first. None or empty = any. ``cursor`` is a ``next_cursor`` given before."""

    state: State | None = None
    worker_id: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    array_id: str | None = None
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class OutputQuery:
    """A stretch of one task's output. ``offset`` is in bytes of that very stream; ``tail_lines`` wins over it.

    ``follow`` = until the task has ended; otherwise to the present size. ``limit_bytes`` None = no limit.
    """

    stream: str = "merged"
    offset: int = 0
    follow: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class OutputStart:
    """First of a stretch: where it begins, the stream's present size, and whether that size is final."""

    offset: int
    size_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """At most 256 KiB of output; ``offset`` of its first byte in that very stream."""

    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class OutputEnd:
    """Last of a stretch: where it stopped. ``complete`` = the task has ended and all its output was sent."""

    offset: int
    complete: bool
    task: Task | None = None


OutputItem = OutputStart | OutputChunk | OutputEnd


class OutputCut(Exception):
    """The stretch broke off at ``offset`` and this is not its end: a reader must be told so, and may resume there."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"output was cut at byte {offset}: {why}")
        self.offset = offset
        self.why = why
