"""What a link to a worker needs of the job service: to tell what it hears, and to ask what still is to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from typing import Protocol

from .domain.changes import Report, Source, TaskKey


class Books(Protocol):
    def believes(self, source: Source) -> bool:
        """Whether what this source says still counts."""
        ...

    def reported(self, source: Source, reports: Sequence[Report]) -> asyncio.Future[None] | None:
        """Takes reports; the future resolves when they are durable, None: they changed nothing."""
        ...

    def all_told(self, source: Source, keys: Set[TaskKey]) -> asyncio.Future[None] | None:
        """The source has told all it has: these. What it lacks is sent again, or lost."""
        ...

    async def unwanted(self, source: Source, report: Report) -> bool:
        """Whether this live task must not live: its job has ended here, or was given to another worker."""
        ...

    def accepted(self, keys: Sequence[TaskKey]) -> None:
        """The worker has these starts."""
        ...

    def refused(
        self, source: Source, key: TaskKey, again: bool, error_text: str
    ) -> asyncio.Future[None] | None:
        """It has not started this and will not; ``again``: another one may."""
        ...

    def wants_start(self, source: Source, key: TaskKey) -> bool:
        """Whether this start is still to be sent."""
        ...

    def wanted_stop(self, source: Source, key: TaskKey) -> tuple[str, float] | None:
        """The stop that is to be sent now, the strictest one that is committed: (signal, grace_seconds)."""
        ...

    def unseen(self, source: Source, key: TaskKey) -> bool:
        """Whether this attempt is to stop and nobody has told of its start yet: it may be that it never comes."""
        ...

    def never_started(self, source: Source, key: TaskKey) -> asyncio.Future[None] | None:
        """The worker knows nothing of this attempt, which was to be stopped, and will never start it."""
        ...
