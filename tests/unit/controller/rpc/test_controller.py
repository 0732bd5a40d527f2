"""The Controller service with real certificates on loopback: a worker speaks for itself only."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

from jobcluster_common import tls  # before grpc

# isort: split
import grpc
import grpc.aio
import pytest
from jobcluster.v1 import controller_pb2 as pb
from jobcluster_common import certificates
from jobcluster_common.certificates import make_csr, make_key, make_leaf, write_private
from jobcluster_common.identity import CONTROLLER, Identity, Kind
from jobcluster_controller.auth.enrolment import Enrolment
from jobcluster_controller.auth.rpcs import CONTROLLER_POLICY
from jobcluster_controller.domain.job import IoLimits, Limits
from jobcluster_controller.domain.worker import WorkerLimits
from jobcluster_controller.registry import Registry
from jobcluster_controller.rpc.controller import NAMES, SERVICE, ControllerServicer
from jobcluster_controller.rpc.server import GrpcServer
from jobcluster_controller.store.memory import MemoryStore

W1, W2, USER = Identity(Kind.WORKER, "w1"), Identity(Kind.WORKER, "w2"), Identity(Kind.USER, "ann")


class Side:
    """A running server, its registry, and channels to it by identity."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ca = directory, certificates.make_ca()
        self.registry = Registry(MemoryStore(), lambda _worker_id: 0)
        self.channels: list[grpc.aio.Channel] = []
        enrolment = Enrolment(self.ca.crt_pem, self.ca.key_pem, 1.0)
        servicer = ControllerServicer(self.registry, enrolment, 2.0, 60.0)
        self.server = GrpcServer("127.0.0.1:0", self.files(CONTROLLER), servicer)

    def files(self, identity: Identity) -> tls.TlsFiles:
        name = identity.uri.rpartition("/")[2]
        leaf = make_leaf(self.ca, identity)
        files = tls.TlsFiles(*(self.directory / f"{name}.{suffix}" for suffix in ("crt", "key", "ca")))
        for path, content in zip(
            (files.crt_file, files.key_file, files.ca_file),
            (leaf.crt_pem, leaf.key_pem, self.ca.crt_pem),
            strict=True,
        ):
            write_private(path, content)
        return files

    async def call(self, identity: Identity, rpc: str, request: object, service: str = NAMES[0]) -> object:
        channel = tls.channel(f"127.0.0.1:{self.server.port}", self.files(identity), CONTROLLER)
        self.channels.append(channel)
        method = SERVICE.methods_by_name[rpc]
        answer = getattr(pb, method.output_type.name)
        call = channel.unary_unary(
            f"/{service}/{rpc}",
            request_serializer=type(request).SerializeToString,  # type: ignore[attr-defined]
            response_deserializer=answer.FromString,
        )
        result: object = await call(request, timeout=10)
        return result


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[Side]:
    side = Side(tmp_path)
    await side.server.start()
    try:
        yield side
    finally:
        for channel in side.channels:
            await channel.close()
        await side.server.stop()


REQUESTS = {
    "RegisterWorker": pb.RegisterWorkerRequest(address="0.0.0.0:7444", incarnation="i1"),
    "DeregisterWorker": pb.DeregisterWorkerRequest(incarnation="i1"),
    "Heartbeat": pb.HeartbeatRequest(incarnation="i1", epoch=1),
    "RenewCertificate": pb.RenewCertificateRequest(csr_pem=make_csr(make_key()).decode()),
}


@pytest.mark.parametrize("service", NAMES)
async def test_a_workers_life_under_each_name_of_the_service(side: Side, service: str) -> None:
    registered = await side.call(W1, "RegisterWorker", REQUESTS["RegisterWorker"], service)
    assert isinstance(registered, pb.RegisterWorkerResponse)
    assert (registered.success, registered.worker_id, registered.heartbeat_seconds) == (True, "w1", 2.0)
    assert side.registry.get("w1").address == "127.0.0.1:7444"
    beat = await side.call(W1, "Heartbeat", REQUESTS["Heartbeat"], service)
    assert isinstance(beat, pb.HeartbeatResponse) and beat.known and beat.epoch == registered.epoch
    unknown = await side.call(W2, "Heartbeat", REQUESTS["Heartbeat"], service)
    assert isinstance(unknown, pb.HeartbeatResponse) and not unknown.known
    left = await side.call(W1, "DeregisterWorker", REQUESTS["DeregisterWorker"], service)
    assert isinstance(left, pb.DeregisterWorkerResponse) and left.success
    assert side.registry.list() == []


@pytest.mark.parametrize("rpc", [method.name for method in SERVICE.methods])
async def test_only_workers_may_call(side: Side, rpc: str) -> None:
    assert CONTROLLER_POLICY[rpc] == {Kind.WORKER}
    for identity in (CONTROLLER, USER):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await side.call(identity, rpc, REQUESTS[rpc])
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_worker_cannot_speak_for_another(side: Side) -> None:
    await side.call(W1, "RegisterWorker", REQUESTS["RegisterWorker"])
    for rpc, request in (
        ("Heartbeat", pb.HeartbeatRequest(worker_id="w1", incarnation="i1", epoch=1)),
        ("DeregisterWorker", pb.DeregisterWorkerRequest(worker_id="w1", incarnation="i1")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await side.call(W2, rpc, request)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert [worker.worker_id for worker in side.registry.list()] == ["w1"]


async def test_a_worker_tells_its_limits_when_it_registers(side: Side) -> None:
    request = pb.RegisterWorkerRequest(address="0.0.0.0:7444", incarnation="i1")
    request.limits.default.cpu = 0.5
    request.limits.max.memory_bytes = 64 << 20
    request.limits.max.io.write_bps = 9
    request.limits.worker.pids = 100
    await side.call(W1, "RegisterWorker", request)
    assert side.registry.get("w1").limits == WorkerLimits(
        Limits(cpu=0.5), Limits(memory=64 << 20, io=IoLimits(write_bps=9)), Limits(pids=100)
    )
    await side.call(W2, "RegisterWorker", REQUESTS["RegisterWorker"])
    assert side.registry.get("w2").limits == WorkerLimits()


async def test_an_address_elsewhere_is_refused(side: Side) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await side.call(W1, "RegisterWorker", pb.RegisterWorkerRequest(address="10.9.9.9:1", incarnation="i"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert side.registry.list() == []


async def test_a_renewed_certificate_is_for_the_same_identity(side: Side) -> None:
    renewed = await side.call(W1, "RenewCertificate", REQUESTS["RenewCertificate"])
    assert isinstance(renewed, pb.RenewCertificateResponse)
    assert certificates.identity_of(renewed.certificate_pem.encode()) == W1
    assert renewed.ca_pem.encode() == side.ca.crt_pem
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await side.call(W1, "RenewCertificate", pb.RenewCertificateRequest(csr_pem="nonsense"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_taken_port_is_an_oserror(side: Side) -> None:
    servicer = ControllerServicer(side.registry, Enrolment(b"", b"", 1.0), 2.0, 60.0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        GrpcServer(f"127.0.0.1:{taken.getsockname()[1]}", None, servicer)
