"""The worker's word to the controller: here I am, I live, I leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import structlog
from jobcluster_common import tls  # noqa: F401  (before grpc)

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import controller_pb2 as pb
from jobcluster_common.limits import Amounts

from jobcluster_worker.backoff import delays

log = structlog.get_logger()

CALL_SECONDS = 5.0


class Controller(Protocol):
    """The RPCs of the controller that a registration needs; ControllerStub is one."""

    async def RegisterWorker(
        self, request: pb.RegisterWorkerRequest, *, timeout: float
    ) -> pb.RegisterWorkerResponse: ...

    async def Heartbeat(self, request: pb.HeartbeatRequest, *, timeout: float) -> pb.HeartbeatResponse: ...

    async def DeregisterWorker(
        self, request: pb.DeregisterWorkerRequest, *, timeout: float
    ) -> pb.DeregisterWorkerResponse: ...


class Registration:
    """Registers, again whenever the controller does not know us, and renews the lease.

    ``profile`` is sent at each registration; ``running`` tells how many tasks have not ended.
    """

    def __init__(
        self,
        controller: Controller,
        worker_id: str,
        profile: Callable[[], pb.RegisterWorkerRequest],
        running: Callable[[], int],
        waits: Callable[[], Iterator[float]] = delays,
    ) -> None:
        self._controller = controller
        self._worker_id = worker_id
        self._profile = profile
        self._running = running
        self._waits = waits
        self._wake = asyncio.Event()
        self._heartbeat_seconds = 1.0
        self.epoch = 0
        """As the controller last told it; 0 = not told yet."""
        self.registered = asyncio.Event()
        self.draining = False
        self._leaving = False
        self._registering = asyncio.Lock()
        self.acknowledged_at: float | None = None
        """When the controller last answered, on the event loop's clock in seconds."""

    def drain(self) -> None:
        """Tells the controller at once that this worker takes no new jobs."""
        self.draining = True
        self._wake.set()

    async def run(self) -> None:
        """Registers and sends heartbeats until it is cancelled or this worker has left."""
        while not self._leaving:
            await self._register()
            await self._send_heartbeats()

    async def deregister(self, timeout_seconds: float) -> bool:
        """Takes this worker off the controller's list; False when it is not there, or when that could not be said.

        Takes twice ``timeout_seconds`` at most.
        """
        # No heartbeat from now on: the controller would not know us, and we would register again.
        self._leaving = True
        request = pb.DeregisterWorkerRequest(
            worker_id=self._worker_id, incarnation=self._profile().incarnation
        )
        with contextlib.suppress(TimeoutError):
            # A registration under way may be committed before its answer is here: it is not to outlive us.
            async with asyncio.timeout(timeout_seconds), self._registering:
                if not self.registered.is_set():
                    return False
        try:
            answer = await self._controller.DeregisterWorker(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            log.warning("deregistration_failed", grpc_code=error.code().name, reason=error.details())
            return False
        log.info("worker_deregistered")
        return answer.success

    async def _register(self) -> None:
        for wait in self._waits():
            if self._leaving:
                return
            request = self._profile()
            request.draining = self.draining
            try:
                async with self._registering:
                    answer = await self._controller.RegisterWorker(request, timeout=CALL_SECONDS)
                    self.registered.set()
            except grpc.aio.AioRpcError as error:
                log.warning(
                    "registration_failed",
                    grpc_code=error.code().name,
                    reason=error.details(),
                    retry_seconds=round(wait, 2),
                )
                await asyncio.sleep(wait)
                continue
            self._answered(answer.epoch)
            # Never faster than ten times a second, whatever the controller says.
            self._heartbeat_seconds = max(0.1, answer.heartbeat_seconds or 1.0)
            log.info("worker_registered", epoch=answer.epoch)
            return

    async def _send_heartbeats(self) -> None:
        """Returns when the controller does not know us."""
        waits: Iterator[float] | None = None
        while True:
            pause = self._heartbeat_seconds if waits is None else min(self._heartbeat_seconds, next(waits))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()
            if self._leaving:
                return
            try:
                known = await self._heartbeat()
            except grpc.aio.AioRpcError as error:
                if waits is None:
                    log.warning("heartbeat_failed", grpc_code=error.code().name, reason=error.details())
                waits = waits or self._waits()
                continue
            waits = None
            if not known:
                log.info("worker_unknown_to_controller")
                self.registered.clear()
                return

    async def _heartbeat(self) -> bool:
        request = pb.HeartbeatRequest(
            worker_id=self._worker_id,
            incarnation=self._profile().incarnation,
            epoch=self.epoch,
            running=self._running(),
            draining=self.draining,
        )
        timeout = max(1.0, min(CALL_SECONDS, 2 * self._heartbeat_seconds))
        answer = await self._controller.Heartbeat(request, timeout=timeout)
        if answer.known:
            self._answered(answer.epoch)
        return answer.known

    def _answered(self, epoch: int) -> None:
        self.epoch = epoch
        self.acknowledged_at = asyncio.get_running_loop().time()


def advertised_address(addr: str, port: int) -> str:
    """What to register: the configured host (a wildcard is replaced by the controller) and the bound port."""
    host = addr.rpartition(":")[0]
    return f"{'0.0.0.0' if host in ('', '*', '[::]', '0.0.0.0') else host}:{port}"


def capacity(
    limits_worker: Amounts, max_tasks: int, cgroup: Path = Path("/sys/fs/cgroup")
) -> pb.WorkerCapacity:
    """What this machine or container has for tasks: cores, bytes of memory, tasks at once."""
    cores = [float(len(os.sched_getaffinity(0)))]
    memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        cores.append(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError):
        memory.append(int((cgroup / "memory.max").read_text()))
    if "cpu" in limits_worker:
        cores.append(limits_worker["cpu"])
    if "memory" in limits_worker:
        memory.append(int(limits_worker["memory"]))
    return pb.WorkerCapacity(cpu=min(cores), memory_bytes=min(memory), tasks=max_tasks)
