"""The gRPC server of the controller: the Controller service under its names, health, reflection."""

from __future__ import annotations

import socket

from jobcluster_common import rpc, tls  # before grpc

# isort: split
import grpc.aio
from grpc_health.v1 import health_pb2
from jobcluster_common.identity import Kind

from ..auth.rpcs import CONTROLLER_POLICY
from .controller import NAMES, SERVICE, ControllerServicer

# Bounds the handlers that run, not only the streams of one connection (CVE-2023-44487 taught why).
RPCS_MAX = 4096
STOP_SECONDS = 2.0


class GrpcServer:
    """Serves workers at one address until ``stop``.

    :raises OSError: if the address cannot be bound, or a certificate's file not be read.
    """

    def __init__(self, address: str, files: tls.TlsFiles | None, servicer: ControllerServicer) -> None:
        _check_free(address)
        insecure = files is None
        self._server = grpc.aio.server(options=tls.SERVER_OPTIONS, maximum_concurrent_rpcs=RPCS_MAX)
        rpc.add_service(self._server, NAMES, SERVICE, servicer, CONTROLLER_POLICY, insecure)
        self._health = rpc.add_health_and_reflection(self._server, NAMES, frozenset(Kind), insecure)
        if files is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, tls.server_credentials(files))

    async def start(self) -> None:
        await self._server.start()
        for name in ("", *NAMES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """No new call; those under way have a moment."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_SECONDS)


def _check_free(address: str) -> None:
    """grpc tells of a taken port by several lines of its own on stderr; this tells by an OSError."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host.strip("[]"), int(port)), family=family).close()
