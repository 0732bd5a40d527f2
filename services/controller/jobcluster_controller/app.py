"""The controller's composition root: settings in, services wired, two doors opened, one owner of signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from jobcluster_common import logs
from jobcluster_common.settings import SettingsError, fail_with_one_line, load
from jobcluster_common.tls import TlsFiles

from . import core
from .auth.enrolment import Enrolment
from .auth.roles import Role
from .auth.tokens import Tokens
from .certificate import http_context
from .domain.bounds import Bounds
from .domain.job import Limits
from .http.door import Door
from .http.doors import Doors
from .http.server import HttpServer, listen
from .metrics import Metrics
from .registry import Lease
from .rpc.controller import ControllerServicer
from .rpc.server import GrpcServer
from .settings import ELSEWHERE, ControllerSettings
from .store.protocol import StoreRefused
from .store.sqlite import SqliteStore

log = structlog.get_logger()

_M_ARENA_MAX = -8  # mallopt(3)


class Controller:
    """All of it in one process and one loop.

    :raises SettingsError: if a file that the settings name cannot be used.
    """

    def __init__(self, settings: ControllerSettings, source: str = "settings") -> None:
        self._settings = settings
        self._source = source
        auth = settings.auth
        self._tokens = Tokens.read(
            {
                Role.ADMIN: auth.admin,
                Role.OPERATOR: auth.operator,
                Role.VIEWER: auth.viewer,
                Role.JOIN: auth.join,
            }
        )
        self._enrolment = Enrolment.read(settings.enrollment)
        self._context = http_context(settings.http_server, self._enrolment)
        self._ready = False
        self.http_port = self.grpc_port = 0
        """The bound ports, once it is ready."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves until the block ends; then, in this order: streams cut, doors closed, workers' links, the store.

        :raises StoreRefused: if the store cannot be used.
        :raises SettingsError: if an address cannot be served.
        """
        settings = self._settings
        grpc = settings.grpc_server
        files = None
        if grpc.use_tls and grpc.crt_file and grpc.key_file and grpc.ca_file:
            files = TlsFiles(grpc.crt_file, grpc.key_file, grpc.ca_file)
        lease = Lease(**settings.lease.model_dump())
        store = await SqliteStore.open(settings.store.path)
        bounds = Bounds(*(Limits.of(b.amounts()) for b in (settings.limits.default, settings.limits.max)))
        async with core.running(
            store, files, lease, queue_max=settings.jobs.queue_max, bounds=bounds
        ) as parts:
            doors = Doors(
                parts.jobs,
                parts.registry,
                self._tokens,
                self._enrolment,
                Metrics(parts.registry, lambda: parts.jobs.open_outputs),
                ready=lambda: self._ready,
                check_store=store.check,
                events=parts.events,
            )
            servicer = ControllerServicer(
                parts.registry, self._enrolment, lease.heartbeat_seconds, lease.lost_seconds
            )
            grpc_server, http_server = self._open(files, servicer, Door(doors))
            await grpc_server.start()
            await http_server.start()
            self.http_port, self.grpc_port = http_server.port, grpc_server.port
            self._ready = True
            log.info("controller_ready", http_port=self.http_port, grpc_port=self.grpc_port)
            try:
                yield
            finally:
                self._ready = False
                log.info("controller_stopping", live_requests=len(doors.live))
                doors.live.cut()
                await http_server.stop()
                await grpc_server.stop()
        log.info("controller_stopped")

    def _open(
        self, files: TlsFiles | None, servicer: ControllerServicer, door: Door
    ) -> tuple[GrpcServer, HttpServer]:
        settings = self._settings
        try:
            grpc_server = GrpcServer(settings.grpc_server.addr, files, servicer)
        except (OSError, RuntimeError) as error:
            raise self._cannot_listen("grpc_server", settings.grpc_server.addr, error) from None
        try:
            return grpc_server, HttpServer(door, listen(settings.http_server.addr), self._context)
        except OSError as error:
            raise self._cannot_listen("http_server", settings.http_server.addr, error) from None

    def _cannot_listen(self, block: str, address: str, error: Exception) -> SettingsError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return SettingsError(
            f"{self._source}: {block}.addr: cannot listen at {address}: {reason}; free it, or choose another"
        )


async def serve(controller: Controller) -> None:
    """Until SIGTERM or SIGINT; a second one ends the process at once."""
    logs.tell_of_faults(asyncio.get_running_loop())
    stop = asyncio.Event()

    def asked(number: int) -> None:
        if stop.is_set():
            # What was acknowledged is committed: nothing is lost.
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    async with controller.running():
        await stop.wait()


@fail_with_one_line
def main() -> int:
    """The ``jobcluster-controller`` command."""
    parser = argparse.ArgumentParser(prog="jobcluster-controller", description="Decides what runs where.")
    parser.add_argument("--config", metavar="FILE", help="settings in TOML; default: JOBCLUSTER_CONFIG")
    given = parser.parse_args().config or os.environ.get("JOBCLUSTER_CONFIG")
    path = Path(given) if given else None
    settings = load(ControllerSettings, path, os.environ, ELSEWHERE)
    controller = Controller(settings, str(path or "settings"))
    _allow_many_connections()
    _share_memory()
    try:
        with logs.process(settings.log, process="controller"):
            asyncio.run(serve(controller))
    except StoreRefused as error:
        sys.stderr.write(f"{path or 'settings'}: store.path: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _share_memory() -> None:
    """Few arenas: each of grpc's threads would else keep what it freed to itself, and that is not given back."""
    with contextlib.suppress(AttributeError):  # a C library that has none
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _allow_many_connections() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
