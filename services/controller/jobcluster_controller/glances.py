"""What running tasks use and have written so far: their workers are asked when somebody looks at a job."""

from __future__ import annotations

import asyncio

from jobcluster.v1 import worker_pb2
from jobcluster_common import tls  # noqa: F401  (before grpc)
from jobcluster_common.errors import JobclusterError

# isort: split
import grpc
import grpc.aio

from . import convert
from .dispatch import Dispatcher
from .domain.changes import TaskKey
from .domain.job import Job, Task
from .domain.states import State

# Who does not answer in this time is not waited for: the job is shown as it was last told of.
ANSWER_SECONDS = 1.0
# Many who look at one job at a time cost its worker one question.
KEPT_SECONDS = 0.5


class Glances:
    """Asks, and keeps each answer for a moment."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._asked: dict[TaskKey, asyncio.Task[Task | None]] = {}

    async def at(self, job: Job) -> Job:
        """The job with usage and output of its running tasks as they are now, where their workers can tell."""
        live = [task for task in job.tasks if task.state is State.RUNNING or task.state is State.STOPPING]
        if not live:
            return job
        told = await asyncio.gather(*(asyncio.shield(self._ask(job.job_id, task)) for task in live))
        for held, found in zip(live, told, strict=True):
            # Its end is shown when it is durable, not before.
            if found is not None and not found.state.done:
                job = job.with_task(held.evolve(usage=found.usage, output=found.output))
        return job

    def _ask(self, job_id: str, task: Task) -> asyncio.Task[Task | None]:
        key = TaskKey(job_id, task.rank, task.attempt)
        asking = self._asked.get(key)
        if asking is None:
            asking = asyncio.create_task(self._answer(task.worker_id or "", key))
            self._asked[key] = asking
            asyncio.get_running_loop().call_later(KEPT_SECONDS, self._asked.pop, key, None)
        return asking

    async def _answer(self, worker_id: str, key: TaskKey) -> Task | None:
        if not self._dispatcher.connected(worker_id):
            return None
        request = worker_pb2.QueryJobRequest(job_id=key.job_id, task_rank=key.rank, attempt=key.attempt)
        try:
            answer = await self._dispatcher.query(worker_id, request, ANSWER_SECONDS)
            return convert.report(answer.task).task
        except (grpc.aio.AioRpcError, JobclusterError, ValueError, OSError):
            return None
