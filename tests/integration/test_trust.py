"""Who may speak to whom: certificates between services, tokens for people."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from jobcluster.v1 import controller_pb2, controller_pb2_grpc, worker_pb2, worker_pb2_grpc
from jobcluster_common import certificates
from jobcluster_common.identity import CONTROLLER, Identity, Kind

from tests.integration.cluster import Cluster, Service, eventually


def worker_address(cluster: Cluster) -> str:
    return str(cluster.list_workers()[0]["address"])


def state_files(cluster: Cluster, worker: Service) -> tuple[bytes, bytes]:
    """The enrolled worker's own certificate and key."""
    state = cluster.directory / worker.name / "state"
    return next(state.rglob("*.crt")).read_bytes(), next(state.rglob("*.key")).read_bytes()


def stub_channel(
    cluster: Cluster, address: str, peer: Identity, leaf: tuple[bytes, bytes] | None
) -> grpc.Channel:
    ca = (cluster.certs / "ca.crt").read_bytes()
    certificate, key = leaf if leaf else (None, None)
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", peer.dns_name)])


def leaf_of(cluster: Cluster, name: str) -> tuple[bytes, bytes]:
    return (cluster.certs / f"{name}.crt").read_bytes(), (cluster.certs / f"{name}.key").read_bytes()


def query(channel: grpc.Channel) -> grpc.StatusCode:
    try:
        worker_pb2_grpc.WorkerStub(channel).QueryJob(worker_pb2.QueryJobRequest(job_id="none"), timeout=5)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    finally:
        channel.close()
    return grpc.StatusCode.OK


def other_ca_leaf(identity: Identity) -> tuple[bytes, bytes]:
    leaf = certificates.make_leaf(certificates.make_ca(), identity)
    return leaf.crt_pem, leaf.key_pem


def test_a_worker_answers_the_controller_and_nobody_else(cluster: Cluster) -> None:
    address, worker_id = worker_address(cluster), cluster.list_workers()[0]["worker_id"]
    peer = Identity(Kind.WORKER, worker_id)
    controller = leaf_of(cluster, "controller")
    assert query(stub_channel(cluster, address, peer, controller)) is grpc.StatusCode.NOT_FOUND
    assert query(stub_channel(cluster, address, peer, None)) is grpc.StatusCode.UNAVAILABLE
    assert (
        query(stub_channel(cluster, address, peer, other_ca_leaf(CONTROLLER))) is grpc.StatusCode.UNAVAILABLE
    )
    assert query(stub_channel(cluster, address, peer, leaf_of(cluster, "user-admin"))) in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
    )
    own = state_files(cluster, cluster.workers[0])
    assert query(stub_channel(cluster, address, peer, own)) is grpc.StatusCode.PERMISSION_DENIED
    assert query(stub_channel(cluster, address, CONTROLLER, controller)) is grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_is_refused(cluster: Cluster) -> None:
    ca = certificates.load((cluster.certs / "ca.crt").read_bytes(), (cluster.certs / "ca.key").read_bytes())
    minutes = 1 / 24 / 60
    leaf = certificates.make_leaf(
        ca, CONTROLLER, days=-4 * minutes
    )  # certificates are back-dated five minutes
    peer = Identity(Kind.WORKER, cluster.list_workers()[0]["worker_id"])
    stub = stub_channel(cluster, worker_address(cluster), peer, (leaf.crt_pem, leaf.key_pem))
    assert query(stub) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("port", ["https", "grpc"])
def test_tls_1_2_is_refused(cluster: Cluster, port: str) -> None:
    argv: list[str | Path] = [
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{getattr(cluster, port)}",
        "-CAfile",
        cluster.certs / "ca.crt",
    ]
    pair: list[str | Path] = [
        "-cert",
        cluster.certs / "controller.crt",
        "-key",
        cluster.certs / "controller.key",
    ]

    def hello(version: str) -> str:
        done = subprocess.run(
            [*argv, *pair, version], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
        )
        return done.stdout.decode()

    assert "TLSv1.3, Cipher is TLS_" in hello("-tls1_3")
    assert "Cipher is (NONE)" in hello("-tls1_2")


def controller_stub(cluster: Cluster, leaf: tuple[bytes, bytes] | None) -> Any:
    channel = stub_channel(cluster, f"127.0.0.1:{cluster.grpc}", CONTROLLER, leaf)
    return controller_pb2_grpc.ControllerStub(channel)


def test_a_worker_cannot_act_for_another_and_others_cannot_register(cluster: Cluster) -> None:
    first, second = cluster.workers[:2]
    other_id = cluster.worker_of(second)
    stub = controller_stub(cluster, state_files(cluster, first))
    calls: list[Callable[[], object]] = [
        lambda: stub.DeregisterWorker(controller_pb2.DeregisterWorkerRequest(worker_id=other_id), timeout=5),
        lambda: stub.Heartbeat(controller_pb2.HeartbeatRequest(worker_id=other_id), timeout=5),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    for name in ("user-admin", "controller"):
        with pytest.raises(grpc.RpcError) as refused:
            controller_stub(cluster, leaf_of(cluster, name)).RegisterWorker(
                controller_pb2.RegisterWorkerRequest(address="127.0.0.1:1"), timeout=5
            )
        assert refused.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
    assert {w["worker_id"] for w in cluster.list_workers() if w["state"] == "ready"} >= {other_id}
    log = cluster.controller.log
    eventually(lambda: "rpc_refused" in log.read_text(), what="the refusal in the controller's log")


def test_a_worker_refuses_a_controller_that_shows_a_workers_certificate(cluster: Cluster) -> None:
    certificate, key = state_files(cluster, cluster.workers[0])
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], (cluster.certs / "ca.crt").read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    channel = stub_channel(cluster, f"127.0.0.1:{port}", CONTROLLER, state_files(cluster, cluster.workers[1]))
    with pytest.raises(grpc.RpcError) as refused:
        controller_pb2_grpc.ControllerStub(channel).Heartbeat(controller_pb2.HeartbeatRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    channel.close()
    server.stop(None)


def test_enrolment_needs_the_join_token_and_an_honest_request(cluster: Cluster) -> None:
    csr = certificates.make_csr(certificates.make_key())
    csr_pem = csr.decode()
    with cluster.client(role=None) as client:
        for token in (None, "wrong", cluster.token("admin")):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            assert client.post("/v1/enroll", json={"csr": csr_pem}, headers=headers).status_code in (401, 403)
        join = {"Authorization": f"Bearer {cluster.token('join')}"}
        assert client.post("/v1/enroll", json={"csr": "no"}, headers=join).status_code == 422
        ok = client.post("/v1/enroll", json={"csr": csr_pem}, headers=join)
        assert ok.status_code in (200, 201), ok.text
        assert certificates.identity_of(ok.json()["certificate"].encode()).name == ok.json()["worker_id"]
        assert client.get("/v1/jobs", headers=join).status_code in (401, 403)


def test_keys_are_0600_and_python_3_13s_strict_checks_accept_the_chain(cluster: Cluster) -> None:
    for file in [
        *cluster.certs.rglob("*.key"),
        *cluster.certs.rglob("*.token"),
        *cluster.directory.glob("worker-*/state/**/*.key"),
    ]:
        assert file.stat().st_mode & 0o777 == 0o600, file
    strict = cluster.context()
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    plain = socket.create_connection(("127.0.0.1", cluster.https), timeout=10)
    with strict.wrap_socket(plain, server_hostname="localhost") as s:
        assert s.version() == "TLSv1.3"
