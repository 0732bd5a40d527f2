"""The link to one worker: its stream of changes, and what is sent to it while that stream is up."""

from __future__ import annotations

import asyncio
import random

from jobcluster_common import logs, tls  # tls before grpc

# isort: split
import grpc
import grpc.aio
import structlog
from jobcluster.v1 import worker_pb2, worker_pb2_grpc
from jobcluster_common.errors import JobclusterError, Unavailable
from jobcluster_common.identity import Identity, Kind

from . import convert
from .books import Books
from .domain.changes import Report, Source, TaskKey
from .domain.job import Job, Task
from .outbox import Batch, Outbox

log = structlog.get_logger()

START_SECONDS = 15.0
STOP_SECONDS = 10.0
# A worker that has so much to tell and does not get it done in this time is asked anew.
SNAPSHOT_SECONDS = 60.0
BACKOFF_SECONDS = (0.1, 5.0)
# Of one RPC; well below the 8 MiB a server takes, even when the last one is a job of 4 MiB.
_BATCH_BYTES = 2 << 20
_BATCH_STARTS = 256
# Acknowledgements under way: more, and the worker is not read from until the store has caught up.
_UNACKNOWLEDGED_MAX = 64
_ACKNOWLEDGE_EVERY = 16

_AGAIN = frozenset({"draining", "epoch", "unavailable"})
_POISON = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED})

_RETRYABLE = (grpc.aio.AioRpcError, Unavailable)

_Ack = tuple[asyncio.Future[None] | None, str, int]


class Broken(Exception):
    """The stream ended, or its worker is not the one that registered."""


