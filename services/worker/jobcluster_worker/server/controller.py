"""The worker's way to the controller: whom it claims to be, by which files, and the calls it makes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path

import structlog
from jobcluster_common import certificates, rpc, tls

# isort: split
import grpc.aio
from jobcluster.v1 import controller_pb2 as pb
from jobcluster.v1 import controller_pb2_grpc
from jobcluster_common.identity import CONTROLLER, Identity, Kind
from jobcluster_common.settings import SettingsError

from jobcluster_worker.backoff import delays
from jobcluster_worker.enrolment import Enrolment, Renewal, identity_of
from jobcluster_worker.settings import WorkerSettings

log = structlog.get_logger()

RENEW_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 3600.0


class ControllerClient:
    """The RPCs of the controller. Every call has a deadline in seconds."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = controller_pb2_grpc.ControllerStub(channel)
        self._metadata = tuple(metadata)

    async def RegisterWorker(
        self, request: pb.RegisterWorkerRequest, *, timeout: float
    ) -> pb.RegisterWorkerResponse:
        return await self._stub.RegisterWorker(
            request, timeout=timeout, metadata=self._metadata, wait_for_ready=True
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, *, timeout: float) -> pb.HeartbeatResponse:
        return await self._stub.Heartbeat(request, timeout=timeout, metadata=self._metadata)

    async def DeregisterWorker(
        self, request: pb.DeregisterWorkerRequest, *, timeout: float
    ) -> pb.DeregisterWorkerResponse:
        return await self._stub.DeregisterWorker(request, timeout=timeout, metadata=self._metadata)

    async def RenewCertificate(
        self, request: pb.RenewCertificateRequest, *, timeout: float
    ) -> pb.RenewCertificateResponse:
        return await self._stub.RenewCertificate(request, timeout=timeout, metadata=self._metadata)


class Credentials:
    """The files by which this worker is known: given ones, or those of an enrolment; none on plain loopback."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        server = settings.grpc_server
        self._enrolment: Enrolment | None = None
        self.files: tls.TlsFiles | None = None
        if not server.use_tls or server.ca_file is None:
            return
        if server.crt_file is not None and server.key_file is not None:
            self.files = tls.TlsFiles(server.crt_file, server.key_file, server.ca_file)
            return
        self._enrolment = Enrolment(
            settings.worker.state_directory,
            server.ca_file,
            settings.controller.enroll_url,
            settings.auth.join,
        )
        self.files = self._enrolment.files

    async def identity(self) -> Identity:
        """Who this worker is; enrols, as long as it takes, when nobody has said so yet.

        :raises SettingsError: if the given certificate is of no use
        """
        if self._enrolment is not None:
            return await self._enrolment.ensure()
        if self.files is None:
            return _plain_identity(self._settings.worker.state_directory / "worker_id")
        try:
            return identity_of(self.files)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"grpc_server.crt_file: {error}; give this worker's own certificate, or none to enrol"
            ) from None

    def metadata(self, identity: Identity) -> tuple[tuple[str, str], ...]:
        return rpc.plain_text_metadata(identity) if self.files is None else ()

    def channel(self) -> grpc.aio.Channel:
        """To the controller, whose certificate must say that it is."""
        return tls.channel(self._settings.controller.addr, self.files, CONTROLLER)

    def bind(self, server: grpc.aio.Server, port_file: Path) -> int:
        """Binds the configured address. "Any port" is the same one after a restart of the server, if it is free.

        :raises SettingsError: if the address cannot be bound
        """
        host, _, port = self._settings.grpc_server.addr.rpartition(":")
        earlier = port_file.read_text() if port == "0" and port_file.exists() else None
        for candidate in (earlier, port):
            if candidate is None:
                continue
            try:
                bound = self._bind(server, f"{host}:{candidate}")
            except RuntimeError:
                continue
            port_file.write_text(str(bound))
            return bound
        raise SettingsError(
            f"grpc_server.addr: {self._settings.grpc_server.addr} cannot be bound; free it, or name another"
        )

    async def renew(
        self, client: ControllerClient, registered: asyncio.Event, renewed: asyncio.Event
    ) -> None:
        """Exchanges an enrolled certificate at two thirds of its life, then sets ``renewed``; given ones are left."""
        if self._enrolment is None:
            return
        renewal = Renewal(self._enrolment.files)
        waits = delays(1.0, 300.0)
        while True:
            if (due := renewal.due_in_seconds()) > 0:
                # In slices: the wall clock may jump, and a sleep does not notice.
                await asyncio.sleep(min(due, _LOOK_AGAIN_SECONDS))
                continue
            await registered.wait()
            wait = next(waits)
            try:
                request = pb.RenewCertificateRequest(csr_pem=renewal.request())
                answer = await client.RenewCertificate(request, timeout=RENEW_SECONDS)
                renewal.accept(answer.certificate_pem)
            except (grpc.aio.AioRpcError, OSError, ValueError) as error:
                log.warning("renewal_failed", reason=str(error), retry_seconds=round(wait, 1))
                await asyncio.sleep(wait)
            else:
                log.info("certificate_renewed")
                renewed.set()
                return

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if self.files is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.server_credentials(self.files))


def _plain_identity(path: Path) -> Identity:
    """Without TLS nobody signs an id: the worker's own is kept in its state directory."""
    try:
        return Identity(Kind.WORKER, path.read_text().strip())
    except (FileNotFoundError, ValueError):
        identity = Identity(Kind.WORKER, str(uuid.uuid4()))
        certificates.write_private(path, identity.name.encode())
        return identity
