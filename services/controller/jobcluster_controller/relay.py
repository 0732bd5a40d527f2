"""One output from its worker. Nothing is kept here: who does not take the next item stops the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Literal

from jobcluster_common import tls  # noqa: F401  (before grpc)

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import worker_pb2
from jobcluster_common.errors import Internal, NotFound, RangeNotSatisfiable, Unavailable

from . import convert
from .dispatch import Dispatcher, StreamCall, cancelled
from .domain.job import Task
from .domain.query import OutputChunk, OutputCut, OutputEnd, OutputItem, OutputQuery, OutputStart

# A worker that does not even say where the output begins in this time counts as unreachable.
FIRST_SECONDS = 15.0


async def relay(
    dispatcher: Dispatcher, worker_id: str, job_id: str, task: Task, query: OutputQuery
) -> AsyncGenerator[OutputItem]:
    """A task's output from its worker: OutputStart, chunks, OutputEnd.

    :raises NotFound: the worker does not have it (at the first item, as all below).
    :raises RangeNotSatisfiable: the offset is beyond the stream's size.
    :raises Unavailable: the worker cannot be reached.
    :raises OutputCut: at any later item: it broke off.
    """
    call = dispatcher.stream(worker_id, convert.stream_request(job_id, task, query))
    dispatcher.streams += 1
    try:
        start = await _first(call, worker_id)
        yield start
        offset = start.offset
        while True:
            message = await _next(call, offset)
            if message.output:
                offset = message.offset + len(message.output)
                yield OutputChunk(message.output, message.offset)
            if message.HasField("end"):
                yield _end(message.end)
                return
    finally:
        dispatcher.streams -= 1
        call.cancel()


def empty(query: OutputQuery, complete: bool, task: Task | None) -> tuple[OutputStart, OutputEnd]:
    """The output of a task that has not run anywhere.

    :raises RangeNotSatisfiable: if any offset but 0 is asked for.
    """
    if query.offset and query.tail_lines is None:
        raise RangeNotSatisfiable(f"offset {query.offset} is beyond the end: there are 0 bytes")
    return OutputStart(0, 0, complete), OutputEnd(0, complete, task)


async def _first(call: StreamCall, worker_id: str) -> OutputStart:
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            message = await _read(call)
    except TimeoutError:
        raise Unavailable(f"worker {worker_id} does not answer", retry_after=5.0) from None
    except grpc.aio.AioRpcError as error:
        raise _as_ours(error, worker_id) from error
    if message == "closed":
        raise Unavailable(f"the link to worker {worker_id} was closed", retry_after=1.0)
    if not isinstance(message, worker_pb2.StreamJobResponse) or not message.HasField("start"):
        raise Internal(f"worker {worker_id} does not say where the output begins")
    return OutputStart(message.start.offset, message.start.size_bytes, message.start.complete)


async def _next(call: StreamCall, offset: int) -> worker_pb2.StreamJobResponse:
    try:
        message = await _read(call)
    except grpc.aio.AioRpcError as error:
        raise OutputCut(offset, f"{error.code().name}: {error.details()}") from error
    if not isinstance(message, worker_pb2.StreamJobResponse):
        # Also a stream that its worker closed in good order: without an end it is not one.
        raise OutputCut(offset, "the worker's stream broke off")
    if message.output and message.offset != offset:
        raise OutputCut(offset, f"the worker went on at {message.offset}")
    return message


async def _read(call: StreamCall) -> worker_pb2.StreamJobResponse | Literal["eof", "closed"]:
    try:
        message = await call.read()
        return message if isinstance(message, worker_pb2.StreamJobResponse) else "eof"
    except asyncio.CancelledError:
        if cancelled():
            raise
        return "closed"


def _as_ours(error: grpc.aio.AioRpcError, worker_id: str) -> Exception:
    code, details = error.code(), error.details() or ""
    match code:
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(details)
        case grpc.StatusCode.OUT_OF_RANGE:
            return RangeNotSatisfiable(details)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return Unavailable(f"worker {worker_id} cannot be reached: {details}", retry_after=5.0)
    return Internal(f"worker {worker_id} refused the output: {code.name}: {details}")


def _end(end: worker_pb2.OutputEnd) -> OutputEnd:
    task = None
    if end.HasField("task"):
        try:
            task = convert.report(end.task).task
        except ValueError:
            task = None
    return OutputEnd(end.offset, end.complete, task)
