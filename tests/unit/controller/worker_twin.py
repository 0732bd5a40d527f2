"""A worker without processes: a real gRPC server with real TLS, and tasks that end when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobcluster_common import tls  # before grpc

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import common_pb2, worker_pb2
from jobcluster_common import certificates, rpc
from jobcluster_common.errors import NotFound, RangeNotSatisfiable
from jobcluster_common.identity import CONTROLLER, Identity, Kind

Key = tuple[str, int, int]
_DONE = frozenset({"succeeded", "failed", "stopped"})
_ONLY_CONTROLLER = frozenset({Kind.CONTROLLER})


class Trust:
    """One CA; certificate files for whoever asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = certificates.make_ca()
        self.ca_file = folder / "ca.crt"
        self.ca_file.write_bytes(self._ca.crt_pem)
        self.controller = self.files(CONTROLLER)

    def files(self, identity: Identity) -> tls.TlsFiles:
        leaf = certificates.make_leaf(self._ca, identity)
        crt, key = self._folder / f"{identity.dns_name}.crt", self._folder / f"{identity.dns_name}.key"
        crt.write_bytes(leaf.crt_pem)
        certificates.write_private(key, leaf.key_pem)
        return tls.TlsFiles(crt, key, self.ca_file)


@dataclass(eq=False)
class WorkerTwin:
    """``tasks`` are those it tells of: live, or ended and not acknowledged."""

    worker_id: str = "w1"
    incarnation: str = "one"
    refuse: str = ""
    unanswered: int = 0
    end_at_once: bool = False
    ends_by: frozenset[str] = frozenset({"TERM", "INT", "KILL"})
    tasks: dict[Key, common_pb2.TaskStatus] = field(default_factory=dict)
    tombstones: set[Key] = field(default_factory=set)
    starts: list[Key] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    stops: list[worker_pb2.StopJobRequest] = field(default_factory=list)
    outputs: dict[str, bytearray] = field(default_factory=dict)
    acknowledged: set[Key] = field(default_factory=set)
    streams: int = 0
    readers: int = 0
    queries: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._news: asyncio.Queue[common_pb2.TaskStatus] = asyncio.Queue()
        self._output = asyncio.Condition()
        self._break = asyncio.Event()
        self.hold_starts, self.hold_queries = asyncio.Event(), asyncio.Event()
        self.hold_starts.set()
        self.hold_queries.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # What a test does with it

    def report(self, key: Key, state: str, **fields: Any) -> None:
        status = common_pb2.TaskStatus(job_id=key[0], task_rank=key[1], attempt=key[2], state=state, **fields)
        self.tasks[key] = status
        self._news.put_nowait(status)

    def end(self, key: Key, state: str = "succeeded", reason: str = "exited", exit_code: int = 0) -> None:
        self.report(key, state, reason=reason, exit_code=exit_code, started_at_us=1, finished_at_us=2)

    def break_stream(self) -> None:
        self._break.set()

    async def write(self, job_id: str, data: bytes) -> None:
        async with self._output:
            self.outputs.setdefault(job_id, bytearray()).extend(data)
            self._output.notify_all()

    # The service

    async def StartJob(self, request: worker_pb2.StartJobRequest, context: Any) -> Any:
        raise NotImplementedError

    async def StartJobs(self, request: worker_pb2.StartJobsRequest, context: Any) -> Any:
        self.batches.append(len(request.starts))
        if self.unanswered:
            self.unanswered -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "went away")
        await self.hold_starts.wait()
        return worker_pb2.StartJobsResponse(results=[self._start(start) for start in request.starts])

    def _start(self, start: worker_pb2.StartJobRequest) -> worker_pb2.StartResult:
        key = (start.job_id, start.task_rank, start.attempt)
        if key in self.tombstones:
            return worker_pb2.StartResult(accepted=False, code="claimed")
        if self.refuse:
            return worker_pb2.StartResult(accepted=False, code=self.refuse, error_text=f"is {self.refuse}")
        if key not in self.starts:
            self.starts.append(key)
            self.outputs.setdefault(start.job_id, bytearray())
            self.report(key, "running", started_at_us=1_000_000)
            if self.end_at_once:
                self.end(key)
        return worker_pb2.StartResult(accepted=True)

    async def StopJob(self, request: worker_pb2.StopJobRequest, context: Any) -> Any:
        self.stops.append(request)
        key = (request.job_id, request.task_rank, request.attempt)
        task = self.tasks.get(key)
        if task is None and key not in self.starts:
            self.tombstones.add(key)
            return worker_pb2.StopJobResponse(state="stopped")
        if task is not None and task.state not in _DONE and request.signal in self.ends_by:
            self.end(key, "stopped", "stopped")
        return worker_pb2.StopJobResponse(state="stopping")

    async def QueryJob(self, request: worker_pb2.QueryJobRequest, context: Any) -> Any:
        self.queries += 1
        await self.hold_queries.wait()
        task = self.tasks.get((request.job_id, request.task_rank, request.attempt))
        if task is None:
            raise NotFound(f"no such job here: {request.job_id}")
        return worker_pb2.QueryJobResponse(done=task.state in _DONE, task=task)

    async def StreamJob(
        self, request: worker_pb2.StreamJobRequest, context: Any
    ) -> AsyncIterator[worker_pb2.StreamJobResponse]:
        output = self.outputs.get(request.job_id)
        if output is None:
            raise NotFound(f"no such job here: {request.job_id}")
        if request.offset > len(output):
            raise RangeNotSatisfiable(f"{len(output)} bytes")
        self.readers += 1
        try:
            key = (request.job_id, request.task_rank, request.attempt)
            offset = request.offset
            yield worker_pb2.StreamJobResponse(
                start=worker_pb2.OutputStart(offset=offset, size_bytes=len(output))
            )
            while True:
                done = self._ended(key)
                while offset < len(output):
                    data = bytes(output[offset : offset + (256 << 10)])
                    yield worker_pb2.StreamJobResponse(output=data, offset=offset)
                    offset += len(data)
                if request.snapshot or done:
                    break
                async with self._output:
                    if offset == len(output) and not self._ended(key):
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._output.wait(), 0.05)
            yield worker_pb2.StreamJobResponse(end=worker_pb2.OutputEnd(offset=offset, complete=done))
        finally:
            self.readers -= 1

    def _ended(self, key: Key) -> bool:
        return key in self.acknowledged or (key in self.tasks and self.tasks[key].state in _DONE)

    async def WatchJobs(
        self, requests: AsyncIterator[worker_pb2.WatchJobsRequest], context: Any
    ) -> AsyncIterator[worker_pb2.WatchJobsResponse]:
        await anext(aiter(requests))
        self.streams += 1
        stream_id, sequence = str(self.streams), 0
        self._break.clear()
        while not self._news.empty():
            self._news.get_nowait()
        sent: dict[int, common_pb2.TaskStatus] = {}
        hearing = asyncio.create_task(self._hear(requests, sent))
        try:
            batch, first = list(self.tasks.values()), True
            while not self._break.is_set():
                changes = []
                for status in batch:
                    sequence += 1
                    sent[sequence] = status
                    changes.append(worker_pb2.JobChange(sequence=sequence, task=status))
                if changes or first:
                    yield worker_pb2.WatchJobsResponse(
                        stream_id=stream_id,
                        incarnation=self.incarnation,
                        changes=changes,
                        snapshot_complete=first,
                    )
                first = False
                batch = await self._more()
        finally:
            hearing.cancel()

    async def _more(self) -> list[common_pb2.TaskStatus]:
        news = asyncio.ensure_future(self._news.get())
        broken = asyncio.ensure_future(self._break.wait())
        try:
            await asyncio.wait({news, broken}, return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                return []
            batch = [news.result()]
            while not self._news.empty():
                batch.append(self._news.get_nowait())
            return batch
        finally:
            news.cancel()
            broken.cancel()

    async def _hear(
        self, requests: AsyncIterator[worker_pb2.WatchJobsRequest], sent: dict[int, common_pb2.TaskStatus]
    ) -> None:
        async for request in requests:
            for sequence in [s for s in sent if s <= request.acknowledged_sequence]:
                status = sent.pop(sequence)
                key = (status.job_id, status.task_rank, status.attempt)
                if status.state in _DONE:
                    self.acknowledged.add(key)
                    self.tasks.pop(key, None)


@contextlib.asynccontextmanager
async def serving(twin: WorkerTwin, trust: Trust, port: int = 0) -> AsyncIterator[WorkerTwin]:
    """The twin, reachable at its ``address`` as the worker that it says it is."""
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    descriptor = worker_pb2.DESCRIPTOR.services_by_name["Worker"]
    policy = {method.name: _ONLY_CONTROLLER for method in descriptor.methods}
    rpc.add_service(server, [descriptor.full_name], descriptor, twin, policy)
    files = trust.files(Identity(Kind.WORKER, twin.worker_id))
    twin.port = server.add_secure_port(f"127.0.0.1:{port}", tls.server_credentials(files))
    await server.start()
    try:
        yield twin
    finally:
        await server.stop(None)
