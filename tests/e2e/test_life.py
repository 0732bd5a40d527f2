"""Kill, restart and cut off each service; jobs must not notice, or be told apart honestly."""

from __future__ import annotations

import httpx2
import pytest

from tests.e2e import counting
from tests.e2e.api import Api, wait_until
from tests.e2e.stack import Stack, docker, inspect


def state_of(api: Api, worker_id: str) -> str:
    return str(api.call("GET", f"/v1/workers/{worker_id}", 200)["state"])


def test_a_killed_container_loses_its_jobs_within_the_lease(stack: Stack, api: Api, three: set[str]) -> None:
    worker_id = min(three)
    container = stack.container_of(worker_id, api)
    job = counting.start(api, 600, worker_id=worker_id)
    docker("kill", container)
    wait_until(lambda: state_of(api, worker_id), lambda s: s == "unreachable", 15, "unreachable")
    ended = api.ended(job["job_id"], 40)
    assert (ended["state"], ended["reason"]) == ("lost", "worker_lost"), ended
    assert state_of(api, worker_id) == "lost"
    docker("start", container)
    assert api.wait_ready(3) == three
    # A terminal state never changes, and nothing of the old job came back with its worker.
    assert api.job(job["job_id"])["state"] == "lost"
    assert "-lt 600" not in stack.processes(container)
    assert api.run(worker_id=worker_id, command="true")["state"] == "succeeded"


def test_a_worker_killed_and_back_within_the_lease_tells_its_jobs_lost(
    stack: Stack, api: Api, three: set[str]
) -> None:
    worker_id = min(three)
    container = stack.container_of(worker_id, api)
    job = counting.start(api, 600, worker_id=worker_id)
    docker("kill", container)
    docker("start", container)
    ended = api.ended(job["job_id"], 30)
    assert (ended["state"], ended["reason"]) == ("lost", "worker_lost"), ended
    assert api.wait_ready(3) == three


def test_a_restarted_worker_ends_its_jobs_and_keeps_its_id(stack: Stack, api: Api, three: set[str]) -> None:
    worker_id = max(three)
    container = stack.container_of(worker_id, api)
    job = counting.start(api, 600, worker_id=worker_id)
    docker("restart", "-t", "45", container, seconds=90)
    ended = api.ended(job["job_id"])
    assert (ended["state"], ended["reason"]) == ("stopped", "worker_shutdown"), ended
    assert api.wait_ready(3) == three


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_the_controller_comes_back_and_no_job_noticed(
    stack: Stack, api: Api, three: set[str], how: str
) -> None:
    (container,) = stack.containers("controller")
    jobs = [counting.start(api, 80) for _ in range(6)]
    accepted = [api.start(command="echo after")["job_id"] for _ in range(5)]
    if how == "kill":
        docker("kill", container)
        docker("start", container)
    else:
        docker("restart", container, seconds=90)

    def answers() -> bool:
        try:
            return api.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(answers, bool, 30, "the controller answers")
    assert api.wait_ready(3) == three
    for job_id in accepted:
        assert api.ended(job_id)["state"] == "succeeded"
        assert api.output(job_id) == b"after\n"
    for job in jobs:
        counting.check_whole(api, job["job_id"], 80)


def test_the_server_of_a_worker_dies_and_no_job_noticed(stack: Stack, api: Api, three: set[str]) -> None:
    worker_id = min(three)
    container = stack.container_of(worker_id, api)
    jobs = [counting.start(api, 60, worker_id=worker_id) for _ in range(4)]
    docker("exec", container, "python", "-c", KILL_SERVER)
    for job in jobs:
        counting.check_whole(api, job["job_id"], 60)
    assert api.wait_ready(3) == three
    assert inspect(container)["RestartCount"] == 0


KILL_SERVER = """
import os, pathlib, signal
found = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/cmdline")
         if b"jobcluster_worker.server" in p.read_bytes().split(bytes(1))]
assert len(found) == 1, found
os.kill(found[0], signal.SIGKILL)
"""


def test_a_short_disconnect_of_the_network_costs_nothing(stack: Stack, api: Api, three: set[str]) -> None:
    worker_id = min(three)
    container = stack.container_of(worker_id, api)
    job = counting.start(api, 150, worker_id=worker_id)
    network = f"{stack.project}_cluster"
    docker("network", "disconnect", network, container)
    wait_until(lambda: state_of(api, worker_id), lambda s: s == "unreachable", 15, "unreachable")
    assert api.job(job["job_id"])["state"] == "running"
    docker("network", "connect", network, container)
    wait_until(lambda: state_of(api, worker_id), lambda s: s == "ready", 30, "ready again")
    counting.check_whole(api, job["job_id"], 150)


def test_a_long_disconnect_is_a_loss_and_the_worker_comes_back(
    stack: Stack, api: Api, three: set[str]
) -> None:
    worker_id = max(three)
    container = stack.container_of(worker_id, api)
    job = counting.start(api, 900, worker_id=worker_id)
    network = f"{stack.project}_cluster"
    docker("network", "disconnect", network, container)
    ended = api.ended(job["job_id"], 60)
    assert (ended["state"], ended["reason"]) == ("lost", "worker_lost"), ended
    docker("network", "connect", network, container)
    wait_until(lambda: state_of(api, worker_id), lambda s: s == "ready", 30, "ready again")
    # No process outlives its job's terminal state.
    wait_until(
        lambda: stack.processes(container), lambda p: "-lt 900" not in p, 20, "the lost job's processes gone"
    )
    assert api.job(job["job_id"])["state"] == "lost"
