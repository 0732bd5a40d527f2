"""Who may enter, and what every refusal looks like."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx2
import pytest
import structlog
from jobcluster_common.certificates import Issued
from jobcluster_common.errors import Conflict, QueueFull, Unavailable
from jobcluster_controller.auth.roles import Access, Role, permits
from jobcluster_controller.http.door import Door
from jobcluster_controller.http.endpoint import Endpoint
from jobcluster_controller.http.routes import TABLE, check
from jobcluster_controller.schemas.documents import Problem
from structlog.testing import capture_logs

from tests.unit.controller.http.house import TOKENS, House, open_house

ROUTES = [pytest.param(e, id=f"{e.method} {e.path}") for e in TABLE]
ENDLESS = ("/v1/events",)
PLACES = {"job_id": "none", "worker_id": "none"}


def checked_problem(answer: httpx2.Response) -> Problem:
    """The problem document of an answer, of exactly its form."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == answer.status_code
    assert problem.request_id == answer.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("endpoint", ROUTES)
async def test_each_role_enters_exactly_where_the_table_lets_it(house: House, endpoint: Endpoint) -> None:
    path = endpoint.path.format(**PLACES)
    assert endpoint.access is not None
    for role in (None, *Role):
        async with house.client(role) as client, client.stream(endpoint.method, path) as answer:
            if answer.status_code >= 400 or endpoint.path not in ENDLESS:
                await answer.aread()
        if permits(role, endpoint.access):
            assert answer.status_code not in (401, 403), role
        else:
            assert answer.status_code == (401 if role is None else 403), (role, answer.text)
            checked_problem(answer)


@pytest.mark.parametrize("endpoint", ROUTES)
async def test_a_wrong_token_enters_nowhere_but_at_public_routes(house: House, endpoint: Endpoint) -> None:
    wrong = ("Bearer nobody-knows-this-token", f"Basic {TOKENS[Role.ADMIN]}", "Bearer", TOKENS[Role.ADMIN])
    async with house.client(None) as client:
        for value in wrong:
            answer = await client.request(
                endpoint.method, endpoint.path.format(**PLACES), headers={"Authorization": value}
            )
            if endpoint.access is Access.PUBLIC:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Bearer")
                checked_problem(answer)


async def test_a_viewer_sees_jobs_but_not_their_output(house: House) -> None:
    job = house.jobs.add()
    async with house.client(Role.VIEWER) as client:
        assert (await client.get(f"/v1/jobs/{job.job_id}")).status_code == 200
        assert (await client.get(f"/v1/jobs/{job.job_id}/output")).status_code == 403
        assert (await client.get(f"/v1/workers/w1/jobs/{job.job_id}/output")).status_code == 403


def test_a_route_without_a_role_stops_the_service(house: House) -> None:
    bare = Endpoint("GET", "/v1/secret", TABLE[0].handler)
    with pytest.raises(ValueError, match="GET /v1/secret"):
        Door(house.doors, [*TABLE, bare])
    with pytest.raises(ValueError, match="two entries"):
        check([*TABLE, TABLE[0]])


async def test_unknown_paths_and_methods_are_problems_too(house: House) -> None:
    async with house.client() as client:
        for path in ("/", "/nothing", "/v1", "/v1/jobs/", "/v1/jobs/a/b/c", "/v1/jobs/%2F"):
            answer = await client.get(path)
            assert answer.status_code == 404, path
            checked_problem(answer)
        for method, path in (("PATCH", "/v1/jobs"), ("DELETE", "/v1/jobs/x"), ("OPTIONS", "/v1/workers")):
            answer = await client.request(method, path)
            assert answer.status_code == 405
            checked_problem(answer)
        assert (await client.patch("/v1/jobs")).headers["allow"] == "POST, GET, HEAD"
    async with house.client(None) as client:
        assert (await client.get("/nothing")).status_code == 401
        assert (await client.post("/healthz")).status_code == 405


async def test_any_string_is_an_unknown_job(house: House) -> None:
    async with house.client() as client:
        for name in ("none", "%00", "%ff", "..%2e", "a" * 2000, "%F0%9F%92%A9", "'; drop table jobs"):
            for path in (f"/v1/jobs/{name}", f"/v1/jobs/{name}/output", f"/v1/workers/{name}"):
                assert (await client.get(path)).status_code == 404, path


