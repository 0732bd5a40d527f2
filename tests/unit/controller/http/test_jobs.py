"""Jobs over HTTP: start, repeat, wait, list, stop; and bodies that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jobcluster_common.certificates import Issued, identity_of, make_csr, make_key
from jobcluster_common.identity import Identity, Kind
from jobcluster_controller.auth.roles import Role
from jobcluster_controller.auth.tokens import Tokens
from jobcluster_controller.http.call import BODY_BYTES_MAX
from jobcluster_controller.schemas.documents import JobDocument

from tests.unit.controller.http.house import TOKENS, House, eventually


async def test_a_started_job_is_201_with_its_place(house: House) -> None:
    async with house.client(Role.OPERATOR) as client:
        answer = await client.post("/v1/jobs", json={"command": "true", "worker_id": "w1"})
        assert answer.status_code == 201
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['job_id']}"
        JobDocument.model_validate_json(answer.content)
        assert (await client.get(answer.headers["location"])).json() == job
        on_worker = await client.post("/v1/workers/w1/jobs", json={"command": "true"})
        assert on_worker.status_code == 201 and on_worker.json()["spec"]["worker_id"] == "w1"
        found = await client.get(f"/v1/workers/w1/jobs/{job['job_id']}")
        assert found.json() == job
        assert (await client.get(f"/v1/workers/w2/jobs/{job['job_id']}")).status_code == 404
        listed = (await client.get("/v1/jobs?limit=1")).json()
        assert [j["job_id"] for j in listed["jobs"]] == [on_worker.json()["job_id"]]
        assert listed["next_cursor"] is None


async def test_refusals_of_a_start(house: House) -> None:
    async with house.client() as client:
        assert (await client.post("/v1/jobs", json={"command": "x", "worker_id": "no"})).status_code == 404
        differ = await client.post("/v1/workers/w2/jobs", json={"command": "x", "worker_id": "w1"})
        assert differ.status_code == 422 and differ.json()["errors"][0]["pointer"] == "/worker_id"
        for content in (b"", b"{", b"\xff", b"[" * 100_000, b"nope"):
            answer = await client.post("/v1/jobs", content=content)
            assert answer.status_code == 400, content[:10]
            assert answer.headers["content-type"] == "application/problem+json"
        assert (await client.post("/v1/jobs", content=b"[]")).status_code == 422
        # What curl -d sends is JSON all the same.
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await client.post("/v1/jobs", content=b'{"command":"x"}', headers=form)).status_code == 201


async def test_an_idempotency_key_makes_one_job_of_many_posts(house: House) -> None:
    key = {"Idempotency-Key": "k-1"}
    async with house.client() as client:
        first = await client.post("/v1/jobs", content=b'{"command":"x","env":{"A":"1","B":"2"}}', headers=key)
        again = await client.post(
            "/v1/jobs", content=b'{"env":{"B":"2","A":"1"}, "command":"x"}', headers=key
        )
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["job_id"] == again.json()["job_id"]
        number = {"Idempotency-Key": "k-2"}
        bodies = (b'{"command":"x","timeout_seconds":5}', b'{"command":"x","timeout_seconds":5.0}')
        answers = [await client.post("/v1/jobs", content=body, headers=number) for body in bodies]
        assert [answer.status_code for answer in answers] == [201, 200]
        assert (await client.post("/v1/jobs", json={"command": "y"}, headers=key)).status_code == 422
        assert (
            await client.post("/v1/workers/w1/jobs", json={"command": "y"}, headers=key)
        ).status_code == 201
        for bad in ("", "a b", "x" * 256):
            answer = await client.post("/v1/jobs", json={"command": "y"}, headers={"Idempotency-Key": bad})
            assert answer.status_code == 400, bad
    async with house.client(Role.OPERATOR) as client:
        assert (await client.post("/v1/jobs", json={"command": "y"}, headers=key)).status_code == 201


async def test_two_tokens_of_a_role_are_two_callers(house: House) -> None:
    names = ("the-one-operator's-token", "the-other-operator's-token")
    house.doors.tokens = Tokens.of(dict.fromkeys(names, Role.OPERATOR))
    async with house.client(None) as client:
        for body in ({"command": "x"}, {"command": "y"}):
            name = names[body["command"] == "y"]
            headers = {"Authorization": f"Bearer {name}", "Idempotency-Key": "k"}
            answers = [await client.post("/v1/jobs", json=body, headers=headers) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [201, 200]
            assert name not in repr(house.jobs.keys)


async def test_wait_answers_at_the_end_or_after_its_seconds(house: House) -> None:
    job = house.jobs.add()
    async with house.client() as client:
        assert (await client.get(f"/v1/jobs/{job.job_id}?wait=0.05")).json()["state"] == "running"
        waiting = asyncio.create_task(client.get(f"/v1/jobs/{job.job_id}?wait=30"))
        await eventually(lambda: len(house.doors.live) == 1)
        await house.jobs.end(job, 7)
        assert (await waiting).json()["exit_code"] == 7
        posted = await client.post("/v1/jobs?wait=0.05", json={"command": "x"})
        assert posted.status_code == 201


async def test_stop_takes_no_body_at_all_or_a_signal_and_a_grace(house: House) -> None:
    job = house.jobs.add()
    async with house.client(Role.OPERATOR) as client:
        for path in (f"/v1/jobs/{job.job_id}/stop", f"/v1/workers/w1/jobs/{job.job_id}/stop"):
            assert (await client.post(path)).json()["state"] == "stopping"
            assert house.jobs.jobs[job.job_id].stop_requested == ("TERM", 10.0)
            assert (await client.post(path, json={"signal": "SIGINT", "grace_seconds": 0})).status_code == 200
            assert house.jobs.jobs[job.job_id].stop_requested == ("INT", 0.0)
        bad: list[Any] = [{"signal": "NOPE"}, {"signal": 9}, {"grace_seconds": -1}, {"grace": 1}, []]
        for how in bad:
            answer = await client.post(f"/v1/jobs/{job.job_id}/stop", json=how)
            assert answer.status_code == 422, how
        assert (await client.post(f"/v1/jobs/{job.job_id}/stop", content=b"{")).status_code == 400
        assert (await client.post("/v1/jobs/none/stop")).status_code == 404


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_4_mib_is_413_whatever_it_says_of_itself(house: House, chunked: bool) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * (1 << 20)

    async with house.client() as client:
        content: Any = body() if chunked else b"x" * (BODY_BYTES_MAX + 1)
        answer = await client.post("/v1/jobs", content=content)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        fits = b'{"command":"x"' + b" " * (BODY_BYTES_MAX - 15) + b"}"
        assert (await client.post("/v1/jobs", content=fits)).status_code == 201


async def test_a_client_that_asks_before_it_sends_is_refused_before_it_sends(house: House) -> None:
    reader, writer = await house.raw(
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS[Role.ADMIN]}\r\n"
        "Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_what_is_no_http_or_too_much_of_it_is_a_problem(house: House) -> None:
    for request, status in (
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"40"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
    ):
        reader, writer = await house.raw(request)
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
            problem = json.loads(await reader.read())
        writer.close()
        assert answer.split(b" ")[1].startswith(status), request[:20]
        assert b"application/problem+json" in answer
        assert f"x-request-id: {problem['request_id']}\r\n".encode() in answer and problem["detail"]


async def test_a_worker_enrols_with_the_join_token(house: House, ca: Issued) -> None:
    async with house.client(Role.JOIN) as client:
        answer = await client.post("/v1/enroll", json={"csr": make_csr(make_key()).decode()})
        assert answer.status_code == 201
        enrolled = answer.json()
        assert identity_of(enrolled["certificate"].encode()) == Identity(Kind.WORKER, enrolled["worker_id"])
        assert enrolled["ca"].encode() == ca.crt_pem
        for body in ({}, {"csr": "nonsense"}, {"csr": 1}, {"csr": "x", "worker_id": "mine"}):
            assert (await client.post("/v1/enroll", json=body)).status_code == 422


async def test_workers_are_listed_and_shown(house: House) -> None:
    async with house.client(Role.VIEWER) as client:
        (worker,) = (await client.get("/v1/workers")).json()["workers"]
        assert (await client.get("/v1/workers/w1")).json() == worker
        assert (await client.get("/v1/workers?state=gone")).json() == {"workers": []}
        assert (await client.get("/v1/workers?state=dead")).status_code == 422
        assert (await client.get("/v1/workers/none")).status_code == 404
    async with house.client() as client:
        assert (await client.post("/v1/workers", json={"count": 1})).status_code == 409
