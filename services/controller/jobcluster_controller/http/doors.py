"""What the handlers reach: the services behind the doors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobcluster_common.errors import Unavailable

from ..auth.enrolment import Enrolment
from ..auth.tokens import Tokens
from ..events import Events
from ..jobs import JobService
from ..metrics import Metrics
from ..registry import Registry


class LiveRequests:
    """Requests that may last: streams and waits. When the controller stops they are cut, and clients come back."""

    def __init__(self) -> None:
        self.closing = False
        self._tasks: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Around what the running task does that may last.

        :raises Unavailable: if the controller is stopping.
        """
        if self.closing:
            raise Unavailable("the controller is stopping")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is handled by a task")
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def cut(self) -> None:
        """Ends them all, and lets no new one in."""
        self.closing = True
        for task in list(self._tasks):
            task.cancel()


async def _well() -> None:
    """A store in memory always is."""


@dataclass(slots=True)
class Doors:
    """The services, and whether they are ready for callers."""

    jobs: JobService
    registry: Registry
    tokens: Tokens
    enrolment: Enrolment
    metrics: Metrics
    ready: Callable[[], bool] = lambda: True
    check_store: Callable[[], Awaitable[None]] = _well
    """Raises Unavailable while nothing can be committed."""
    describe: Callable[[], Mapping[str, Any]] = dict
    """Gives the OpenAPI document."""
    events: Events = field(default_factory=Events)
    live: LiveRequests = field(default_factory=LiveRequests)
    heartbeat_seconds: float = 15.0
    """How often a silent event stream shows that it lives."""
    send_seconds: float = 60.0
    """A reader that takes nothing for so long is dropped; it may resume."""
    patience_seconds: float = 5.0
    """How long an answer waits for its first output before the headers go out alone."""
