"""The monitor: ends the leases of workers that are silent, and sees to it that what failed is done again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from jobcluster_common.errors import JobclusterError

from .domain.states import WorkerState
from .jobs import JobService
from .registry import Lease, Registry

log = structlog.get_logger()

_FORGET_EVERY_SECONDS = 600.0


def verdict(silent_seconds: float, lease: Lease) -> WorkerState:
    """What a worker is that was silent for so long: ready, unreachable or lost."""
    if silent_seconds > lease.lost_seconds:
        return WorkerState.LOST
    return WorkerState.UNREACHABLE if silent_seconds > lease.unreachable_seconds else WorkerState.READY


def own_silence(gap_seconds: float, interval_seconds: float) -> float:
    """Of the time between two looks, that in which we did not listen: frozen, or without a CPU."""
    return max(0.0, gap_seconds - 2 * interval_seconds)


class Monitor:
    """Looks at every lease once per interval. ``clock`` is monotonic, in seconds, the same as the registry's."""

    def __init__(
        self,
        registry: Registry,
        jobs: JobService,
        lease: Lease,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._registry = registry
        self._jobs = jobs
        self._lease = lease
        self._clock = clock
        self._sleep = sleep
        self._interval = max(0.05, min(lease.heartbeat_seconds, lease.unreachable_seconds) / 2)
        self._last = clock()
        self._forgot = clock()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._sleep(self._interval)
            try:
                await self.tick()
            except JobclusterError as error:  # the store: the next look tries again
                log.error("monitor_failed", reason=error.detail)
            except Exception as error:  # a fault of ours must not end all leases' ends
                log.error("monitor_failed", exc_info=error)

    async def tick(self) -> None:
        """One look.

        :raises Unavailable: the store could not commit; at the next look all is tried again.
        """
        now = self._clock()
        if deaf := own_silence(now - self._last, self._interval):
            log.warning("controller_was_frozen", seconds=deaf)
            self._registry.forgive(deaf)
        self._last = now
        for worker in self._registry.all():
            if not worker.alive or worker.state is WorkerState.STARTING:
                continue
            match verdict(self._registry.silent(worker.worker_id), self._lease):
                case WorkerState.LOST:
                    await self._registry.lost(worker.worker_id)
                case WorkerState.UNREACHABLE:
                    await self._registry.unreachable(worker.worker_id)
        await self._jobs.settle()
        if now - self._forgot > _FORGET_EVERY_SECONDS:
            self._forgot = now
            await self._registry.forget()
