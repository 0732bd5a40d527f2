"""A task's limits are set at its start. No route and no RPC changes them afterwards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from jobcluster.v1 import common_pb2, controller_pb2, worker_pb2, worker_pb2_grpc
from jobcluster_common.identity import Identity, Kind

from tests.integration.test_trust import leaf_of as certificate_of
from tests.integration.test_trust import stub_channel
from tests.limits.placed import PlacedCluster, held, leaf_of

MORE = {"cpu": 4, "memory": "1GiB", "pids": 1000, "io": {"write_bps": "1GiB"}, "oom": "process"}
LIMITS = {"cpu": 0.5, "memory": "64MiB", "pids": 32, "io": {"write_bps": "2MiB"}, "oom": "group"}
BODIES: tuple[dict[str, Any], ...] = ({"limits": MORE}, MORE, {"command": "true", "limits": MORE})


def files_of(leaf: Path) -> dict[str, str]:
    """Every file of the leaf that is a setting, not a counter."""
    names = ("cpu.max", "cpu.weight", "memory.*", "pids.max", "io.max", "io.weight", "cgroup.type")
    settings = (path for name in names for path in leaf.glob(name) if path.stat().st_mode & 0o200)
    return {
        path.name: path.read_text() for path in settings if path.name not in ("memory.reclaim", "memory.peak")
    }


def ways_in(cluster: PlacedCluster, job_id: str, worker_id: str) -> Iterator[tuple[str, str]]:
    """Every route that names a job or a worker, by every method; not those that end it."""
    with cluster.client() as client:
        paths = client.get("/v1/openapi.json").json()["paths"]
    for path in paths:
        if "{job_id}" in path or "{worker_id}" in path:
            filled = path.replace("{job_id}", job_id).replace("{worker_id}", worker_id)
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                if method.lower() not in paths[path] or path.endswith("/stop"):
                    yield method, filled


def takes_limits(message: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    if message.full_name == common_pb2.Limits.DESCRIPTOR.full_name:
        return True
    inner = [field.message_type for field in message.fields if field.message_type]
    return any(takes_limits(m, seen | {message.full_name}) for m in inner if m.full_name not in seen)


def test_no_route_changes_a_limit_and_no_rpc_but_a_start_takes_one(cluster: PlacedCluster) -> None:
    worker_id = cluster.worker_of(cluster.workers[0])
    job = cluster.post({"command": "sleep 600", "limits": LIMITS})
    job_id = job["job_id"]
    told = cluster.until(job_id, "running")["limits"]
    leaf = leaf_of(job_id)
    before = files_of(leaf)
    assert len(before) >= 8 and told["effective"] == held(leaf)
    tried = list(ways_in(cluster, job_id, worker_id))
    assert len(tried) >= 20
    with cluster.client() as client:
        for method, path in tried:
            for body in BODIES:
                answer = client.request(method, path, json=body)
                assert 400 <= answer.status_code < 500, (method, path, answer.text)
    assert files_of(leaf) == before
    the_start_again_changes_nothing(cluster, job_id, worker_id)
    assert files_of(leaf) == before
    assert cluster.job(job_id)["limits"] == told
    assert cluster.stop_job(job_id, signal="KILL")["limits"] == told


def the_start_again_changes_nothing(cluster: PlacedCluster, job_id: str, worker_id: str) -> None:
    services: list[ServiceDescriptor] = [
        *controller_pb2.DESCRIPTOR.services_by_name.values(),
        *worker_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    taking = {m.name for service in services for m in service.methods if takes_limits(m.input_type)}
    assert taking - {"RegisterWorker", "Heartbeat"} == {"StartJob", "StartJobs"}
    more = common_pb2.Limits(cpu=4, memory_bytes=1 << 30, pids=1000)
    start = worker_pb2.StartJobRequest(
        command_words=["sleep", "600"], job_id=job_id, attempt=1, task_count=1, limits=more
    )
    address = next(w["address"] for w in cluster.list_workers() if w["worker_id"] == worker_id)
    peer = Identity(Kind.WORKER, worker_id)
    with stub_channel(cluster, str(address), peer, certificate_of(cluster, "controller")) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        assert stub.StartJob(start, timeout=20).job_id == job_id
        stub.StartJobs(worker_pb2.StartJobsRequest(starts=[start]), timeout=20)
