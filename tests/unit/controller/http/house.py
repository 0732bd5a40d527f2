"""A real HTTPS server in this process, with twins behind its door."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from jobcluster_common.certificates import Issued, make_leaf, write_private
from jobcluster_controller.auth.enrolment import Enrolment
from jobcluster_controller.auth.roles import Role
from jobcluster_controller.auth.tokens import Tokens
from jobcluster_controller.http.door import Door
from jobcluster_controller.http.doors import Doors
from jobcluster_controller.http.endpoint import Endpoint
from jobcluster_controller.http.routes import TABLE
from jobcluster_controller.http.server import HttpServer, listen, tls_context
from jobcluster_controller.metrics import Metrics

from tests.unit.controller.http.twins import TwinJobs, TwinRegistry

TOKENS = {role: f"{role}-token-of-the-tests" for role in Role}


async def eventually(reached: Callable[[], bool], within: float = 10.0) -> None:
    """Waits for a state that nothing tells of.

    :raises TimeoutError: if it is not reached.
    """
    async with asyncio.timeout(within):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class House:
    """The server, its twins, and how to reach it."""

    server: HttpServer
    doors: Doors
    jobs: TwinJobs
    context: ssl.SSLContext

    @property
    def port(self) -> int:
        return self.server.port

    def client(self, role: Role | None = Role.ADMIN, **headers: str) -> httpx2.AsyncClient:
        authorization = {} if role is None else {"Authorization": f"Bearer {TOKENS[role]}"}
        return httpx2.AsyncClient(
            base_url=f"https://localhost:{self.port}",
            verify=self.context,
            headers=authorization | headers,
            timeout=10,
        )

    async def raw(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare TLS connection with these bytes sent."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context, server_hostname="localhost"
        )
        writer.write(request)
        await writer.drain()
        return reader, writer


@contextlib.asynccontextmanager
async def open_house(directory: Path, ca: Issued, table: Sequence[Endpoint] = TABLE) -> AsyncIterator[House]:
    """Opens one, and closes it whatever happens."""
    leaf = make_leaf(ca, None, dns=["localhost"], ips=["127.0.0.1"], days=1, client=False)
    for name, content in {"http.crt": leaf.crt_pem, "http.key": leaf.key_pem, "ca.crt": ca.crt_pem}.items():
        write_private(directory / name, content)
    jobs, registry = TwinJobs(), TwinRegistry()
    doors = Doors(
        jobs,
        registry,
        Tokens.of({token: role for role, token in TOKENS.items()}),
        Enrolment(ca.crt_pem, ca.key_pem, 1.0),
        Metrics(registry),
    )
    listener = listen("127.0.0.1:0")
    context = tls_context(str(directory / "http.crt"), str(directory / "http.key"))
    server = HttpServer(Door(doors, table), listener, context)
    await server.start()
    try:
        yield House(server, doors, jobs, ssl.create_default_context(cafile=str(directory / "ca.crt")))
    finally:
        doors.live.cut()
        await server.stop()
