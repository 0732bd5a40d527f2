"""The registry: which workers there are, and their leases."""

from __future__ import annotations

from collections.abc import Mapping

from .domain.job import Enforcement
from .domain.states import WorkerState
from .domain.worker import Capacity, Worker


class Registry:
    """The workers, in memory and in the store. The monitor drives their leases."""

    async def load(self) -> None:
        """Takes the workers from the store; each counts as unreachable until heard of, its lease armed in full."""
        raise NotImplementedError

    async def register(
        self,
        worker_id: str,
        address: str,
        incarnation: str,
        version: str = "",
        labels: Mapping[str, str] | None = None,
        capacity: Capacity | None = None,
        enforced: Mapping[str, Enforcement] | None = None,
        draining: bool = False,
    ) -> Worker:
        """Makes a worker known, durable when this returns; the same again is the same registration.

        :raises Conflict: this incarnation has deregistered, or another one took its place.
        :raises Unavailable: the store could not commit.
        """
        raise NotImplementedError

    async def heartbeat(
        self, worker_id: str, incarnation: str, epoch: int, draining: bool = False
    ) -> Worker | None:
        """Renews a lease. None: not known as such (any more), it has to register."""
        raise NotImplementedError

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        """Takes the worker off the list; its tasks that have not ended are lost. Of another incarnation: ignored.

        :raises NotFound: no such worker.
        """
        raise NotImplementedError

    def list(self, state: WorkerState | None = None) -> list[Worker]:
        """All but the gone ones, oldest registration first; or those of one state."""
        raise NotImplementedError

    def get(self, worker_id: str) -> Worker:
        """:raises NotFound: no such worker."""
        raise NotImplementedError

    def running(self, worker_id: str) -> int:
        """How many tasks that have not ended it holds."""
        raise NotImplementedError
