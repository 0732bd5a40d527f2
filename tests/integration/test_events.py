"""What happens in the cluster, as one stream that survives its reader's and the controller's restarts."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.integration.cluster import Cluster

Event = dict[str, Any]


@contextmanager
def events(cluster: Cluster, last_id: str | None = None) -> Iterator[Iterator[Event]]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with (
        cluster.client("viewer", timeout=20) as client,
        client.stream("GET", "/v1/events", headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield parsed(answer.iter_lines())


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    fields: Event = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name and line:
            fields[name] = json.loads(value) if name == "data" else value
        elif fields:
            yield fields
            fields = {}


def until(stream: Iterator[Event], is_it: Callable[[Event], bool]) -> list[Event]:
    found = []
    for event in stream:
        found.append(event)
        if is_it(event):
            return found
    raise AssertionError(f"the stream ended before: {found}")


def is_end_of(job_id: str) -> Callable[[Event], bool]:
    return lambda e: e["event"] == "job" and e["data"]["job_id"] == job_id and e["data"]["done"]


def states_of(found: list[Event], job_id: str) -> list[str]:
    return [e["data"]["state"] for e in found if e["event"] == "job" and e["data"]["job_id"] == job_id]


def test_a_jobs_life_is_told_in_order_and_can_be_read_again_from_any_event(cluster: Cluster) -> None:
    with events(cluster) as stream:
        present = until(stream, lambda e: e["event"] == "current")
        assert [e["data"]["state"] for e in present if e["event"] == "worker"] == ["ready", "ready"]
        job_id = cluster.run({"command": "true", "name": "told", "labels": {"a": "b"}})["job_id"]
        found = until(stream, is_end_of(job_id))
    told = states_of(found, job_id)
    assert told[0] in ("queued", "starting") and told[-1] == "succeeded"
    assert told == sorted(told, key=["queued", "starting", "running", "succeeded"].index)
    last = found[-1]["data"]
    assert (last["name"], last["labels"], last["reason"], last["exit_code"]) == (
        "told",
        {"a": "b"},
        "exited",
        0,
    )
    with events(cluster, present[-1]["id"]) as stream:
        assert until(stream, is_end_of(job_id)) == found
    with events(cluster, found[0]["id"]) as stream:
        assert until(stream, is_end_of(job_id)) == found[1:]


def test_another_start_of_the_controller_is_told_and_the_present_follows(own_cluster: Cluster) -> None:
    running = own_cluster.post({"command": "sleep 600"})["job_id"]
    own_cluster.until(running, "running")
    with events(own_cluster) as stream:
        seen = until(stream, lambda e: e["event"] == "current")[-1]["id"]
    own_cluster.controller.signal(signal.SIGKILL)
    own_cluster.controller.wait()
    own_cluster.controller.start()
    own_cluster.wait_ready(1)
    with events(own_cluster, seen) as stream:
        found = until(stream, lambda e: e["event"] == "current")
        assert found[0]["event"] == "reset"
        assert states_of(found, running)
        own_cluster.stop_job(running)
        assert states_of(until(stream, is_end_of(running)), running)[-1] == "stopped"


def test_a_worker_that_leaves_and_comes_is_told(own_cluster: Cluster) -> None:
    first = own_cluster.worker_of(own_cluster.workers[0])

    def told(event: Event, state: str) -> bool:
        # Of the first worker there may be news too: its registration is a moment ago.
        data = event["data"]
        return bool(event["event"] == "worker" and data["state"] == state and data["worker_id"] != first)

    with events(own_cluster) as stream:
        until(stream, lambda e: e["event"] == "current")
        own_cluster.add_worker()
        came = until(stream, lambda e: told(e, "ready"))[-1]
        own_cluster.workers[1].stop()
        gone = until(stream, lambda e: told(e, "gone"))[-1]
    assert (
        gone["data"]["worker_id"]
        == came["data"]["worker_id"]
        == own_cluster.worker_of(own_cluster.workers[1])
    )
