"""Output over HTTP: each form, each refusal, and that a cut never looks like an end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from typing import Any

import httpx2
import pytest
from jobcluster_common.errors import Gone, Unavailable
from jobcluster_controller.auth.roles import Role
from jobcluster_controller.domain.job import Job

from tests.unit.controller.http.house import TOKENS, House, eventually

EVENTS = {"Accept": "text/event-stream"}
LINES = {"Accept": "application/x-ndjson"}


async def ended(house: House, data: bytes = b"hello\nworld\n", exit_code: int = 0, tasks: int = 1) -> Job:
    job = house.jobs.add(tasks=tasks)
    for rank in range(tasks):
        await house.jobs.write(job, data, rank)
    return await house.jobs.end(job, exit_code)


def parsed(text: str) -> list[dict[str, Any]]:
    """Server-sent events as {event, data, id}."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


async def test_a_snapshot_says_its_length_and_whether_it_is_all(house: House) -> None:
    job = house.jobs.add()
    await house.jobs.write(job, b"hello\n")
    async with house.client() as client:
        now = await client.get(f"/v1/jobs/{job.job_id}/output")
        assert (now.content, now.headers["content-length"]) == (b"hello\n", "6")
        assert now.headers["content-type"] == "application/octet-stream"
        assert now.headers["jobcluster-output-complete"] == "false"
        await house.jobs.write(job, b"world\n")
        await house.jobs.end(job)
        end = await client.get(f"/v1/workers/w1/jobs/{job.job_id}/output")
        assert (end.content, end.headers["jobcluster-output-complete"]) == (b"hello\nworld\n", "true")
        assert (await client.head(f"/v1/jobs/{job.job_id}/output")).headers["content-length"] == "12"


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "image/png",
        "application/octet-stream",
        "",
        "application/json, text/plain, */*",
        "text/event-stream;q=0.1, */*",
        "text/plain;q=0",
        "text/plain;q=0.5, application/octet-stream;q=0.9",
    ],
)
async def test_raw_is_the_form_for_whoever_asks_for_none_of_the_others(house: House, accept: str) -> None:
    job = await ended(house, b"\0\xff\n")
    async with house.client(Accept=accept) as client:
        answer = await client.get(f"/v1/jobs/{job.job_id}/output")
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"\0\xff\n")


async def test_offset_tail_and_their_refusals(house: House) -> None:
    job = await ended(house)
    async with house.client() as client:
        for query, content in (
            ("offset=6", b"world\n"),
            ("offset=12", b""),
            ("tail=1", b"world\n"),
            ("tail=0", b""),
        ):
            assert (await client.get(f"/v1/jobs/{job.job_id}/output?{query}")).content == content, query
        tail = await client.get(f"/v1/jobs/{job.job_id}/output?tail=1")
        assert tail.headers["jobcluster-output-offset"] == "6"
        for query, status in (
            ("offset=13", 416),
            ("offset=-1", 422),
            ("offset=x", 422),
            ("offset=1&tail=1", 422),
            ("stream=both", 422),
            ("follow=maybe", 422),
            ("task=1", 404),
            ("task=-1", 422),
        ):
            answer = await client.get(f"/v1/jobs/{job.job_id}/output?{query}")
            assert answer.status_code == status, query
            assert answer.headers["content-type"] == "application/problem+json"


