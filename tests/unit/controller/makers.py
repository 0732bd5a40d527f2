"""Values for tests of the controller's core."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobcluster_controller.domain.job import Job, JobSpec, Task
from jobcluster_controller.domain.states import WorkerState
from jobcluster_controller.domain.worker import Capacity, Worker

NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
_numbers = itertools.count(1)


def spec(**fields: Any) -> JobSpec:
    return replace(JobSpec(command=("true",), document={"command": "true"}), **fields)


def job(job_id: str | None = None, task: Task | None = None, **fields: Any) -> Job:
    made = Job(
        job_id=job_id or f"job-{next(_numbers)}",
        spec=fields.pop("spec", spec()),
        created_at=NOW,
        tasks=(task or Task(),),
    )
    return made.evolve(**fields)


def worker(worker_id: str = "w1", state: WorkerState = WorkerState.READY, **fields: Any) -> Worker:
    made = Worker(
        worker_id=worker_id,
        address="127.0.0.1:1",
        state=state,
        incarnation="one",
        epoch=1,
        registered_at=NOW,
        last_seen_at=NOW,
        capacity=Capacity(cpu=2.0, memory=1 << 30, tasks=2),
    )
    return made.evolve(**fields)


class Clock:
    """Time that passes when it is told to; both clocks in one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


async def eventually(holds: Callable[[], object]) -> None:
    """Waits until it holds.

    :raises TimeoutError: if it does not within ten seconds.
    """
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  (what holds is not ours to signal)
            await asyncio.sleep(0.005)
