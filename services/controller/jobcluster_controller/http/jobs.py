"""The routes of jobs: start, list, get, stop; each also by worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from jobcluster_common import logs
from jobcluster_common.errors import Fault, Invalid
from starlette.responses import Response
from starlette.types import ASGIApp

from ..domain.job import Job
from ..domain.query import JobFilter
from ..domain.states import State
from ..schemas.parse import parse_job_spec, read_json, read_model
from ..schemas.render import job_document
from ..schemas.requests import JobsQuery, StopBody
from .call import Call
from .forms import EVENTS, LINES, TEXT
from .live import LiveStream
from .output import content_type, form_for, need_chunks
from .streams import of_new_job


def answer(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer."""
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, dict(headers or {}), "application/json")


async def start_job(call: Call) -> ASGIApp:
    """Start a job

    Answers after the job is durable, before it starts; with ?wait at its end. With Accept: text/event-stream,
    application/x-ndjson or text/plain the answer is its output as it comes.
    """
    return await _start(call, None)


async def start_job_on_worker(call: Call) -> ASGIApp:
    """Start a job on that worker"""
    return await _start(call, call.path("worker_id"))


async def _start(call: Call, worker_id: str | None) -> ASGIApp:
    media = call.preferred((EVENTS, LINES, TEXT, "application/json"))
    if media in (EVENTS, LINES, TEXT):
        need_chunks(call)
    document = await call.json()
    spec = parse_job_spec(document, worker_id)
    job, created = await call.doors.jobs.start(spec, call.caller, call.idempotency(document))
    logs.bind(job_id=job.job_id)
    status = 201 if created else 200
    headers = {"Location": f"/v1/jobs/{quote(job.job_id)}", "Jobcluster-Job-Id": job.job_id}
    if media in (EVENTS, LINES, TEXT):
        return _streamed(call, job, str(media), status, headers)
    return answer(job_document(await _waited(call, job)), status, headers)


def _streamed(call: Call, job: Job, media: str, status: int, headers: dict[str, str]) -> ASGIApp:
    form = form_for(media, job, "merged", {task.rank: 0 for task in job.tasks})
    chunks = of_new_job(call.doors, form, job_document(job))
    return LiveStream(call.doors, chunks, content_type(media), headers, status)


async def _waited(call: Call, job: Job) -> Job:
    seconds: float = call.query.wait
    if job.done or seconds <= 0:
        return job
    return await call.waiting(call.doors.jobs.wait(job.job_id, seconds))


async def list_jobs(call: Call) -> ASGIApp:
    """Jobs, newest first"""
    query: JobsQuery = call.query
    labels: dict[str, str] = {}
    for label in query.label:
        key, _, value = label.partition("=")
        if labels.setdefault(key, value) != value:
            raise Invalid([Fault("label", f"{key} is given two values; no job has both")])
    which = JobFilter(
        state=State(query.state) if query.state else None,
        worker_id=query.worker_id,
        name=query.name,
        labels=labels,
        array_id=query.array_id,
        limit=query.limit,
        cursor=query.cursor,
    )
    jobs, cursor = await call.doors.jobs.list(which)
    return answer({"jobs": [job_document(job) for job in jobs], "next_cursor": cursor})


async def get_job(call: Call) -> ASGIApp:
    """A job

    With ?wait the answer comes at its end, or after that many seconds.
    """
    return await _shown(call, await call.doors.jobs.get(call.path("job_id")))


async def get_job_on_worker(call: Call) -> ASGIApp:
    """A job, by the worker that holds a task of it"""
    return await _shown(call, await _on_worker(call))


async def _shown(call: Call, job: Job) -> ASGIApp:
    return answer(job_document(await call.doors.jobs.observed(await _waited(call, job))))


async def stop_job(call: Call) -> ASGIApp:
    """Stop a job

    Signal, grace, then the whole tree is killed. A later stop that is stricter (KILL, or a grace that ends earlier)
    sends its signal at once and shortens the grace; any other, or one on an ended job, changes nothing. State and
    reason stay those of what came first. The body may be absent.
    """
    return await _stop(call, await call.doors.jobs.get(call.path("job_id")))


async def stop_job_on_worker(call: Call) -> ASGIApp:
    """Stop a job, by the worker that holds a task of it"""
    return await _stop(call, await _on_worker(call))


async def _stop(call: Call, job: Job) -> ASGIApp:
    body = await call.body()
    how = read_model(StopBody, read_json(body)) if body.strip() else StopBody()
    job = await call.doors.jobs.stop(job.job_id, how.signal, how.grace_seconds)
    return answer(job_document(await _waited(call, job)))


async def _on_worker(call: Call) -> Job:
    return await call.doors.jobs.get_on_worker(call.path("worker_id"), call.path("job_id"))