async def test_range_on_an_ended_job(house: House) -> None:
    job = await ended(house, b"0123456789")
    url = f"/v1/jobs/{job.job_id}/output"
    async with house.client() as client:
        for asked, content, of in (
            ("bytes=2-4", b"234", "2-4"),
            ("bytes=7-", b"789", "7-9"),
            ("bytes=-3", b"789", "7-9"),
            ("bytes=-99", b"0123456789", "0-9"),
            ("bytes=8-99", b"89", "8-9"),
        ):
            part = await client.get(url, headers={"Range": asked})
            assert (part.status_code, part.content) == (206, content), asked
            assert part.headers["content-range"] == f"bytes {of}/10"
        for asked in ("bytes=10-", "bytes=-0"):
            beyond = await client.get(url, headers={"Range": asked})
            assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
        for asked in ("bytes=1-2,4-5", "lines=1-2", "bytes=4-2", "bytes=-"):
            whole = await client.get(url, headers={"Range": asked})
            assert (whole.status_code, whole.content) == (200, b"0123456789"), asked
        etag = (await client.get(url)).headers["etag"]
        for condition, status in ((etag, 206), ('"other"', 200)):
            answer = await client.get(url, headers={"Range": "bytes=1-1", "If-Range": condition})
            assert answer.status_code == status
        assert (await client.get(f"{url}?offset=1", headers={"Range": "bytes=0-1"})).status_code == 422


async def test_errors_before_the_first_byte_become_their_status(house: House) -> None:
    job = await ended(house)
    async with house.client() as client:
        for error, status in ((Gone("expired"), 410), (Unavailable("unreachable", 5), 503)):
            house.jobs.output_fails_with = error
            for headers in ({}, EVENTS, LINES, {"Accept": "text/plain"}):
                for follow in ("true", "false"):
                    answer = await client.get(
                        f"/v1/jobs/{job.job_id}/output?follow={follow}", headers=headers
                    )
                    assert answer.status_code == status
                    assert answer.json()["detail"] == error.detail
        assert answer.headers["retry-after"] == "5"


async def test_followers_get_what_comes_until_the_end(house: House) -> None:
    job = house.jobs.add()
    data = random.Random(7).randbytes(1 << 20)
    await house.jobs.write(job, data[:1000])

    async def follow() -> bytes:
        async with house.client() as client:
            answer = await client.get(f"/v1/jobs/{job.job_id}/output?follow=true")
            assert answer.headers["transfer-encoding"] == "chunked"
            return answer.content

    readers = [asyncio.create_task(follow()) for _ in range(5)]
    for at in range(1000, len(data), 99_991):
        await house.jobs.write(job, data[at : at + 99_991])
        await asyncio.sleep(0)
    await house.jobs.end(job)
    assert {hashlib.sha256(content).digest() for content in await asyncio.gather(*readers)} == {
        hashlib.sha256(data).digest()
    }
    assert house.jobs.readers == 0


async def test_events_carry_cursors_and_one_end(house: House) -> None:
    job = await ended(house, b"x" * 600_000, exit_code=3)
    async with house.client() as client:
        events = parsed((await client.get(f"/v1/jobs/{job.job_id}/output?follow=true", headers=EVENTS)).text)
        *outputs, end = events
        assert {e["event"] for e in outputs} == {"output"} and len(outputs) == 3
        assert b"".join(base64.b64decode(e["data"]["base64"]) for e in outputs) == b"x" * 600_000
        assert [(e["data"]["task"], e["data"]["stream"]) for e in outputs] == [(0, "merged")] * 3
        sha256 = hashlib.sha256(b"x" * 600_000).hexdigest()
        assert end["event"] == "end"
        assert end["data"] == {
            "state": "failed",
            "reason": "exited",
            "exit_code": 3,
            "tasks": [{"rank": 0, "bytes": 600_000, "sha256": sha256}],
        }
        resumed = await client.get(
            f"/v1/jobs/{job.job_id}/output?follow=true&offset=5",
            headers=EVENTS | {"Last-Event-ID": outputs[1]["id"]},
        )
        assert parsed(resumed.text) == events[2:]
        lines = (
            await client.get(f"/v1/jobs/{job.job_id}/output?follow=true", headers=LINES)
        ).text.splitlines()
        assert [json.loads(line) for line in lines] == [e["data"] for e in events]
        for bad in ("nonsense", "%%%", outputs[0]["id"][:-2], base64.b64encode(b"merged 0:-1").decode()):
            answer = await client.get(
                f"/v1/jobs/{job.job_id}/output", headers=EVENTS | {"Last-Event-ID": bad}
            )
            assert answer.status_code == 400, bad
        other = {"Last-Event-ID": outputs[0]["id"]}
        answer = await client.get(f"/v1/jobs/{job.job_id}/output?stream=stdout", headers=EVENTS | other)
        assert answer.status_code == 400
        second = await ended(house, b"y" * 600_000)
        answer = await client.get(f"/v1/jobs/{second.job_id}/output", headers=EVENTS | other)
        assert (answer.status_code, answer.json()["detail"]) == (
            400,
            "Last-Event-ID is of another job's output",
        )


