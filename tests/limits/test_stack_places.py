"""The whole stack where engines put a worker: a container, a privileged pod, a container that lacks a controller."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Service, eventually
from tests.limits.containers import container, container_group, pod_group
from tests.limits.placed import PlacedCluster, first_process, held, leaf_of

MIB = 1 << 20
ASKED = {"cpu": 0.5, "memory": "64MiB", "pids": 32, "io": {"write_bps": "2MiB"}}
HOG = "x = bytearray()\nwhile True: x += b'x' * (1 << 20)"
KINDS = ("container", "pod", "container without io")


@dataclass
class Place:
    group: Path
    service: Service
    worker_id: str
    ok: set[str]


@dataclass
class Stack:
    cluster: PlacedCluster
    places: dict[str, Place]

    def run(self, kind: str, **spec: Any) -> dict[str, Any]:
        return self.cluster.run({"worker_id": self.places[kind].worker_id, **spec}, wait=60)

    def running(self, kind: str, **spec: Any) -> dict[str, Any]:
        job = self.cluster.post({"worker_id": self.places[kind].worker_id, **spec})
        return self.cluster.until(job["job_id"], "running")


@pytest.fixture(scope="module")
def stack(cluster: PlacedCluster) -> Iterator[Stack]:
    """Three more workers of the cluster; at the end of this module they are gone."""
    with ExitStack() as undo:
        group, pods, half = (undo.enter_context(container_group(kind)) for kind in ("one", "pods", "half"))
        (half / "cgroup.subtree_control").write_text("+cpu +memory +pids")
        groups = {"container": group, "pod": pod_group(pods), "container without io": half / "ctr"}
        started = {
            kind: cluster.place(container(place, "host" if kind == "pod" else "private"))
            for kind, place in groups.items()
        }
        undo.callback(cluster.take_away, started.values())
        cluster.wait_ready(len(cluster.workers))
        every = {"cpu", "memory", "io", "pids"}
        ok = {kind: every - ({"io"} if "io" in kind else set()) for kind in KINDS}
        yield Stack(
            cluster,
            {
                kind: Place(groups[kind], service, cluster.worker_of(service), ok[kind])
                for kind, service in started.items()
            },
        )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def procs(group: Path) -> list[str]:
    return (group / "cgroup.procs").read_text().split()


def test_the_workers_own_processes_are_in_leaves_and_its_root_is_empty(stack: Stack, kind: str) -> None:
    place = stack.places[kind]
    assert procs(place.group) == [] == procs(place.group / "jobs")
    assert str(first_process(place.service)) in procs(place.group / "init")
    assert len(procs(place.group / "init")) == 2  # launcher and server
    assert len(procs(place.group / "supervisors")) == 1
    assert set((place.group / "jobs" / "cgroup.subtree_control").read_text().split()) == place.ok


def test_what_the_worker_and_the_job_say_is_what_the_files_say_while_it_runs(stack: Stack, kind: str) -> None:
    place = stack.places[kind]
    worker = next(w for w in stack.cluster.list_workers() if w["worker_id"] == place.worker_id)
    assert {name for name, said in worker["enforced"].items() if said["ok"]} == place.ok
    asked = {name: value for name, value in ASKED.items() if name in place.ok}
    job = stack.running(kind, command="sleep 600", limits=asked)
    leaf = leaf_of(job["job_id"])
    assert leaf.is_relative_to(place.group)
    assert job["limits"]["effective"] == held(leaf)
    assert held(leaf)["memory"] == 64 * MIB and held(leaf)["cpu"] == 0.5 and held(leaf)["pids"] == 32
    assert held(leaf)["io"]["write_bps"] == (2 * MIB if "io" in place.ok else None)
    assert job["limits"]["enforced"] == worker["enforced"]
    assert len(procs(leaf)) == 1
    assert stack.cluster.stop_job(job["job_id"])["state"] == "stopped"
    assert not leaf.exists() and list((place.group / "jobs").glob("*/")) == []


def test_a_limit_that_the_place_cannot_enforce_is_refused_where_limits_are_required(stack: Stack) -> None:
    job = stack.run("container without io", command="true", limits=ASKED)
    assert (job["state"], job["reason"]) == ("failed", "start_failed"), job
    assert "limits.io" in job["error_text"] and "not delegated" in job["error_text"]
    assert list((stack.places["container without io"].group / "jobs").glob("*/")) == []


def test_limits_bite(stack: Stack, kind: str) -> None:
    hog = {"command": "/usr/bin/python3", "path": "hog.py", "files": {"hog.py": HOG}}
    job = stack.run(kind, **hog, limits={"memory": "64MiB"})
    assert (job["reason"], job["signal"], job["usage"]["oom_kills"]) == ("oom_killed", "KILL", 1), job
    assert 60 * MIB <= job["usage"]["memory_peak_bytes"] <= 64 * MIB
    bomb = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 600 & done"
    job = stack.run(kind, command="sh", args=["-c", bomb], limits={"pids": 8})
    assert job["reason"] == "exited" and job["exit_code"] == 2 and job["usage"]["pids_peak"] in (8, None), job
    assert b"fork" in stack.cluster.output(job["job_id"])


def test_after_sigterm_the_worker_exits_0_and_no_group_and_no_process_is_left(
    stack: Stack, kind: str
) -> None:
    place = stack.places[kind]
    job = stack.running(kind, command="sleep 600", limits={"memory": "64MiB"})
    os.kill(first_process(place.service), signal.SIGTERM)
    assert place.service.wait() == 0
    ended = stack.cluster.job(job["job_id"])
    assert (ended["state"], ended["reason"]) == ("stopped", "worker_shutdown")
    assert place.group.exists() and list(place.group.glob("*/")) == []
    assert procs(place.group) == []
    gone = [w["worker_id"] for w in stack.cluster.list_workers() if w["state"] == "ready"]
    eventually(lambda: place.worker_id not in gone, what="the worker gone")
