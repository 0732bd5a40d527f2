"""The registry: which workers there are, and their leases."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from jobcluster_common.errors import Conflict, NotFound

from .domain.changes import Source
from .domain.job import Enforcement
from .domain.states import WorkerState
from .domain.worker import Capacity, Worker, WorkerLimits
from .store.protocol import Store

log = structlog.get_logger()

Listener = Callable[[Worker], Awaitable[None]]

# A worker that had so many launchers since keeps no promise to refuse the first; nobody is that late.
_RETIRED_MAX = 32
# For how long gone (and lost) workers can be asked for.
FORGET_AFTER = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Lease:
    """Silent for longer than ``unreachable_seconds``: unreachable; than ``lost_seconds``: lost."""

    heartbeat_seconds: float = 2.0
    unreachable_seconds: float = 10.0
    lost_seconds: float = 60.0


def utc_now() -> datetime:
    return datetime.now(UTC)


class Registry:
    """The workers, in memory and in the store. The monitor drives their leases.

    ``running`` tells how many tasks a worker holds; ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        store: Store,
        running: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._running = running
        self._clock = clock
        self._now = now
        self._workers: dict[str, Worker] = {}
        self._committed: dict[str, Worker] = {}
        self._heard: dict[str, float] = {}
        self._draining: set[str] = set()
        self.listeners: builtins.list[Listener] = []

    async def load(self) -> None:
        """Takes the workers from the store; each counts as unreachable until heard of, its lease armed in full."""
        for worker in await self._store.workers():
            if worker.state is WorkerState.DRAINING:
                self._draining.add(worker.worker_id)
            if worker.state in (WorkerState.READY, WorkerState.DRAINING):
                worker = worker.evolve(state=WorkerState.UNREACHABLE)
            self._workers[worker.worker_id] = self._committed[worker.worker_id] = worker
            self._heard[worker.worker_id] = self._clock()

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
        limits: WorkerLimits | None = None,
    ) -> Worker:
        """Makes a worker known, durable when this returns; the same again is the same registration.

        :raises Conflict: this incarnation has deregistered, or another one took its place.
        :raises Unavailable: the store could not commit.
        """
        known = self._workers.get(worker_id)
        if known is not None and incarnation in known.retired:
            raise Conflict(f"worker {worker_id}: incarnation {incarnation} has ended or was replaced")
        now = self._now()
        again = known is not None and known.incarnation == incarnation and known.alive
        worker = Worker(
            worker_id=worker_id,
            address=address,
            state=WorkerState.DRAINING if draining else WorkerState.READY,
            incarnation=incarnation,
            epoch=known.epoch if known is not None else 1,
            registered_at=known.registered_at if known is not None and again else now,
            last_seen_at=now,
            version=version,
            labels=dict(labels or {}),
            capacity=capacity or Capacity(),
            limits=limits or WorkerLimits(),
            enforced=dict(enforced or {}),
            retired=_retired(known, incarnation),
        )
        self._heard[worker_id] = self._clock()
        (self._draining.add if draining else self._draining.discard)(worker_id)
        await self._change(worker)
        log.info("worker_registered", worker_id=worker_id, address=address, state=worker.state, again=again)
        return worker

    async def heartbeat(
        self, worker_id: str, incarnation: str, epoch: int, draining: bool = False
    ) -> Worker | None:
        """Renews a lease. None: not known as such (any more), it has to register."""
        known = self._workers.get(worker_id)
        if known is None or not known.alive or Source.of(known) != Source(worker_id, incarnation, epoch):
            return None
        self._heard[worker_id] = self._clock()
        if draining:
            self._draining.add(worker_id)  # and so it stays until it registers anew
        state = WorkerState.DRAINING if worker_id in self._draining else WorkerState.READY
        worker = known.evolve(state=state, last_seen_at=self._now())
        if state is known.state:
            self._workers[worker_id] = worker
        else:
            await self._change(worker)
            log.info("worker_state_changed", worker_id=worker_id, state=state, before=known.state)
        return worker

    async def deregister(self, worker_id: str, incarnation: str) -> None:
        """Takes the worker off the list; its tasks that have not ended are lost. Of another incarnation: ignored.

        :raises NotFound: no such worker.
        """
        known = self.get(worker_id)
        if known.incarnation != incarnation or known.state is WorkerState.GONE:
            log.info("worker_deregistration_ignored", worker_id=worker_id, incarnation=incarnation)
            return
        gone = known.evolve(
            state=WorkerState.GONE, last_seen_at=self._now(), retired=_retired(known, incarnation="")
        )
        await self._change(gone)
        log.info("worker_gone", worker_id=worker_id)

    async def unreachable(self, worker_id: str) -> None:
        """Declares a silent worker unreachable: no new jobs go there."""
        known = self.get(worker_id)
        if known.state in (WorkerState.READY, WorkerState.DRAINING):
            await self._change(known.evolve(state=WorkerState.UNREACHABLE))
            log.warning("worker_unreachable", worker_id=worker_id, silent_seconds=self.silent(worker_id))

    async def lost(self, worker_id: str) -> None:
        """Declares a silent worker lost: its epoch grows, so that nothing it says of before is believed."""
        known = self.get(worker_id)
        if known.alive:
            worker = known.evolve(state=WorkerState.LOST, epoch=known.epoch + 1)
            await self._change(worker)
            log.warning("worker_lost", worker_id=worker_id, epoch=worker.epoch)

    async def forget(self) -> None:
        """Drops workers that are gone or lost for a day and hold nothing, and Idempotency-Keys of a day ago."""
        before = self._now() - FORGET_AFTER
        old = [w.worker_id for w in self._workers.values() if not w.alive and w.last_seen_at < before]
        idle = [worker_id for worker_id in old if not self._running(worker_id)]
        await self._store.forget(before, idle)
        for worker_id in idle:
            if not self._workers[worker_id].alive:
                del self._workers[worker_id], self._committed[worker_id], self._heard[worker_id]
                self._draining.discard(worker_id)

    def list(self, state: WorkerState | None = None) -> builtins.list[Worker]:
        """All but the gone ones, oldest registration first; or those of one state."""
        found = [
            w
            for w in self._workers.values()
            if (w.state is not WorkerState.GONE if state is None else w.state is state)
        ]
        return sorted(found, key=lambda w: (w.registered_at, w.worker_id))

    def all(self) -> builtins.list[Worker]:
        """All, in no order."""
        return [*self._workers.values()]

    def get(self, worker_id: str) -> Worker:
        """:raises NotFound: no such worker."""
        worker = self._workers.get(worker_id)
        if worker is None:
            raise NotFound(f"no such worker: {worker_id[:80]}")
        return worker

    def find(self, worker_id: str | None) -> Worker | None:
        return self._workers.get(worker_id) if worker_id is not None else None

    def believes(self, source: Source) -> bool:
        """Whether a worker in this incarnation and epoch is the one that is known now."""
        known = self._workers.get(source.worker_id)
        return known is not None and known.alive and Source.of(known) == source

    def running(self, worker_id: str) -> int:
        """How many tasks that have not ended it holds."""
        return self._running(worker_id)

    def silent(self, worker_id: str) -> float:
        """Seconds since it was last heard of."""
        return self._clock() - self._heard[worker_id]

    def forgive(self, seconds: float) -> None:
        """Counts so much less silence for all: it was we who did not listen."""
        for worker_id in self._heard:
            self._heard[worker_id] += seconds

    async def _change(self, worker: Worker) -> None:
        """Decides, commits, then tells the listeners; a commit that fails takes the decision back."""
        self._workers[worker.worker_id] = worker
        saved = self._store.save(workers=[worker])
        # The caller may go away; what was decided is carried through all the same.
        carrying = asyncio.ensure_future(self._carry_through(worker, saved))
        carrying.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(carrying)

    async def _carry_through(self, worker: Worker, saved: asyncio.Future[None]) -> None:
        worker_id = worker.worker_id
        try:
            await saved
        except BaseException:
            if self._workers.get(worker_id) is worker:
                committed = self._committed.get(worker_id)
                if committed is None:
                    del self._workers[worker_id]
                else:
                    self._workers[worker_id] = committed
            raise
        self._committed[worker_id] = worker
        for listener in self.listeners:
            await listener(worker)


def _retired(known: Worker | None, incarnation: str) -> tuple[str, ...]:
    """The incarnations that are over once ``incarnation`` is the present one."""
    if known is None:
        return ()
    over = known.retired
    # A client made from the seed's proto has no incarnation: there is nothing to tell its lives apart by.
    if known.incarnation and known.incarnation != incarnation and known.incarnation not in over:
        over = (*over, known.incarnation)
    return over[-_RETIRED_MAX:]