class Link:
    """One worker in one incarnation and epoch, at one address. ``run`` re-opens the stream until it is closed.

    Starts and stops are taken only while the stream is up and the worker has told all it has: what was not sent
    then is found out, and sent, at the next such moment. So nothing needs to be kept here.
    """

    def __init__(self, source: Source, address: str, files: tls.TlsFiles | None, books: Books) -> None:
        self.source = source
        self.address = address
        self._files = files
        self._books = books
        self._channel: grpc.aio.Channel | None = None
        self._stamp: object = None
        self._kick = asyncio.Event()
        self.synced = False
        self._starts: Outbox[TaskKey, worker_pb2.StartJobRequest] = Outbox(
            self._send_starts, _take_starts, _RETRYABLE
        )
        # Whether it must not live at all; otherwise what is sent is the stop that the books want at that moment.
        self._stops: Outbox[TaskKey, bool] = Outbox(
            self._send_stop, _take_one, _RETRYABLE, patience_seconds=0.0
        )
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"link-{source.worker_id}", context=logs.own_context()
        )

    def start(self, job: Job, task: Task) -> None:
        self._starts.put(TaskKey(job.job_id, task.rank, task.attempt), convert.start_request(job, task))

    def stop(self, job: Job, task: Task) -> None:
        key = TaskKey(job.job_id, task.rank, task.attempt)
        self._starts.drop(key)
        self._stops.put(key, False)

    def kick(self) -> None:
        """The worker was heard of: it is worth trying at once."""
        self._kick.set()

    def stub(self) -> worker_pb2_grpc.WorkerAsyncStub:
        """For calls on the link's channel.

        :raises OSError: if there is no channel yet and the certificate's files cannot be read.
        """
        if self._channel is None:
            self._channel = tls.channel(
                self.address, self._files, Identity(Kind.WORKER, self.source.worker_id)
            )
        return worker_pb2_grpc.WorkerStub(self._channel)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    async def _run(self) -> None:
        logs.bind(worker_id=self.source.worker_id)
        least, most = BACKOFF_SECONDS
        delay = least
        while True:
            self._kick.clear()
            try:
                await self._follow_new_certificate()
                await self._watch()
            except (grpc.aio.AioRpcError, JobclusterError, Broken, TimeoutError, OSError) as error:
                log.info("worker_stream_broken", reason=_short(error))
            except Exception as error:  # a fault of ours: said loudly, and the worker is not given up for it
                log.error("worker_stream_failed", exc_info=error)
            finally:
                await self._starts.close()
                await self._stops.close()
            delay = least if self.synced else min(delay * 2, most)
            self.synced = False
            try:
                async with asyncio.timeout(delay * random.uniform(0.5, 1.0)):
                    await self._kick.wait()
                # A worker that registers again and again and cannot be reached must not make us spin.
                await asyncio.sleep(least * random.uniform(0.5, 1.0))
            except TimeoutError:
                pass

    async def _follow_new_certificate(self) -> None:
        """A channel keeps the certificate it was made with (grpc/grpc#15735)."""
        if self._files is None:
            return
        stamp = await asyncio.to_thread(self._files.stamp)
        if self._channel is not None and stamp != self._stamp:
            await self._channel.close()
            self._channel = None
        self._stamp = stamp

    async def _watch(self) -> None:
        call = self.stub().WatchJobs()
        acks: asyncio.Queue[_Ack] = asyncio.Queue(_UNACKNOWLEDGED_MAX)
        loop = asyncio.get_running_loop()
        sides = [loop.create_task(self._read(call, acks)), loop.create_task(self._acknowledge(call, acks))]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in done:
                side.result()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            call.cancel()

    async def _read(self, call: _WatchCall, acks: asyncio.Queue[_Ack]) -> None:
        told: set[TaskKey] = set()
        async with asyncio.timeout(SNAPSHOT_SECONDS) as snapshot:
            await call.write(worker_pb2.WatchJobsRequest())
            while True:
                message = await call.read()
                if not isinstance(message, worker_pb2.WatchJobsResponse):
                    raise Broken("the worker ended the stream")
                if message.incarnation != self.source.incarnation:
                    raise Broken(f"incarnation {message.incarnation} is there, which did not register")
                if not self._books.believes(self.source):
                    raise Broken("its registration is over")
                reports = _reports(message)
                durable = self._books.reported(self.source, reports)
                if not self.synced:
                    told.update(report.key for report in reports)
                if message.snapshot_complete and not self.synced:
                    snapshot.reschedule(None)
                    lost = self._sync(told)
                    if lost is not None:
                        await lost
                await self._fence(reports)
                if message.changes:
                    await acks.put((durable, message.stream_id, message.changes[-1].sequence))

    def _sync(self, told: set[TaskKey]) -> asyncio.Future[None] | None:
        self.synced = True
        self._starts.open()
        self._stops.open()
        log.info("worker_stream_open", tasks=len(told))
        return self._books.all_told(self.source, told)

    async def _acknowledge(self, call: _WatchCall, acks: asyncio.Queue[_Ack]) -> None:
        unsaid = 0
        while True:
            durable, stream_id, sequence = await acks.get()
            if durable is not None:
                await durable  # raises Unavailable: not acknowledged, so told again on the next stream
            unsaid += 1
            if acks.empty() or unsaid >= _ACKNOWLEDGE_EVERY:
                unsaid = 0
                await call.write(
                    worker_pb2.WatchJobsRequest(stream_id=stream_id, acknowledged_sequence=sequence)
                )

    async def _fence(self, reports: list[Report]) -> None:
        """What lives there and must not (its worker was given up meanwhile) is killed."""
        for report in reports:
            if not report.task.state.done and await self._books.unwanted(self.source, report):
                log.warning("task_fenced", **report.key.ids())
                self._stops.open()
                self._stops.put(report.key, True)

    async def _send_starts(self, batch: Batch[TaskKey, worker_pb2.StartJobRequest]) -> None:
        wanted = {key: item for key, item in batch.items() if self._books.wants_start(self.source, key)}
        if not wanted:
            return
        try:
            response = await self.stub().StartJobs(
                worker_pb2.StartJobsRequest(starts=wanted.values()), timeout=START_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            log.info(
                "starts_unanswered", worker_id=self.source.worker_id, tasks=len(wanted), reason=_short(error)
            )
            if error.code() not in _POISON:
                raise
            if len(wanted) == 1:
                # Not even read by the worker: it would be the same each time.
                text = error.details() or "refused"
                await _durable(self._books.refused(self.source, next(iter(wanted)), False, text))
                return
            for key, item in wanted.items():
                await self._send_starts({key: item})
            return
        results = list(zip(wanted, response.results, strict=True))
        self._books.accepted([key for key, result in results if result.accepted])
        refused = [
            self._books.refused(self.source, key, result.code in _AGAIN, result.error_text or result.code)
            for key, result in results
            if not result.accepted
        ]
        for durable in refused:
            await _durable(durable)

    async def _send_stop(self, batch: Batch[TaskKey, bool]) -> None:
        for key, fence in batch.items():
            wanted = ("KILL", 0.0) if fence else self._books.wanted_stop(self.source, key)
            if wanted is None:
                continue
            try:
                await self.stub().StopJob(_stop_request(key, *wanted), timeout=STOP_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            if not fence and self._books.unseen(self.source, key):
                await self._settle_stop(key)

    async def _settle_stop(self, key: TaskKey) -> None:
        """A stop may be there before, or instead of, its start; then no end would ever be reported."""
        request = worker_pb2.QueryJobRequest(job_id=key.job_id, task_rank=key.rank, attempt=key.attempt)
        try:
            response = await self.stub().QueryJob(request, timeout=STOP_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            await _durable(self._books.never_started(self.source, key))
            return
        if response.HasField("task") and (report := convert.report(response.task)).task.state.done:
            await _durable(self._books.reported(self.source, [report]))


_WatchCall = grpc.aio.StreamStreamCall[worker_pb2.WatchJobsRequest, worker_pb2.WatchJobsResponse]


async def _durable(future: asyncio.Future[None] | None) -> None:
    """Waits for the commit, if there is one. It raises Unavailable: then the same is sent, and answered, again."""
    if future is not None:
        await future


def _stop_request(key: TaskKey, signal: str, grace_seconds: float) -> worker_pb2.StopJobRequest:
    return worker_pb2.StopJobRequest(
        job_id=key.job_id,
        task_rank=key.rank,
        attempt=key.attempt,
        signal=signal,
        grace_seconds=grace_seconds,
        reason="stopped",
    )


def _reports(message: worker_pb2.WatchJobsResponse) -> list[Report]:
    reports = []
    for change in message.changes:
        try:
            reports.append(convert.report(change.task))
        except ValueError as error:
            # Skipped and acknowledged: told again it would be no better, and would hold up all others.
            told = change.task
            ids = {"job_id": told.job_id, "task_rank": told.task_rank, "attempt": told.attempt}
            log.error("report_not_understood", reason=str(error), **ids)
    return reports


def _take_starts(
    pending: Batch[TaskKey, worker_pb2.StartJobRequest],
) -> Batch[TaskKey, worker_pb2.StartJobRequest]:
    batch: Batch[TaskKey, worker_pb2.StartJobRequest] = {}
    size = 0
    while pending and len(batch) < _BATCH_STARTS:
        key = next(iter(pending))
        size += pending[key].ByteSize()
        if batch and size > _BATCH_BYTES:
            break
        batch[key] = pending.pop(key)
    return batch


def _take_one(pending: Batch[TaskKey, bool]) -> Batch[TaskKey, bool]:
    key = next(iter(pending))
    return {key: pending.pop(key)}


def _short(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
