"""The composition root of the server process: everything is made here, and ended in the reverse order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import structlog
from jobcluster_common import logs, tls

# isort: split
import grpc.aio
from grpc_health.v1 import health_pb2
from jobcluster.v1 import controller_pb2 as pb
from jobcluster.v1 import worker_pb2
from jobcluster_common import rpc

from jobcluster_worker.app import TASKS_PER_SUPERVISOR
from jobcluster_worker.launcher.shapes import TaskKey
from jobcluster_worker.limits import from_amounts
from jobcluster_worker.output.follow import IndexWatch
from jobcluster_worker.registration import Registration, advertised_address, capacity
from jobcluster_worker.server.changes import Changes
from jobcluster_worker.server.controller import ControllerClient, Credentials
from jobcluster_worker.server.convert import limits_to_proto
from jobcluster_worker.server.jobs import Jobs
from jobcluster_worker.server.remains import Left, Remains
from jobcluster_worker.server.retention import Retention
from jobcluster_worker.server.servicer import NAMES, POLICY, WorkerServicer
from jobcluster_worker.server.shutdown import Shutdown
from jobcluster_worker.server.streams import Streams
from jobcluster_worker.server.supervisors import Supervisors
from jobcluster_worker.server.tasks import TaskTable
from jobcluster_worker.settings import WorkerSettings

log = structlog.get_logger()

EXIT_RENEWED = 75
"""The certificate was renewed: the launcher starts a new server, which uses it; jobs do not notice."""
EXIT_ORPHANED = 3
"""The launcher is dead, and the supervisors with it."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the launcher tells its server."""

    directory: Path
    incarnation: str
    launcher_pid: int


