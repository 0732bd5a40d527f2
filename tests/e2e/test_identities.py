"""Which certificate may call which RPC, asked of the containers over their own network: default deny."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobcluster_common.certificates import Issued, load, make_ca, make_leaf, write_private
from jobcluster_common.identity import CONTROLLER, Identity, Kind
from jobcluster_common.tls import TlsFiles, channel

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import controller_pb2, worker_pb2

from tests.e2e.api import Api
from tests.e2e.stack import Stack, inspect

REFUSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
STRANGER = Identity(Kind.WORKER, "00000000-0000-4000-8000-000000000000")
USER = Identity(Kind.USER, "somebody")


@dataclass
class Doors:
    """The gRPC servers' addresses on the cluster's network, and certificates of every kind."""

    controller: str
    worker: str
    worker_identity: Identity
    directory: Path
    ca: Issued

    def files(self, who: str) -> TlsFiles:
        home = self.directory / who
        crt_file, key_file, ca_file = home / "leaf.crt", home / "leaf.key", home / "ca.crt"
        if not home.exists():
            home.mkdir()
            other = make_ca() if who == "other_ca" else self.ca
            identity = {
                "controller": CONTROLLER,
                "worker": self.worker_identity,
                "stranger": STRANGER,
                "user": USER,
                "other_ca": CONTROLLER,
                "expired": CONTROLLER,
            }[who]
            leaf = make_leaf(other, identity, days=-0.002 if who == "expired" else 1)
            write_private(crt_file, leaf.crt_pem)
            write_private(key_file, leaf.key_pem)
            ca_file.write_bytes(self.ca.crt_pem)
        return TlsFiles(crt_file, key_file, ca_file)


@pytest.fixture(scope="module")
def doors(stack: Stack, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    worker_id = min(api.wait_ready(3))
    network = f"{stack.project}_cluster"
    (container,) = stack.containers("controller")
    ip = inspect(container)["NetworkSettings"]["Networks"][network]["IPAddress"]
    yield Doors(
        f"{ip}:7443",
        api.call("GET", f"/v1/workers/{worker_id}", 200)["address"],
        Identity(Kind.WORKER, worker_id),
        tmp_path_factory.mktemp("identities"),
        load(stack.file("ca.crt"), stack.file("ca.key")),
    )


def methods(module: object, service: str) -> dict[str, str]:
    """Every RPC of the service by its full name, from the proto itself: a new one cannot be forgotten here."""
    descriptor = module.DESCRIPTOR.services_by_name[service]  # type: ignore[attr-defined]
    return {m.name: f"/{descriptor.full_name}/{m.name}" for m in descriptor.methods}


CONTROLLERS_RPCS = methods(controller_pb2, "Controller")
WORKERS_RPCS = methods(worker_pb2, "Worker")


async def answer(address: str, files: TlsFiles, peer: Identity, rpc: str) -> grpc.StatusCode:
    """The status of an empty call; for a stream, that of its first message or its end."""
    async with channel(address, files, peer) as opened:
        call = opened.stream_stream(rpc, request_serializer=lambda b: b, response_deserializer=lambda b: b)(
            iter([b""]), timeout=5
        )
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
        call.cancel()
        return grpc.StatusCode.OK


@pytest.mark.parametrize("rpc", CONTROLLERS_RPCS)
@pytest.mark.parametrize("who", ["controller", "user", "other_ca", "expired"])
async def test_the_controllers_rpcs_are_for_workers(doors: Doors, who: str, rpc: str) -> None:
    code = await answer(doors.controller, doors.files(who), CONTROLLER, CONTROLLERS_RPCS[rpc])
    assert code in REFUSED, code


@pytest.mark.parametrize("rpc", WORKERS_RPCS)
@pytest.mark.parametrize("who", ["worker", "stranger", "user", "other_ca", "expired"])
async def test_a_workers_rpcs_are_for_the_controller(doors: Doors, who: str, rpc: str) -> None:
    code = await answer(doors.worker, doors.files(who), doors.worker_identity, WORKERS_RPCS[rpc])
    assert code in REFUSED, code


@pytest.mark.parametrize("rpc", WORKERS_RPCS)
async def test_the_controllers_certificate_opens_a_worker(doors: Doors, rpc: str) -> None:
    code = await answer(doors.worker, doors.files("controller"), doors.worker_identity, WORKERS_RPCS[rpc])
    assert code not in REFUSED, code


async def test_a_worker_cannot_speak_for_another(doors: Doors) -> None:
    async with channel(doors.controller, doors.files("stranger"), CONTROLLER) as opened:
        deregister = opened.unary_unary(
            CONTROLLERS_RPCS["DeregisterWorker"],
            request_serializer=controller_pb2.DeregisterWorkerRequest.SerializeToString,
            response_deserializer=controller_pb2.DeregisterWorkerResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await deregister(
                controller_pb2.DeregisterWorkerRequest(worker_id=doors.worker_identity.name), timeout=5
            )
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_worker_does_not_pass_for_the_controller(doors: Doors) -> None:
    code = await answer(doors.worker, doors.files("worker"), CONTROLLER, CONTROLLERS_RPCS["Heartbeat"])
    assert code is grpc.StatusCode.UNAVAILABLE