@pytest.mark.parametrize(
    "accept", ["text/plain", "*/*, text/plain", "text/html, text/plain;q=0.9, */*;q=0.8"]
)
async def test_a_named_form_goes_before_a_wildcard(house: House, accept: str) -> None:
    job = await ended(house, b"x")
    async with house.client(Accept=accept) as client:
        answer = await client.get(f"/v1/jobs/{job.job_id}/output")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_several_tasks_come_in_one_stream_of_events_or_as_marked_lines(house: House) -> None:
    job = await ended(house, b"a\nb", tasks=3)
    url = f"/v1/jobs/{job.job_id}/output"
    async with house.client() as client:
        raw = await client.get(url)
        assert raw.status_code == 422 and raw.json()["errors"][0]["pointer"] == "task"
        assert (await client.get(f"{url}?task=2")).content == b"a\nb"
        events = parsed((await client.get(f"{url}?follow=true", headers=EVENTS)).text)
        assert sorted(e["data"]["task"] for e in events[:-1]) == [0, 1, 2]
        assert len(events[-1]["data"]["tasks"]) == 3
        text = (await client.get(url, headers={"Accept": "text/plain"})).text
        assert sorted(text.splitlines()) == ["[0] a", "[0] b", "[1] a", "[1] b", "[2] a", "[2] b"]


