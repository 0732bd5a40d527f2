"""What SIGTERM does, as a list of steps with a time for each; a second SIGTERM cuts all waits short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from jobcluster_worker.registration import Registration
from jobcluster_worker.server.jobs import Jobs
from jobcluster_worker.server.supervisors import Supervisors
from jobcluster_worker.server.tasks import TaskTable
from jobcluster_worker.settings import ShutdownBlock

log = structlog.get_logger()

KILL_SECONDS = 1.0
"""From the kill of the last task to its end."""
DEREGISTER_SECONDS = 1.2


class Shutdown:
    """Ends a worker's work. Within the seconds of the settings and 5 more, also when the controller is gone."""

    def __init__(
        self,
        block: ShutdownBlock,
        table: TaskTable,
        jobs: Jobs,
        supervisors: Supervisors,
        registration: Registration | None,
        hurry: asyncio.Event,
    ) -> None:
        self._block = block
        self._table = table
        self._jobs = jobs
        self._supervisors = supervisors
        self._registration = registration
        self._hurry = hurry

    async def run(self) -> None:
        block = self._block
        log.info("worker_draining", running=self._table.alive)
        self._jobs.draining = True
        if self._registration is not None:
            self._registration.drain()
        if block.on_sigterm == "drain":
            await self._until(lambda: not self._table.alive, block.drain_seconds)
        if self._table.alive:
            self._supervisors.stop_all("TERM", block.grace_seconds, "worker_shutdown")
            await self._until(lambda: not self._table.alive, block.grace_seconds + KILL_SECONDS)
        if self._hurry.is_set() and self._table.alive:
            self._supervisors.stop_all("KILL", 0.0, "worker_shutdown")
            return
        await self._until(lambda: not len(self._table), block.handover_seconds)
        if self._registration is not None:
            await self._registration.deregister(DEREGISTER_SECONDS)
        log.info("worker_stopped", running=self._table.alive, unacknowledged=len(self._table))

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Waits for ``done``, for so long at most, and not at all once there is hurry."""
        changed = asyncio.Event()
        with self._table.listening(lambda _key: changed.set()), suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                hurried = asyncio.ensure_future(self._hurry.wait())
                try:
                    while not done() and not self._hurry.is_set():
                        changed.clear()
                        news = asyncio.ensure_future(changed.wait())
                        await asyncio.wait((news, hurried), return_when=asyncio.FIRST_COMPLETED)
                        news.cancel()
                finally:
                    hurried.cancel()