async def test_a_fault_of_ours_is_a_500_without_its_cause(house: House) -> None:
    house.jobs.fails_with = RuntimeError("the secret cause")
    async with house.client() as client:
        answer = await client.post("/v1/jobs", json={"command": "true"}, headers={"X-Request-ID": "mine-1"})
    assert answer.status_code == 500 and "secret" not in answer.text
    assert checked_problem(answer).request_id == "mine-1"


async def test_errors_of_the_service_become_their_status(house: House) -> None:
    cases = [
        (QueueFull("full", 2.5), 429, "3"),
        (Unavailable("no disk", 1.0), 503, "1"),
        (Conflict("no"), 409, None),
    ]
    async with house.client() as client:
        for error, status, retry_after in cases:
            house.jobs.fails_with = error
            answer = await client.post("/v1/jobs", json={"command": "true"})
            assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry_after)
            assert checked_problem(answer).detail == error.detail


async def test_a_query_that_is_not_understood_is_refused(house: House) -> None:
    async with house.client() as client:
        for query in (
            "wait=x",
            "wait=-1",
            "wait=nan",
            "wait=1_0",
            "wait=99999",
            "waiting=1",
            "wait=1&wait=2",
        ):
            answer = await client.get(f"/v1/jobs/none?{query}")
            assert answer.status_code == 422, query
            assert checked_problem(answer).errors[0].pointer in ("wait", "waiting")
        for query in ("limit=0", "limit=1.5", "state=dead", "label=x", "limit=1e3000"):
            assert (await client.get(f"/v1/jobs?{query}")).status_code == 422, query
        assert (await client.get("/v1/jobs?limit=5&label=a=b&label=c=d&state=running")).status_code == 200


async def test_readyz_says_when_it_is_not(house: House) -> None:
    async with house.client(None) as client:
        assert (await client.get("/readyz")).status_code == 200
        house.doors.ready = lambda: False
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        checked_problem(answer)
        assert (await client.get("/healthz")).status_code == 200


async def test_readyz_says_when_nothing_can_be_committed(house: House) -> None:
    async def check() -> None:
        raise Unavailable("the store could not commit: database or disk is full")

    house.doors.check_store = check
    async with house.client(None) as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, checked_problem(answer).detail) == (
            503,
            "the store could not commit: database or disk is full",
        )


async def test_metrics_have_no_label_with_an_id(house: House) -> None:
    async with house.client(Role.VIEWER) as client:
        for n in range(3):
            await client.get(f"/v1/jobs/unknown-{n}")
            await client.get(f"/nothing-{n}")
        text = (await client.get("/metrics")).text
    assert 'jobcluster_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"} 3.0' in text
    assert 'route="unmatched",status="404"} 3.0' in text
    assert "unknown-" not in text and "nothing-" not in text
    assert 'jobcluster_workers{state="ready"} 1.0' in text


async def test_the_openapi_document_names_every_route(tmp_path: Path, ca: Issued) -> None:
    async with open_house(tmp_path, ca) as house, house.client(Role.VIEWER) as client:
        document = (await client.get("/v1/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for endpoint in TABLE:
        operation = document["paths"][endpoint.path][endpoint.method.lower()]
        for status, response in operation["responses"].items():
            if status == "default" or int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"]
    output = document["paths"]["/v1/jobs/{job_id}/output"]["get"]
    assert {"Range", "If-Range", "Last-Event-ID"} <= {p["name"] for p in output["parameters"]}
    assert list(output["responses"]["206"]["content"]) == ["application/octet-stream", "text/plain"]
    assert "Content-Range" in output["responses"]["206"]["headers"]
    assert "WWW-Authenticate" in output["responses"]["401"]["headers"]
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references <= document["components"]["schemas"].keys()


async def test_the_events_of_a_request_have_no_ids_of_one_before_on_its_connection(house: House) -> None:
    token = f"Authorization: Bearer {TOKENS[Role.ADMIN]}\r\n"
    with capture_logs([structlog.contextvars.merge_contextvars]) as events:
        reader, writer = await house.raw(
            f"GET /v1/jobs/no-such HTTP/1.1\r\nHost: x\r\n{token}\r\n"
            "GET /v1/workers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
    served = [event for event in events if event["event"] == "request_served"]
    assert [(e["status"], e.get("job_id")) for e in served] == [(404, "no-such"), (401, None)]
    assert len({event["request_id"] for event in served}) == 2