async def test_a_silent_event_stream_shows_that_it_lives(house: House) -> None:
    house.doors.heartbeat_seconds = 0.05
    house.doors.patience_seconds = 0.05
    job = house.jobs.add()
    async with (
        house.client() as client,
        client.stream("GET", f"/v1/jobs/{job.job_id}/output?follow=true", headers=EVENTS) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == ": alive"
        await house.jobs.end(job)
        rest = [line async for line in lines]
    assert "event: end" in rest


async def test_a_post_streams_its_own_output(house: House) -> None:
    async def run(accept: str) -> httpx2.Response:
        async with house.client(Accept=accept) as client:
            return await client.post("/v1/jobs", json={"command": "true"})

    for accept in ("text/event-stream", "text/plain", "application/x-ndjson"):
        house.jobs.jobs.clear()
        answering = asyncio.create_task(run(accept))
        await eventually(lambda: bool(house.jobs.jobs))
        (job,) = house.jobs.jobs.values()
        await house.jobs.write(job, b"hi\n")
        await house.jobs.end(job, 1)
        answer = await answering
        assert answer.status_code == 201
        assert answer.headers["location"] == f"/v1/jobs/{job.job_id}"
        if accept == "text/event-stream":
            first, output, end = parsed(answer.text)
            assert (first["event"], output["event"], end["event"]) == ("job", "output", "end")
            assert first["data"]["job_id"] == job.job_id and end["data"]["exit_code"] == 1
        elif accept == "text/plain":
            assert answer.content == b"hi\n"
        else:
            assert [next(iter(json.loads(line))) for line in answer.text.splitlines()] == [
                "job_id",
                "task",
                "state",
            ]


def request(job: Job, query: str, *headers: str, version: str = "1.1") -> bytes:
    lines = [
        f"GET /v1/jobs/{job.job_id}/output?{query} HTTP/{version}",
        "Host: localhost",
        f"Authorization: Bearer {TOKENS[Role.ADMIN]}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def everything(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """What came, and whether the connection was reset."""
    received = b""
    try:
        while piece := await reader.read(1 << 16):
            received += piece
    except ConnectionResetError:
        return received, True
    return received, False


@pytest.mark.parametrize("headers", [(), ("Accept: text/event-stream",), ("Accept: application/x-ndjson",)])
async def test_a_cut_is_a_reset_without_the_last_chunk(house: House, headers: tuple[str, ...]) -> None:
    job = house.jobs.add()
    await house.jobs.write(job, b"half of it")
    house.jobs.cut_at = 15
    reader, writer = await house.raw(request(job, "follow=true", *headers))
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"half" if not headers else b"base64")
        await house.jobs.write(job, b" and more")
        received, reset = await everything(reader)
    writer.close()
    assert b"0\r\n\r\n" not in received and b"end" not in received
    assert reset
    assert house.jobs.readers == 0


async def test_a_snapshot_that_breaks_off_is_a_reset_too(house: House) -> None:
    job = await ended(house, b"z" * 1_000_000)
    house.jobs.cut_at = 500_000
    reader, writer = await house.raw(request(job, ""))
    async with asyncio.timeout(10):
        received, reset = await everything(reader)
    writer.close()
    assert reset and len(received) < 600_000


async def test_a_whole_stream_has_its_last_chunk(house: House) -> None:
    job = await ended(house, b"all")
    reader, writer = await house.raw(request(job, "follow=true", "Connection: close"))
    async with asyncio.timeout(10):
        received, reset = await everything(reader)
    writer.close()
    assert received.endswith(b"3\r\nall\r\n0\r\n\r\n") and not reset


async def test_http_1_0_gets_snapshots_but_no_live_streams(house: House) -> None:
    job = await ended(house, b"all")
    for query, headers, status in (
        ("", (), b"200"),
        ("follow=true", (), b"505"),
        ("", ("Accept: text/event-stream",), b"505"),
    ):
        reader, writer = await house.raw(request(job, query, *headers, version="1.0"))
        async with asyncio.timeout(10):
            received, _ = await everything(reader)
        writer.close()
        assert received.split(b" ")[1] == status
        assert b"transfer-encoding" not in received


async def test_stopping_cuts_streams_and_answers_waits(house: House) -> None:
    job = house.jobs.add()
    await house.jobs.write(job, b"first")
    reader, writer = await house.raw(request(job, "follow=true"))
    await reader.readuntil(b"first")
    async with house.client() as client:
        waiting = asyncio.create_task(client.get(f"/v1/jobs/{job.job_id}?wait=60"))
        await eventually(lambda: len(house.doors.live) == 2)
        house.doors.live.cut()
        assert (await waiting).status_code == 503
        received, reset = await everything(reader)
        assert reset and b"0\r\n\r\n" not in received
        assert (await client.get(f"/v1/jobs/{job.job_id}")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
    writer.close()


async def test_a_reader_that_takes_nothing_is_dropped_and_others_go_on(house: House) -> None:
    house.doors.send_seconds = 1.5  # long enough for the reader to be seen
    job = house.jobs.add()
    await house.jobs.write(job, b"y" * (64 << 20))
    _, writer = await house.raw(request(job, "follow=true"))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await eventually(lambda: house.jobs.readers == 1)
    try:
        await eventually(lambda: house.jobs.readers == 0)
        await eventually(lambda: len(house.doors.live) == 0)
    finally:
        writer.transport.abort()


async def test_clients_that_vanish_leave_nothing(house: House) -> None:
    job = house.jobs.add()
    await house.jobs.write(job, b"x" * 1000)
    chance = random.Random(3)
    before = len(asyncio.all_tasks())
    for n in range(60):
        query = ("follow=true", "follow=true&tail=3", "wait=30")[n % 3]
        headers = (("Accept: text/event-stream",), ())[n % 2]
        text = request(job, query, *headers)
        if query.startswith("wait"):
            text = text.replace(b"/output?", b"?")
        reader, writer = await house.raw(text)
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if n % 3 != 2 and chance.random() < 0.3:
            await reader.read(10)
        writer.transport.abort()
    await eventually(lambda: house.jobs.readers == len(house.doors.live) == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= before)
