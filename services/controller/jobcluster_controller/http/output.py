"""GET …/output: which task, which stream, from where, in which form."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping

from jobcluster_common.errors import Fault, Internal, Invalid, NotFound
from starlette.types import ASGIApp

from ..domain.job import Job
from ..domain.query import OutputQuery, OutputStart
from ..schemas.render import stream_totals
from ..schemas.requests import OutputParameters
from .call import Call
from .forms import EVENTS, LINES, RAW, TEXT, Bytes, Events, Form, Lines, RankedText, read_cursor
from .live import LiveStream
from .problems import HttpVersionNotSupported
from .ranges import read_range
from .streams import OpenedOutput

OFFERED = (EVENTS, LINES, TEXT, RAW)
COMPLETE = "Jobcluster-Output-Complete"
OFFSET = "Jobcluster-Output-Offset"


async def get_output(call: Call) -> ASGIApp:
    """Output of a job

    Raw bytes by default; events, JSON lines or text by Accept. A followed stream that breaks off is reset, never ended.
    """
    return await _answer(call, await call.doors.jobs.get(call.path("job_id")))


async def get_output_on_worker(call: Call) -> ASGIApp:
    """Output of a job, by the worker that holds a task of it"""
    job = await call.doors.jobs.get_on_worker(call.path("worker_id"), call.path("job_id"))
    return await _answer(call, job)


async def _answer(call: Call, job: Job) -> ASGIApp:
    parameters: OutputParameters = call.query
    ranks = _ranks(job, parameters.task)
    media = call.preferred(OFFERED) or RAW
    if media in (EVENTS, LINES):
        return await _formed(call, job, ranks, media)
    if len(ranks) > 1:
        if media == RAW:
            raise Invalid([Fault("task", f"the job has {len(ranks)} tasks: say which, as in ?task=0")])
        return await _formed(call, job, ranks, media)
    if parameters.follow:
        return await _followed(call, job, ranks[0], media)
    return await _snapshot(call, job, ranks[0], media)


def _ranks(job: Job, task: int | None) -> list[int]:
    ranks = [t.rank for t in job.tasks]
    if task is None:
        return ranks
    if task not in ranks:
        raise NotFound(f"job {job.job_id} has no task {task}")
    return [task]


def _query(parameters: OutputParameters, limit_bytes: int | None = None) -> OutputQuery:
    if parameters.tail is not None and parameters.offset is not None:
        raise Invalid([Fault("tail", "offset and tail do not go together")])
    return OutputQuery(
        parameters.stream, parameters.offset or 0, parameters.follow, parameters.tail, limit_bytes
    )


def need_chunks(call: Call) -> None:
    """:raises HttpVersionNotSupported: for HTTP/1.0, where the end of the connection is the end of the answer."""
    if call.request.scope["http_version"] == "1.0":
        raise HttpVersionNotSupported("a live stream needs HTTP/1.1: in 1.0 a cut would look like its end")


def form_for(media: str, job: Job, stream: str, offsets: Mapping[int, int]) -> Form:
    """The form of a media type."""
    if media == EVENTS:
        return Events(job.job_id, stream, dict(offsets))
    if media == LINES:
        return Lines(stream)
    return RankedText() if len(offsets) > 1 else Bytes()


async def _formed(call: Call, job: Job, ranks: list[int], media: str) -> ASGIApp:
    need_chunks(call)
    query = _query(call.query)
    offsets = dict.fromkeys(ranks, query.offset)
    cursor = call.header("last-event-id") if media == EVENTS else None
    if cursor:
        found = read_cursor(cursor, job.job_id, query.stream)
        offsets = {rank: found.get(rank, 0) for rank in ranks}
        query = OutputQuery(query.stream, 0, query.follow)
    opened = await _opened(call, job, offsets, query)
    form = form_for(media, job, query.stream, offsets)
    return LiveStream(call.doors, opened.formed(form), content_type(media), _headers(job), close=opened.close)


async def _followed(call: Call, job: Job, rank: int, media: str) -> ASGIApp:
    need_chunks(call)
    query = _query(call.query)
    opened = await _opened(call, job, {rank: query.offset}, query)
    return LiveStream(call.doors, opened.chunks(), content_type(media), _headers(job), close=opened.close)


async def _snapshot(call: Call, job: Job, rank: int, media: str) -> ASGIApp:
    query = _query(call.query)
    headers, status = _headers(job), 200
    limit: int | None = None
    if job.done:
        totals = stream_totals(job.tasks[rank].output, query.stream)
        headers |= {"Accept-Ranges": "bytes"} | ({"ETag": f'"{totals.sha256}"'} if totals.sha256 else {})
        asked = _range(call, headers, totals.bytes)
        if asked is not None:
            limit = asked[1] - asked[0] + 1
            query = OutputQuery(query.stream, asked[0], False, None, limit)
            status = 206
            headers["Content-Range"] = f"bytes {asked[0]}-{asked[1]}/{totals.bytes}"
    opened = await _opened(call, job, {rank: query.offset}, query)
    try:
        start = await opened.first()
        if not isinstance(start, OutputStart):
            raise Internal("the stream began without its start")
    except BaseException:
        await opened.close()
        raise
    length = start.size_bytes - start.offset
    length = length if limit is None else min(length, limit)
    headers |= {
        "Content-Length": str(length),
        COMPLETE: "true" if start.complete else "false",
        OFFSET: str(start.offset),
    }
    chunks = _exactly(opened.chunks(), length)
    return LiveStream(call.doors, chunks, content_type(media), headers, status, opened.close)


def _range(call: Call, headers: Mapping[str, str], size_bytes: int) -> tuple[int, int] | None:
    header, condition = call.header("range"), call.header("if-range")
    if header is None or (condition is not None and condition != headers.get("ETag")):
        return None
    if call.query.offset is not None or call.query.tail is not None:
        raise Invalid([Fault("Range", "does not go together with offset and tail")])
    return read_range(header, size_bytes)


async def _exactly(chunks: AsyncGenerator[bytes, None], length: int) -> AsyncGenerator[bytes, None]:
    """What was promised by Content-Length: the job may have written more since, and that is not sent."""
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            yield chunk[:length]
            length -= min(length, len(chunk))
            if length == 0:
                return


async def _opened(call: Call, job: Job, offsets: Mapping[int, int], query: OutputQuery) -> OpenedOutput:
    return await call.waiting(OpenedOutput.open(call.doors, job.job_id, offsets, query))


def _headers(job: Job) -> dict[str, str]:
    return {"Jobcluster-Job-Id": job.job_id}


def content_type(media: str) -> str:
    return f"{media}; charset=utf-8" if media in (TEXT, EVENTS) else media
