"""The way out to the workers: one link per worker that is not lost or gone."""

from __future__ import annotations

import asyncio

from jobcluster_common import tls  # before grpc

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import worker_pb2
from jobcluster_common.errors import Unavailable
from jobcluster_common.rpc import request_metadata

from .books import Books
from .domain.changes import Source
from .domain.job import Job, Task
from .domain.states import WorkerState
from .domain.worker import Worker
from .link import Link

StreamCall = grpc.aio.UnaryStreamCall[worker_pb2.StreamJobRequest, worker_pb2.StreamJobResponse]


class Dispatcher:
    """Sends starts and stops, hears of changes, opens outputs. ``files`` None = plain text (loopback only).

    Starts and stops are promises of the books, not of this room: what cannot be sent now is found again by
    ``Books.all_told`` when the worker is back.
    """

    def __init__(self, files: tls.TlsFiles | None) -> None:
        self._files = files
        self._links: dict[str, Link] = {}
        self._books: Books | None = None
        self.streams = 0
        """How many outputs are being relayed now."""

    def attach(self, books: Books) -> None:
        """To be called once, before the first worker is told of."""
        self._books = books

    async def worker_changed(self, worker: Worker) -> None:
        """Keeps one link to the worker as it is now, or none when it is lost or gone."""
        if self._books is None:
            raise RuntimeError("the dispatcher has no books yet")
        link = self._links.get(worker.worker_id)
        source = Source.of(worker)
        if link is not None and worker.alive and (link.source, link.address) == (source, worker.address):
            if worker.state is not WorkerState.UNREACHABLE:
                link.kick()
            return
        # Before the first await, so that two changes at once never make two links.
        if worker.alive and worker.state is not WorkerState.STARTING:
            self._links[worker.worker_id] = Link(source, worker.address, self._files, self._books)
        else:
            self._links.pop(worker.worker_id, None)
        if link is not None:
            await link.close()

    def start(self, job: Job, task: Task) -> None:
        if (link := self._links.get(task.worker_id or "")) is not None:
            link.start(job, task)

    def stop(self, job: Job, task: Task) -> None:
        if (link := self._links.get(task.worker_id or "")) is not None:
            link.stop(job, task)

    def connected(self, worker_id: str) -> bool:
        """Whether the worker's stream of changes is up: it can be reached, heartbeat or not."""
        link = self._links.get(worker_id)
        return link is not None and link.synced

    def stream(self, worker_id: str, request: worker_pb2.StreamJobRequest) -> StreamCall:
        """An open call; grpc's flow control holds the worker back while nobody reads it.

        :raises Unavailable: there is no link to that worker.
        """
        link = self._links.get(worker_id)
        if link is None:
            raise Unavailable(f"worker {worker_id} is unreachable", retry_after=5.0)
        # No deadline: it ends with the task, by the reader, or when keepalive finds the worker dead.
        return link.stub().StreamJob(request, metadata=request_metadata())

    async def query(
        self, worker_id: str, request: worker_pb2.QueryJobRequest, seconds: float
    ) -> worker_pb2.QueryJobResponse:
        """A task as its worker sees it now.

        :raises Unavailable: there is no link to that worker, or it was closed meanwhile.
        :raises grpc.aio.AioRpcError: it does not answer in that time, or has no such task.
        """
        link = self._links.get(worker_id)
        if link is None:
            raise Unavailable(f"worker {worker_id} is unreachable", retry_after=5.0)
        try:
            return await link.stub().QueryJob(request, timeout=seconds, metadata=request_metadata())
        except asyncio.CancelledError:
            if cancelled():
                raise
            raise Unavailable(f"the link to worker {worker_id} was closed", retry_after=1.0) from None

    async def close(self) -> None:
        links = list(self._links.values())
        self._links.clear()
        await asyncio.gather(*(link.close() for link in links))


def cancelled() -> bool:
    """Whether the present task is. grpc raises CancelledError too where a channel was closed under a call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
