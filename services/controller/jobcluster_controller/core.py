"""The controller's core, put together: what the doors need is ``jobs`` and ``registry``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

from jobcluster_common.tls import TlsFiles

from . import journal
from .dispatch import Dispatcher
from .domain.bounds import UNBOUNDED, Bounds
from .events import Events
from .jobs import JobService
from .ledger import Ledger
from .monitor import Monitor
from .registry import Lease, Registry, utc_now
from .store.protocol import Store


@dataclass(frozen=True, slots=True)
class Core:
    store: Store
    jobs: JobService
    registry: Registry
    monitor: Monitor
    events: Events


@contextlib.asynccontextmanager
async def running(
    store: Store,
    files: TlsFiles | None,
    lease: Lease,
    *,
    queue_max: int = 10_000,
    bounds: Bounds = UNBOUNDED,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = utc_now,
) -> AsyncIterator[Core]:
    """A core with all that is in the store loaded, its leases armed in full, till the block ends. Then it closes
    the store too.

    ``files``: the controller's certificate, towards the workers; None = plain text (loopback only).
    """
    ledger = Ledger(store)
    registry = Registry(store, ledger.running, clock, now)
    dispatcher = Dispatcher(files)
    jobs = JobService(
        store, ledger, registry, dispatcher, queue_max=queue_max, bounds=bounds, clock=clock, now=now
    )
    monitor = Monitor(registry, jobs, lease, clock)
    events = Events()
    ledger.on_committed += [journal.committed, events.job_committed]
    registry.listeners.append(events.worker_changed)
    try:
        await registry.load()
        await jobs.load()
        watching = asyncio.create_task(monitor.run(), name="monitor")
        try:
            yield Core(store, jobs, registry, monitor, events)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    finally:
        await dispatcher.close()
        await store.close()
