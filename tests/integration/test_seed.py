"""A client made from the seed's own proto text works against both services."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from grpc_tools import protoc
from jobcluster_common import certificates
from jobcluster_common.identity import CONTROLLER, Identity, Kind

from tests.integration.cluster import Cluster
from tests.integration.test_trust import leaf_of, stub_channel, worker_address

SEED = """
syntax = "proto3";
service Worker {
  rpc StartJob (StartJobRequest) returns (StartJobResponse);
  rpc StopJob (StopJobRequest) returns (StopJobResponse);
  rpc QueryJob (QueryJobRequest) returns (QueryJobResponse);
  rpc StreamJob (StreamJobRequest) returns (stream StreamJobResponse);
}
message StartJobRequest { string command = 1; string path = 2; }
message StartJobResponse { string jobID = 1; }
message StopJobRequest { string jobID = 1; }
message StopJobResponse {}
message QueryJobRequest { string jobID = 1; }
message QueryJobResponse { bool done = 1; bool error = 2; string errorText = 3; }
message StreamJobRequest { string path = 1; }
message StreamJobResponse { string output = 1; }
service controller {
  rpc RegisterWorker (RegisterWorkerRequest) returns (RegisterWorkerResponse);
  rpc DeregisterWorker (DeregisterWorkerRequest) returns (DeregisterWorkerResponse);
}
message RegisterWorkerRequest { string address = 1; }
message RegisterWorkerResponse { bool success = 1; string workerID = 2; }
message DeregisterWorkerRequest { string workerID = 1; }
message DeregisterWorkerResponse { bool success = 1; }
"""


@pytest.fixture
def seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    (tmp_path / "seed.proto").write_text(SEED)
    status = protoc.main(
        ["protoc", f"-I{tmp_path}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", "seed.proto"]
    )
    assert status == 0
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("seed_pb2"), importlib.import_module("seed_pb2_grpc")
    for name in ("seed_pb2", "seed_pb2_grpc"):
        sys.modules.pop(name)


def test_the_seeds_worker_stub_starts_queries_streams_and_stops(
    cluster: Cluster, seed: tuple[Any, Any]
) -> None:
    messages, stubs = seed
    peer = Identity(Kind.WORKER, cluster.list_workers()[0]["worker_id"])
    with stub_channel(cluster, worker_address(cluster), peer, leaf_of(cluster, "controller")) as channel:
        worker = stubs.WorkerStub(channel)
        job_id = worker.StartJob(
            messages.StartJobRequest(command="bash", path="worker/scripts/run.sh"), timeout=10
        ).jobID
        assert job_id
        output = "".join(
            m.output for m in worker.StreamJob(messages.StreamJobRequest(path=job_id), timeout=20)
        )
        assert output
        answer = worker.QueryJob(messages.QueryJobRequest(jobID=job_id), timeout=10)
        assert (answer.done, answer.error, answer.errorText) == (True, False, "")
        worker.StopJob(messages.StopJobRequest(jobID=job_id), timeout=10)
        missing = worker.StartJob(
            messages.StartJobRequest(command="bash", path="not/there.sh"), timeout=10
        ).jobID
        list(worker.StreamJob(messages.StreamJobRequest(path=missing), timeout=20))
        failed = worker.QueryJob(messages.QueryJobRequest(jobID=missing), timeout=10)
        assert failed.done and failed.error and "not/there.sh" in failed.errorText


def test_the_seeds_controller_stub_registers_and_deregisters(cluster: Cluster, seed: tuple[Any, Any]) -> None:
    messages, stubs = seed
    key = certificates.make_key()
    csr = certificates.make_csr(key)
    with cluster.client(role=None) as client:
        enrolled = client.post(
            "/v1/enroll",
            json={"csr": csr.decode()},
            headers={"Authorization": f"Bearer {cluster.token('join')}"},
        ).json()
    leaf = enrolled["certificate"].encode(), certificates.key_pem(key)
    with stub_channel(cluster, f"127.0.0.1:{cluster.grpc}", CONTROLLER, leaf) as channel:
        controller = stubs.controllerStub(channel)
        answer = controller.RegisterWorker(messages.RegisterWorkerRequest(address="127.0.0.1:9"), timeout=10)
        assert answer.success and answer.workerID == enrolled["worker_id"]
        assert enrolled["worker_id"] in {w["worker_id"] for w in cluster.list_workers()}
        gone = controller.DeregisterWorker(
            messages.DeregisterWorkerRequest(workerID=answer.workerID), timeout=10
        )
        assert gone.success
        assert enrolled["worker_id"] not in {w["worker_id"] for w in cluster.list_workers()}
