"""The one table of routes: method, path, what it demands, who handles it, what it reads and answers.

Authorization, OpenAPI and the tests are all made from it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..auth.roles import Access
from ..schemas.documents import (
    EnrolledDocument,
    Health,
    JobDocument,
    JobList,
    OpenApi,
    WorkerDocument,
    WorkerList,
)
from ..schemas.requests import (
    AddWorkersBody,
    EnrollBody,
    IdempotencyHeader,
    JobsQuery,
    LastEventHeader,
    OutputHeaders,
    OutputParameters,
    StopBody,
    WaitQuery,
    WorkersQuery,
)
from ..schemas.spec import JobSpecBody
from . import events, jobs, output, service, workers
from .endpoint import Endpoint
from .forms import EVENTS, LINES, RAW, TEXT
from .output import COMPLETE, OFFSET

JOB = {200: JobDocument}
STARTED = {201: JobDocument, 200: JobDocument}
STREAMS = (EVENTS, LINES, TEXT)
STARTED_SENDS = dict.fromkeys(STARTED, ("Location", "Jobcluster-Job-Id"))
OUTPUT = {200: None, 206: None}
OUTPUT_SENDS = {
    200: (COMPLETE, OFFSET, "Jobcluster-Job-Id", "Accept-Ranges", "ETag"),
    206: (COMPLETE, OFFSET, "Jobcluster-Job-Id", "Accept-Ranges", "ETag", "Content-Range"),
}
OUTPUT_ERRORS = (404, 410, 416, 503, 505)
ON_WORKER = "/v1/workers/{worker_id}/jobs"

TABLE: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/v1/jobs",
        jobs.start_job,
        Access.OPERATOR,
        query=WaitQuery,
        body=JobSpecBody,
        headers=IdempotencyHeader,
        answers=STARTED,
        sends=STARTED_SENDS,
        media=STREAMS,
        errors=(404, 409, 429, 505),
        lasts=True,
    ),
    Endpoint("GET", "/v1/jobs", jobs.list_jobs, Access.VIEWER, query=JobsQuery, answers={200: JobList}),
    Endpoint(
        "GET",
        "/v1/jobs/{job_id}",
        jobs.get_job,
        Access.VIEWER,
        query=WaitQuery,
        answers=JOB,
        errors=(404,),
        lasts=True,
    ),
    Endpoint(
        "POST",
        "/v1/jobs/{job_id}/stop",
        jobs.stop_job,
        Access.OPERATOR,
        query=WaitQuery,
        body=StopBody,
        body_required=False,
        answers=JOB,
        errors=(404,),
        lasts=True,
    ),
    Endpoint(
        "GET",
        "/v1/jobs/{job_id}/output",
        output.get_output,
        Access.OPERATOR,
        query=OutputParameters,
        headers=OutputHeaders,
        answers=OUTPUT,
        media=(RAW, *STREAMS),
        sends=OUTPUT_SENDS,
        errors=OUTPUT_ERRORS,
        lasts=True,
    ),
    Endpoint(
        "POST",
        ON_WORKER,
        jobs.start_job_on_worker,
        Access.OPERATOR,
        query=WaitQuery,
        body=JobSpecBody,
        headers=IdempotencyHeader,
        answers=STARTED,
        sends=STARTED_SENDS,
        media=STREAMS,
        errors=(404, 409, 429, 505),
        lasts=True,
    ),
    Endpoint(
        "GET",
        f"{ON_WORKER}/{{job_id}}",
        jobs.get_job_on_worker,
        Access.VIEWER,
        query=WaitQuery,
        answers=JOB,
        errors=(404,),
        lasts=True,
    ),
    Endpoint(
        "POST",
        f"{ON_WORKER}/{{job_id}}/stop",
        jobs.stop_job_on_worker,
        Access.OPERATOR,
        query=WaitQuery,
        body=StopBody,
        body_required=False,
        answers=JOB,
        errors=(404,),
        lasts=True,
    ),
    Endpoint(
        "GET",
        f"{ON_WORKER}/{{job_id}}/output",
        output.get_output_on_worker,
        Access.OPERATOR,
        query=OutputParameters,
        headers=OutputHeaders,
        answers=OUTPUT,
        media=(RAW, *STREAMS),
        sends=OUTPUT_SENDS,
        errors=OUTPUT_ERRORS,
        lasts=True,
    ),
    Endpoint(
        "GET",
        "/v1/workers",
        workers.list_workers,
        Access.VIEWER,
        query=WorkersQuery,
        answers={200: WorkerList},
    ),
    Endpoint(
        "POST",
        "/v1/workers",
        workers.add_workers,
        Access.ADMIN,
        body=AddWorkersBody,
        errors=(409,),
    ),
    Endpoint(
        "GET",
        "/v1/workers/{worker_id}",
        workers.get_worker,
        Access.VIEWER,
        answers={200: WorkerDocument},
        errors=(404,),
    ),
    Endpoint(
        "POST", "/v1/enroll", workers.enroll, Access.JOIN, body=EnrollBody, answers={201: EnrolledDocument}
    ),
    Endpoint(
        "GET",
        "/v1/events",
        events.get_events,
        Access.VIEWER,
        headers=LastEventHeader,
        answers={200: None},
        media=(EVENTS,),
        errors=(505,),
        lasts=True,
    ),
    Endpoint("GET", "/v1/openapi.json", service.openapi, Access.VIEWER, answers={200: OpenApi}),
    Endpoint("GET", "/healthz", service.healthz, Access.PUBLIC, answers={200: Health}),
    Endpoint("GET", "/readyz", service.readyz, Access.PUBLIC, answers={200: Health}, errors=(503,)),
    Endpoint("GET", "/metrics", service.metrics, Access.VIEWER, answers={200: None}, media=("text/plain",)),
)


def check(table: Iterable[Endpoint]) -> None:
    """Default deny: a route that does not say who may use it keeps the service from starting.

    :raises ValueError: naming the route.
    """
    seen: set[tuple[str, str]] = set()
    for endpoint in table:
        route = f"{endpoint.method} {endpoint.path}"
        if not isinstance(endpoint.access, Access):
            raise ValueError(f"no role says who may use {route}")
        if (endpoint.method, endpoint.path) in seen:
            raise ValueError(f"two entries for {route}")
        seen.add((endpoint.method, endpoint.path))
