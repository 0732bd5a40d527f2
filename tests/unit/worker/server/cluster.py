"""A whole worker as its own processes, mutual TLS, and a twin of the controller that it registers with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobcluster_common import certificates, rpc, tls

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import controller_pb2, worker_pb2_grpc
from jobcluster_common.identity import CONTROLLER, Identity, Kind

SECONDS = 30.0
WORKER = Identity(Kind.WORKER, "worker-1")


@dataclass
class Pki:
    """A CA, and leaves of it as files."""

    directory: Path
    ca: certificates.Issued = field(default_factory=certificates.make_ca)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "ca.crt").write_bytes(self.ca.crt_pem)

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.crt"

    def leaf(self, identity: Identity, **more: Any) -> tls.TlsFiles:
        name = identity.dns_name
        crt, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if not crt.exists():
            issued = certificates.make_leaf(self.ca, identity, **more)
            crt.write_bytes(issued.crt_pem)
            certificates.write_private(key, issued.key_pem)
        return tls.TlsFiles(crt, key, self.ca_file)


class Controller:
    """Knows the workers that register, and tells what it heard. ``known`` False: it has forgotten them."""

    def __init__(self, pki: Pki) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.changed = asyncio.Event()
        self.known = True
        self.epoch = 1
        self.deregistration_seconds = 0.0
        self._pki = pki
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=tls.SERVER_OPTIONS)
        descriptor = controller_pb2.DESCRIPTOR.services_by_name["Controller"]
        policy = {method.name: frozenset({Kind.WORKER}) for method in descriptor.methods}
        rpc.add_service(self._server, [descriptor.full_name], descriptor, self, policy)
        credentials = tls.server_credentials(self._pki.leaf(CONTROLLER))
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _hear(self, name: str, request: Any) -> None:
        self.heard.append((name, request))
        self.changed.set()

    async def RegisterWorker(self, request: Any, context: Any) -> controller_pb2.RegisterWorkerResponse:
        self._hear("register", request)
        self.known = True
        return controller_pb2.RegisterWorkerResponse(
            success=True, worker_id=WORKER.name, epoch=self.epoch, heartbeat_seconds=0.1, lease_seconds=60
        )

    async def Heartbeat(self, request: Any, context: Any) -> controller_pb2.HeartbeatResponse:
        self._hear("heartbeat", request)
        return controller_pb2.HeartbeatResponse(known=self.known, epoch=self.epoch)

    async def DeregisterWorker(self, request: Any, context: Any) -> controller_pb2.DeregisterWorkerResponse:
        await asyncio.sleep(self.deregistration_seconds)
        self._hear("deregister", request)
        return controller_pb2.DeregisterWorkerResponse(success=True)

    async def RenewCertificate(self, request: Any, context: Any) -> controller_pb2.RenewCertificateResponse:
        self._hear("renew", request)
        pem = certificates.sign_csr(
            request.csr_pem.encode(),
            self._pki.ca.crt_pem,
            self._pki.ca.key_pem,
            rpc.current_identity.get(),
            720,
        )
        return controller_pb2.RenewCertificateResponse(certificate_pem=pem.decode())

    async def until(self, name: str, matches: Callable[[Any], bool] = lambda _request: True) -> Any:
        """The first request of that name that matches, from the present moment back or on."""
        async with asyncio.timeout(SECONDS):
            while True:
                for heard, request in self.heard:
                    if heard == name and matches(request):
                        return request
                self.changed.clear()
                await self.changed.wait()

    def forget(self) -> None:
        self.heard.clear()


class Worker:
    """``jobcluster-worker`` as people start it."""

    def __init__(self, directory: Path, pki: Pki, controller: Controller) -> None:
        self.directory = directory
        self.pki = pki
        self.controller = controller
        self.templates = directory / "templates"
        self.templates.mkdir()
        (self.templates / "hello.sh").write_text("echo hello $1\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.channels: list[grpc.aio.Channel] = []

    def settings(self, **more: dict[str, Any]) -> str:
        files = self.pki.leaf(WORKER)
        blocks: dict[str, dict[str, Any]] = {
            "grpc_server": {
                "addr": "127.0.0.1:0",
                "ca_file": str(files.ca_file),
                "crt_file": str(files.crt_file),
                "key_file": str(files.key_file),
            },
            "controller": {"addr": f"127.0.0.1:{self.controller.port}"},
            "worker": {"state_directory": str(self.directory / "state")},
            "jobs": {"template_directory": str(self.templates)},
            "limits": {"require": False},
            "labels": {"zone": "a"},
            "shutdown": {"grace_seconds": 2, "handover_seconds": 1},
        }
        for name, block in more.items():
            blocks[name] = {**blocks.get(name, {}), **block}
        lines = []
        for name, block in blocks.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in block.items() if value is not None]
        return "\n".join(lines)

    def start(self, **more: dict[str, Any]) -> None:
        config = self.directory / "worker.toml"
        config.write_text(self.settings(**more))
        env = {name: value for name, value in os.environ.items() if not name.startswith("JOBCLUSTER_")}
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobcluster_worker", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
            )

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = (self.directory / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def server_pid(self) -> int:
        return [int(entry["pid"]) for entry in self.log if entry["event"] == "server_started"][-1]

    async def stub(
        self, identity: Identity = CONTROLLER, files: tls.TlsFiles | None = None
    ) -> worker_pb2_grpc.WorkerAsyncStub:
        """To this worker as it last registered."""
        registered = await self.controller.until("register")
        host, _, port = registered.address.rpartition(":")
        channel = tls.channel(
            f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}", files or self.pki.leaf(identity), WORKER
        )
        self.channels.append(channel)
        return worker_pb2_grpc.WorkerStub(channel)

    async def wait(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, SECONDS)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGTERM)
            await self.wait()
