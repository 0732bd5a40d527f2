"""What a job asks for, between the limits of the cluster and those of its workers: from the POST to the worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobcluster_common import tls  # noqa: F401  (before grpc)

# isort: split
import grpc
import pytest
from jobcluster.v1 import worker_pb2, worker_pb2_grpc
from jobcluster_common.identity import Identity, Kind

from tests.integration.cluster import Cluster, eventually
from tests.integration.test_trust import leaf_of, stub_channel

MIB = 1 << 20
NONE: dict[str, Any] = dict.fromkeys(("read_bps", "write_bps", "read_iops", "write_iops"))


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with limits of its own, and two workers: the first gives a task less than the second."""
    cluster = Cluster(
        tmp_path_factory.mktemp("bounds"),
        controller_settings={
            "limits.default": {"memory": "48MiB"},
            "limits.max": {"memory": "1GiB", "pids": 300},
        },
    )
    try:
        cluster.controller.start()
        cluster.add_worker({"limits.default": {"cpu": 0.5}, "limits.max": {"memory": "64MiB", "cpu": 0.75}})
        cluster.add_worker({"limits.max": {"memory": "128MiB"}, "limits.max.io": {"write_bps": "1MiB"}})
        cluster.wait_ready(2)
        yield cluster
    finally:
        cluster.close()


def refused(cluster: Cluster, limits: dict[str, Any], **spec: Any) -> list[tuple[str, str]]:
    """The faults of a POST that is refused; nothing of it is stored."""
    with cluster.client() as client:
        answer = client.post(
            "/v1/jobs", json={"command": "true", "name": "refused", "limits": limits, **spec}
        )
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/v1/jobs", params={"name": "refused"}).json()["jobs"] == []
    return [(fault["pointer"], fault["detail"]) for fault in answer.json()["errors"]]


def test_more_than_the_cluster_a_worker_or_any_worker_allows_is_422_with_what_would_do(
    bounded: Cluster,
) -> None:
    small = bounded.worker_of(bounded.workers[0])
    assert refused(bounded, {"memory": "2GiB", "pids": 301}) == [
        ("/limits/memory", "2GiB is more than this cluster allows: 1GiB; ask for 1GiB or less"),
        ("/limits/pids", "301 is more than this cluster allows: 300; ask for 300 or less"),
    ]
    assert refused(bounded, {"memory": "128MiB"}, worker_id=small) == [
        (
            "/limits/memory",
            f"128MiB is more than worker {small} gives a task: 64MiB; ask for 64MiB or less, or choose another worker",
        )
    ]
    assert refused(bounded, {"memory": "129MiB", "io": {"write_bps": 7}}) == [
        (
            "/limits/memory",
            "129MiB is more than any known worker gives a task: 128MiB; ask for 128MiB or less",
        )
    ]
    assert refused(bounded, {"memory": 4096})[0][0] == "/limits/memory"


def test_workers_tell_their_limits(bounded: Cluster) -> None:
    found = {worker["worker_id"]: worker["limits"] for worker in bounded.list_workers()}
    small, big = (found[bounded.worker_of(service)] for service in bounded.workers)
    nothing = {"cpu": None, "memory": None, "pids": None, "io": NONE}
    assert small == {
        "default": {**nothing, "cpu": 0.5},
        "max": {**nothing, "cpu": 0.75, "memory": 64 * MIB},
        "worker": nothing,
    }
    assert big["max"] == {**nothing, "memory": 128 * MIB, "io": {**NONE, "write_bps": MIB}}


def test_a_job_goes_where_its_limits_are_allowed_and_waits_for_that_worker_alone(bounded: Cluster) -> None:
    small, big = (bounded.worker_of(service) for service in bounded.workers)
    asked = {"command": "true", "limits": {"memory": "100MiB"}}
    for _ in range(3):
        job = bounded.run(asked)
        assert (job["worker_id"], job["state"]) == (big, "succeeded"), job
    assert (
        bounded.run({"command": "true", "worker_id": small, "limits": {"memory": "64MiB"}})["error"] is False
    )
    assert bounded.workers[1].stop() == 0
    bounded.workers[1].start()  # its limits are told again when it is back
    eventually(
        lambda: (
            next((w for w in bounded.list_workers() if w["worker_id"] == big), {}).get("state") == "ready"
        ),
        what="the worker back",
    )
    assert bounded.run(asked)["worker_id"] == big


def test_nothing_asked_is_the_default_in_the_spec_and_what_was_asked_stays_apart(bounded: Cluster) -> None:
    job = bounded.run({"command": "true", "limits": {"cpu": 0.1}})
    assert job["state"] == "succeeded", job
    assert job["spec"]["limits"] == {
        "cpu": 0.1,
        "memory": 48 * MIB,
        "pids": 300,
        "io": NONE,
        "oom": "group",
    }
    assert job["limits"]["requested"] == {
        "cpu": 0.1,
        "memory": None,
        "pids": None,
        "io": NONE,
        "oom": "group",
    }


def test_the_worker_itself_is_the_last_door_and_says_it_in_the_same_words(bounded: Cluster) -> None:
    small = bounded.worker_of(bounded.workers[0])
    address = next(w["address"] for w in bounded.list_workers() if w["worker_id"] == small)
    peer, leaf = Identity(Kind.WORKER, small), leaf_of(bounded, "controller")
    with stub_channel(bounded, address, peer, leaf) as channel:
        worker = worker_pb2_grpc.WorkerStub(channel)
        start = worker_pb2.StartJobRequest(command="true")
        start.limits_default.memory_bytes = 1 << 40  # nobody asked for it: it keeps nothing from starting
        assert worker.StartJob(start, timeout=20).job_id
        start.limits.memory_bytes = 128 * MIB
        with pytest.raises(grpc.RpcError) as refused:
            worker.StartJob(start, timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == (
        "/limits/memory: 128MiB is more than this worker allows: 64MiB; ask for 64MiB or less"
    )


def test_a_default_above_the_most_stops_either_service_at_its_start(tmp_path: Path) -> None:
    wrong = {"limits.default": {"memory": "128MiB"}, "limits.max": {"memory": "64MiB"}}
    cluster = Cluster(tmp_path, controller_settings=wrong)
    cluster.controller.start()
    for service in (cluster.controller, cluster.add_worker(wrong)):
        assert service.wait() == 2
        config = tmp_path / f"{service.name}.toml"
        assert service.log.read_text() == (
            f"{config}: limits.max: memory = 64MiB is less than limits.default.memory = 128MiB;"
            " raise it, or lower the default\n"
        )
