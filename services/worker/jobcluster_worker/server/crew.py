"""The supervisors as the server sees them: who holds how much, who gets the next task, who is not needed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from jobcluster_worker.launcher.shapes import TaskKey
from jobcluster_worker.server.peer import Peer, PeerLost

log = structlog.get_logger()


@dataclass(slots=True)
class Supervisor:
    """One supervisor as the server sees it."""

    name: str
    capacity: int
    peer: Peer | None = None
    greeted: asyncio.Event = field(default_factory=asyncio.Event)
    """It has said which tasks it holds, or is dead and what it held is settled."""
    live: set[TaskKey] = field(default_factory=set)
    unacknowledged: set[TaskKey] = field(default_factory=set)
    starting: int = 0
    """Starts sent and not answered."""
    leaving: bool = False
    refuses: bool = False
    """It said that it is full; until one of its tasks ends."""
    idle_since: float | None = None

    @property
    def load(self) -> int:
        return len(self.live) + self.starting

    @property
    def empty(self) -> bool:
        return not self.load and not self.unacknowledged

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends, if it can be reached. What is lost is said again after its next hello, or void by its death."""
        if self.peer is not None:
            try:
                self.peer.send(message)
            except PeerLost as error:
                log.warning("supervisor_unreachable", supervisor=self.name, reason=str(error))


class Crew(dict[str, Supervisor]):
    """By name."""

    def pick(self) -> Supervisor | None:
        """The fullest with room, so that the others become empty and can go."""
        usable = [
            s
            for s in self.values()
            if s.peer is not None
            and s.greeted.is_set()
            and not s.leaving
            and not s.refuses
            and s.load < s.capacity
        ]
        return max(usable, key=lambda s: s.load, default=None)

    def extra(self, now: float) -> list[Supervisor]:
        """The empty ones but for the one that has been so for longest: that one is kept. Notes since when they are."""
        empty = [s for s in self.values() if s.empty and not s.leaving and s.greeted.is_set()]
        for supervisor in self.values():
            if supervisor not in empty:
                supervisor.idle_since = None
            elif supervisor.idle_since is None:
                supervisor.idle_since = now
        return sorted(empty, key=lambda s: s.idle_since or now)[1:]

    async def any_greeting(self) -> None:
        """Waits until one of those that have not said hello does; not at all if all have."""
        greetings = [asyncio.ensure_future(s.greeted.wait()) for s in self.values() if not s.greeted.is_set()]
        if greetings:
            try:
                await asyncio.wait(greetings, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for greeting in greetings:
                    greeting.cancel()