class Server:
    """The rooms of this process that need no identity; they live from connect to close."""

    def __init__(self, settings: WorkerSettings, run: Run) -> None:
        self.settings = settings
        self.run = run
        self.table = TaskTable()
        self.registration: Registration | None = None
        self.remains = Remains(
            settings.data_directory,
            settings.worker.state_directory,
            run.incarnation,
            self.table,
            str(settings.jobs.log_file or ""),
        )
        self.supervisors = Supervisors(
            run.directory,
            self.table,
            lambda name, keys: self.remains.lost(name, keys, self.supervisors.in_flight),
            TASKS_PER_SUPERVISOR,
        )
        self.jobs = Jobs(
            self.table,
            self.supervisors,
            self.remains,
            epoch=lambda: self.registration.epoch if self.registration is not None else 0,
            max_tasks=settings.jobs.max_tasks,
            limits_default=settings.limits.default.amounts(),
            limits_max=settings.limits.max.amounts(),
        )
        self.changes = Changes(self.table, run.incarnation, self.jobs.acknowledge)
        self.terminate = asyncio.Event()
        self.hurry = asyncio.Event()
        self.renewed = asyncio.Event()
        self.orphaned = asyncio.Event()

    async def main(self) -> int:
        """Serves until it is told to stop; gives the exit code."""
        with self.table.listening(self.jobs.acknowledge_minted):
            await self.supervisors.open()
            left = await self.remains.find(self.supervisors.names, self.supervisors.ungreeted)
            settling = asyncio.create_task(self._settle(left))
            retaining = asyncio.create_task(self._retention().run())
            mending = asyncio.create_task(self.remains.mend())
            try:
                serving = asyncio.create_task(self._serve())
                await self._first_of(serving)
                if self.terminate.is_set():
                    shutdown = Shutdown(
                        self.settings.shutdown,
                        self.table,
                        self.jobs,
                        self.supervisors,
                        self.registration,
                        self.hurry,
                    )
                    await shutdown.run()
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving
            finally:
                for beside in (settling, retaining, mending):
                    beside.cancel()
                await asyncio.gather(settling, retaining, mending, return_exceptions=True)
                await self.supervisors.close()
        if self.terminate.is_set():
            return 0
        return EXIT_RENEWED if self.renewed.is_set() else EXIT_ORPHANED

    def watch_signals(self) -> None:
        """SIGTERM and SIGINT stop the worker, a second one at once; without its launcher this process ends."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate)
        # Not by signal: the launcher may be killed by one that leaves it no time to send any.
        launcher = os.pidfd_open(self.run.launcher_pid)
        loop.add_reader(launcher, self.orphaned.set)

    def _retention(self) -> Retention:
        block = self.settings.retention

        def in_use(key: TaskKey) -> bool:
            return self.table.get(key) is not None or self.remains.is_claimed(key)

        return Retention(self.settings.data_directory, in_use, block.output_seconds, block.output_bytes)

    async def _settle(self, left: Left) -> None:
        """Beside the serving: outputs that are to be read again may be big."""
        await self.remains.settle(left)
        self.changes.known.set()

    def _terminate(self) -> None:
        (self.hurry if self.terminate.is_set() else self.terminate).set()

    async def _first_of(self, serving: asyncio.Task[None]) -> None:
        events = [asyncio.ensure_future(e.wait()) for e in (self.terminate, self.renewed, self.orphaned)]
        try:
            await asyncio.wait([serving, *events], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
        if serving.done():
            serving.result()

    async def _serve(self) -> None:
        """Enrols where needed, then serves and keeps the registration, until it is cancelled."""
        credentials = Credentials(self.settings)
        identity = await credentials.identity()
        logs.identify(worker_id=identity.name)
        self.supervisors.identify(identity.name)
        watch = IndexWatch()
        try:
            streams = Streams(self.table, self.remains, watch)
            servicer = WorkerServicer(self.jobs, streams, self.changes, identity.name)
            async with self._listening(servicer, credentials) as port, credentials.channel() as channel:
                client = ControllerClient(channel, credentials.metadata(identity))
                self.registration = Registration(
                    client, identity.name, lambda: self._profile(port), lambda: self.table.alive
                )
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.registration.run())
                    tasks.create_task(credentials.renew(client, self.registration.registered, self.renewed))
                    # Both end by themselves, the registration when it leaves: which it says over this very channel.
                    await asyncio.Event().wait()
        finally:
            watch.close()

    @asynccontextmanager
    async def _listening(
        self, servicer: WorkerServicer, credentials: Credentials
    ) -> AsyncGenerator[int, None]:
        plain = not self.settings.grpc_server.use_tls
        server = grpc.aio.server(options=tls.SERVER_OPTIONS)
        descriptor = worker_pb2.DESCRIPTOR.services_by_name["Worker"]
        rpc.add_service(server, NAMES, descriptor, servicer, POLICY, plain)
        statuses = rpc.add_health_and_reflection(server, NAMES, POLICY["QueryJob"], plain)
        port = credentials.bind(server, self.run.directory / "port")
        await server.start()
        for name in ("", *NAMES):
            await statuses.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("server_listening", port=port, incarnation=self.run.incarnation)
        try:
            yield port
        finally:
            # Streams are cut, not ended: whoever reads them comes back with an offset.
            await server.stop(0.3)

    def _profile(self, port: int) -> pb.RegisterWorkerRequest:
        settings = self.settings
        request = pb.RegisterWorkerRequest(
            address=advertised_address(settings.grpc_server.addr, port),
            incarnation=self.run.incarnation,
            version=version("jobcluster-worker"),
            labels=settings.labels,
            capacity=capacity(settings.limits.worker.amounts(), settings.jobs.max_tasks),
        )
        for name in ("default", "max", "worker"):
            held = from_amounts(getattr(settings.limits, name).amounts())
            getattr(request.limits, name).CopyFrom(limits_to_proto(held))
        for resource, state in self.supervisors.enforced.items():
            request.enforced[resource].ok, request.enforced[resource].why = state["ok"], state["why"]
        return request
