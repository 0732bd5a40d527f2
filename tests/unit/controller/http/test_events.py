from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from jobcluster_controller.auth.roles import Role
from jobcluster_controller.events import Events

from tests.unit.controller.http.house import House


async def events_of(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    assert answer.status_code == 200, await answer.aread()
    assert answer.headers["content-type"].startswith("text/event-stream")
    fields: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = json.loads(value) if name == "data" else value
        elif fields:
            yield fields
            fields = {}


async def until(house: House, kind: str, last_id: str | None = None, count: int = 1) -> list[dict[str, Any]]:
    """What comes, to the ``count``-th event of that kind."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    found: list[dict[str, Any]] = []
    async with (
        asyncio.timeout(20),
        house.client(Role.VIEWER) as client,
        client.stream("GET", "/v1/events", headers=headers) as answer,
    ):
        async for event in events_of(answer):
            found.append(event)
            count -= event["event"] == kind
            if count == 0:
                break
    return found


async def test_it_begins_with_what_is_there_and_only_then_has_an_id(house: House) -> None:
    job = house.jobs.add()
    ended = await house.jobs.end(house.jobs.add())
    found = await until(house, "current")
    assert [e["event"] for e in found] == ["worker", "job", "current"]
    assert [("id" in e) for e in found] == [False, False, True]
    assert found[0]["data"]["worker_id"] == "w1"
    assert (found[1]["data"]["job_id"], found[1]["data"]["done"]) == (job.job_id, False)
    assert ended.job_id not in json.dumps(found)


async def test_it_goes_on_after_the_last_event_that_was_read(house: House) -> None:
    began = (await until(house, "current"))[-1]["id"]
    first = house.jobs.add()
    house.doors.events.job_committed(None, first)
    house.doors.events.job_committed(first, await house.jobs.end(first))
    found = await until(house, "job", began, 2)
    assert [e["event"] for e in found] == ["job", "job"]
    assert [e["data"]["state"] for e in found] == ["running", "succeeded"]
    again = await until(house, "job", found[0]["id"])
    assert again == found[1:]


async def test_an_id_that_is_forgotten_or_of_another_start_is_told_so_and_the_present_follows(
    house: House,
) -> None:
    house.doors.events = Events(remembered=2)
    job = house.jobs.add()
    for _ in range(5):
        house.doors.events.job_committed(None, job)
    for last_id in (f"{house.doors.events.start}-1", f"{house.doors.events.start}-99", f"{'0' * 16}-3"):
        found = await until(house, "current", last_id)
        assert [e["event"] for e in found] == ["reset", "worker", "job", "current"]
        assert found[-1]["id"] == f"{house.doors.events.start}-5"
    assert [e["event"] for e in await until(house, "job", f"{house.doors.events.start}-3", 2)] == ["job"] * 2


async def test_a_follower_that_fell_behind_begins_again_with_the_present(house: House) -> None:
    house.doors.events = events = Events(remembered=2)
    async with house.client() as client, client.stream("GET", "/v1/events") as answer:
        stream = events_of(answer)
        while (await anext(stream))["event"] != "current":
            pass
        for _ in range(10):  # in one turn of the loop: it cannot have read between
            events.job_committed(None, house.jobs.add())
        assert (await anext(stream))["event"] == "reset"


async def test_an_id_that_is_none_of_ours_is_refused(house: House) -> None:
    async with house.client() as client:
        for value in ("x", "1", f"{house.doors.events.start}-x"):
            answer = await client.get("/v1/events", headers={"Last-Event-ID": value})
            assert answer.status_code == 400


async def test_silence_shows_that_it_lives(house: House) -> None:
    house.doors.heartbeat_seconds = 0.05
    async with house.client() as client, client.stream("GET", "/v1/events") as answer:
        async for line in answer.aiter_lines():
            if line == ": alive":
                break
