"""The Worker service: messages in and out, nothing decided here."""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from jobcluster.v1 import worker_pb2 as pb
from jobcluster_common.errors import Fault, Invalid, JobclusterError, Unavailable
from jobcluster_common.identity import Kind

from jobcluster_worker.limits import amounts
from jobcluster_worker.server import convert
from jobcluster_worker.server.changes import Changes
from jobcluster_worker.server.jobs import Jobs, refusal
from jobcluster_worker.server.peer import PeerLost
from jobcluster_worker.server.streams import Streams

_CONTROLLER = frozenset({Kind.CONTROLLER})

NAMES = ("jobcluster.v1.Worker", "Worker")
"""The second one is the seed's."""

POLICY = {
    "StartJob": _CONTROLLER,
    "StartJobs": _CONTROLLER,
    "StopJob": _CONTROLLER,
    "QueryJob": _CONTROLLER,
    "StreamJob": _CONTROLLER,
    "WatchJobs": _CONTROLLER,
}

GRACE_SECONDS = 10.0


class WorkerServicer:
    """Answers the controller."""

    def __init__(self, jobs: Jobs, streams: Streams, changes: Changes, worker_id: str) -> None:
        self._jobs = jobs
        self._streams = streams
        self._changes = changes
        self._worker_id = worker_id

    async def StartJob(self, request: pb.StartJobRequest, context: Any) -> pb.StartJobResponse:
        job_id = request.job_id or self._jobs.mint_id()
        try:
            await self._begin(request, job_id)
        except PeerLost as error:
            raise Unavailable(f"whether it was started is not known: {error}") from error
        return pb.StartJobResponse(job_id=job_id)

    async def StartJobs(self, request: pb.StartJobsRequest, context: Any) -> pb.StartJobsResponse:
        try:
            results = await asyncio.gather(*(self._start(start) for start in request.starts))
        except PeerLost as error:
            # A result would be a word about each; the same starts sent again are the same starts.
            raise Unavailable(f"whether all were started is not known: {error}") from error
        return pb.StartJobsResponse(results=results)

    async def _start(self, request: pb.StartJobRequest) -> pb.StartResult:
        try:
            if not request.job_id:
                raise Invalid([Fault("/job_id", "needed in a batch")])
            await self._begin(request, request.job_id)
        except JobclusterError as error:
            return pb.StartResult(code=refusal(error), error_text=error.detail)
        return pb.StartResult(accepted=True)

    async def _begin(self, request: pb.StartJobRequest, job_id: str) -> None:
        spec = convert.spec_from_proto(request, job_id, self._worker_id)
        default = amounts(convert.limits_from_proto(request.limits_default))
        await self._jobs.start(spec, request.epoch, default)

    async def StopJob(self, request: pb.StopJobRequest, context: Any) -> pb.StopJobResponse:
        grace = request.grace_seconds if request.HasField("grace_seconds") else GRACE_SECONDS
        if not 0 <= grace < float("inf"):
            raise Invalid([Fault("/grace_seconds", "a number of seconds")])
        try:
            state = await self._jobs.stop(
                request.job_id,
                request.task_rank if request.HasField("task_rank") else None,
                request.attempt,
                _signal_name(request.signal),
                grace,
                request.reason or "stopped",
            )
        except PeerLost as error:
            raise Unavailable(f"its supervisor cannot be reached: {error}") from error
        return pb.StopJobResponse(state=state)

    async def QueryJob(self, request: pb.QueryJobRequest, context: Any) -> pb.QueryJobResponse:
        task = await self._jobs.query(request.job_id, request.task_rank, request.attempt)
        status = convert.task_to_proto(task)
        return pb.QueryJobResponse(
            done=status.state in convert.TERMINAL,
            error=status.state in ("failed", "lost"),
            error_text=status.error_text or (status.reason if status.state in ("failed", "lost") else ""),
            task=status,
        )

    async def StreamJob(
        self, request: pb.StreamJobRequest, context: Any
    ) -> AsyncGenerator[pb.StreamJobResponse, None]:
        key = self._jobs.resolve(request.job_id, request.task_rank, request.attempt)
        async with aclosing(self._streams.open(key, request)) as messages:
            async for message in messages:
                yield message

    async def WatchJobs(
        self, requests: AsyncIterator[pb.WatchJobsRequest], context: Any
    ) -> AsyncGenerator[pb.WatchJobsResponse, None]:
        async with aclosing(self._changes.watch(requests)) as messages:
            async for message in messages:
                yield message


def _signal_name(text: str) -> str:
    name = (text or "TERM").upper().removeprefix("SIG")
    if f"SIG{name}" not in signals.Signals.__members__:
        raise Invalid([Fault("/signal", f"no signal {text!r}")])
    return name
