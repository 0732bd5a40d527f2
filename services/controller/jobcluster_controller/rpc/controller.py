"""The Controller service: a worker registers, renews its lease and its certificate, and leaves."""

from __future__ import annotations

from typing import Any

from jobcluster.v1 import controller_pb2
from jobcluster_common.errors import Denied
from jobcluster_common.rpc import current_identity

from ..auth.enrolment import Enrolment
from ..convert import enforced_from_pb, limits_from_pb
from ..domain.worker import Capacity, WorkerLimits
from ..registry import Registry
from .address import advertised

SERVICE = controller_pb2.DESCRIPTOR.services_by_name["Controller"]
# The package's name, the bare one, and the seed's.
NAMES = (SERVICE.full_name, "Controller", "controller")


class ControllerServicer:
    """Whose worker a call is about is what its certificate says, never what the request says."""

    def __init__(
        self, registry: Registry, enrolment: Enrolment, heartbeat_seconds: float, lost_seconds: float
    ) -> None:
        self._registry = registry
        self._enrolment = enrolment
        self._heartbeat_seconds = heartbeat_seconds
        self._lost_seconds = lost_seconds

    async def RegisterWorker(
        self, request: controller_pb2.RegisterWorkerRequest, context: Any
    ) -> controller_pb2.RegisterWorkerResponse:
        worker_id = current_identity.get().name
        capacity, limits = request.capacity, request.limits
        worker = await self._registry.register(
            worker_id,
            await advertised(request.address, context.peer()),
            request.incarnation,
            request.version,
            dict(request.labels),
            Capacity(capacity.cpu, capacity.memory_bytes, capacity.tasks),
            enforced_from_pb(request.enforced),
            request.draining,
            WorkerLimits(*(limits_from_pb(which) for which in (limits.default, limits.max, limits.worker))),
        )
        return controller_pb2.RegisterWorkerResponse(
            success=True,
            worker_id=worker_id,
            epoch=worker.epoch,
            heartbeat_seconds=self._heartbeat_seconds,
            lease_seconds=self._lost_seconds,
        )

    async def DeregisterWorker(
        self, request: controller_pb2.DeregisterWorkerRequest, context: Any
    ) -> controller_pb2.DeregisterWorkerResponse:
        await self._registry.deregister(_own_id(request.worker_id), request.incarnation)
        return controller_pb2.DeregisterWorkerResponse(success=True)

    async def Heartbeat(
        self, request: controller_pb2.HeartbeatRequest, context: Any
    ) -> controller_pb2.HeartbeatResponse:
        worker = await self._registry.heartbeat(
            _own_id(request.worker_id), request.incarnation, request.epoch, request.draining
        )
        if worker is None:
            return controller_pb2.HeartbeatResponse(known=False)
        return controller_pb2.HeartbeatResponse(known=True, epoch=worker.epoch)

    async def RenewCertificate(
        self, request: controller_pb2.RenewCertificateRequest, context: Any
    ) -> controller_pb2.RenewCertificateResponse:
        certificate = self._enrolment.sign(request.csr_pem, current_identity.get())
        return controller_pb2.RenewCertificateResponse(
            certificate_pem=certificate, ca_pem=self._enrolment.ca_pem
        )


def _own_id(named: str) -> str:
    """The caller's id, when the request names that one or none.

    :raises Denied: if it names another worker.
    """
    own = current_identity.get().name
    if named and named != own:
        raise Denied(f"worker {own} may not speak for worker {named}")
    return own
