from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobcluster_common import tls  # noqa: F401  (before grpc)

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import controller_pb2 as pb
from jobcluster_worker.backoff import delays
from jobcluster_worker.registration import Registration, advertised_address, capacity


class Controller:
    """A controller that answers as it is told; ``down`` makes every call fail as an unreachable one does."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.changed = asyncio.Event()
        self.down = False
        self.known = True
        self.epoch = 7

    def _answer(self, request: Any, timeout: float) -> None:
        assert 0 < timeout <= 5
        self.heard.append(request)
        self.changed.set()
        if self.down:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "down"
            )

    async def RegisterWorker(
        self, request: pb.RegisterWorkerRequest, *, timeout: float
    ) -> pb.RegisterWorkerResponse:
        self._answer(request, timeout)
        self.known = True
        return pb.RegisterWorkerResponse(
            success=True, worker_id="w", epoch=self.epoch, heartbeat_seconds=0.1, lease_seconds=60
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, *, timeout: float) -> pb.HeartbeatResponse:
        self._answer(request, timeout)
        return pb.HeartbeatResponse(known=self.known, epoch=self.epoch)

    async def DeregisterWorker(
        self, request: pb.DeregisterWorkerRequest, *, timeout: float
    ) -> pb.DeregisterWorkerResponse:
        self._answer(request, timeout)
        return pb.DeregisterWorkerResponse(success=True)

    async def until(self, is_so: Callable[[Any], bool], count: int = 1) -> list[Any]:
        async with asyncio.timeout(20):
            while len(found := [request for request in self.heard if is_so(request)]) < count:
                self.changed.clear()
                await self.changed.wait()
        return found


def is_registration(request: object) -> bool:
    return isinstance(request, pb.RegisterWorkerRequest)


def is_heartbeat(request: object) -> bool:
    return isinstance(request, pb.HeartbeatRequest)


def soon() -> Iterator[float]:
    return itertools.repeat(0.01)


@pytest.fixture
async def controller() -> Controller:
    return Controller()


def registration_with(controller: Controller) -> Registration:
    return Registration(
        controller, "w", lambda: pb.RegisterWorkerRequest(incarnation="i", address="a:1"), lambda: 3, soon
    )


@pytest.fixture
async def registration(controller: Controller) -> AsyncIterator[Registration]:
    registration = registration_with(controller)
    running = asyncio.create_task(registration.run())
    yield registration
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_registers_as_soon_as_the_controller_is_there_and_then_sends_heartbeats(
    controller: Controller,
) -> None:
    controller.down = True
    registration = registration_with(controller)
    running = asyncio.create_task(registration.run())
    await controller.until(is_registration, 3)
    assert (registration.registered.is_set(), registration.epoch) == (False, 0)
    controller.down = False
    beat = (await controller.until(is_heartbeat))[0]
    assert (registration.registered.is_set(), registration.epoch) == (True, 7)
    assert (beat.worker_id, beat.incarnation, beat.epoch, beat.running, beat.draining) == (
        "w",
        "i",
        7,
        3,
        False,
    )
    assert registration.acknowledged_at is not None
    running.cancel()


async def test_it_registers_again_when_the_controller_does_not_know_it(
    controller: Controller, registration: Registration
) -> None:
    await controller.until(is_heartbeat)
    controller.known, controller.epoch = False, 8
    await controller.until(is_registration, 2)
    await asyncio.wait_for(registration.registered.wait(), 10)
    assert registration.epoch == 8


async def test_heartbeats_go_on_through_an_outage_without_a_new_registration(
    controller: Controller, registration: Registration
) -> None:
    await controller.until(is_heartbeat)
    controller.down = True
    controller.heard.clear()
    await controller.until(is_heartbeat, 3)
    controller.down, controller.epoch = False, 9
    controller.heard.clear()
    await controller.until(lambda request: is_heartbeat(request) and request.epoch == 9)
    assert not list(filter(is_registration, controller.heard))


async def test_draining_is_told_at_once_and_at_a_new_registration(
    controller: Controller, registration: Registration
) -> None:
    await controller.until(is_heartbeat)
    registration.drain()
    await controller.until(lambda request: is_heartbeat(request) and request.draining)
    controller.known = False
    assert (await controller.until(is_registration, 2))[1].draining


async def test_after_its_leave_it_never_registers_again(
    controller: Controller, registration: Registration
) -> None:
    await controller.until(is_heartbeat)
    controller.known = False
    controller.heard.clear()
    assert await registration.deregister(1.0)
    leave = controller.heard[0]
    assert isinstance(leave, pb.DeregisterWorkerRequest)
    assert (leave.worker_id, leave.incarnation) == ("w", "i")
    registration.drain()  # wakes the loop
    for _ in range(20):
        await asyncio.sleep(0)
    assert not list(filter(is_registration, controller.heard))


async def test_a_leave_that_cannot_be_said_is_no_failure(
    controller: Controller, registration: Registration
) -> None:
    await controller.until(is_heartbeat)
    controller.down = True
    assert not await registration.deregister(1.0)


def test_waits_double_up_to_a_bound_and_differ_between_workers() -> None:
    waits = list(itertools.islice(delays(0.2, 3.0, source=random.Random(1)), 20))
    bounds = [min(3.0, 0.2 * 2**n) for n in range(20)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert waits != list(itertools.islice(delays(0.2, 3.0, source=random.Random(2)), 20))


@pytest.mark.parametrize(
    ("addr", "address"),
    [
        ("0.0.0.0:0", "0.0.0.0:99"),
        ("[::]:7444", "0.0.0.0:99"),
        ("127.0.0.1:0", "127.0.0.1:99"),
        ("worker.example:7444", "worker.example:99"),
    ],
)
def test_the_advertised_address_has_the_bound_port_and_a_wildcard_stays_one(addr: str, address: str) -> None:
    assert advertised_address(addr, 99) == address


def test_capacity_is_the_least_of_machine_container_and_settings(tmp_path: Path) -> None:
    machine = capacity({}, 5, tmp_path)
    assert (machine.cpu >= 1, machine.memory_bytes > 1 << 20, machine.tasks) == (True, True, 5)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    contained = capacity({}, 5, tmp_path)
    assert (contained.cpu, contained.memory_bytes) == (0.5, 1 << 20)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert capacity({"cpu": 0.25, "memory": 4096}, 5, tmp_path).memory_bytes == 4096


async def test_a_worker_that_leaves_while_it_registers_does_not_stay_on_the_list(
    controller: Controller,
) -> None:
    answered = asyncio.Event()
    register = controller.RegisterWorker

    async def slow(request: pb.RegisterWorkerRequest, *, timeout: float) -> pb.RegisterWorkerResponse:
        answer = await register(request, timeout=timeout)
        await answered.wait()
        return answer

    controller.RegisterWorker = slow  # type: ignore[method-assign]
    registration = registration_with(controller)
    running = asyncio.create_task(registration.run())
    await controller.until(is_registration)
    leaving = asyncio.create_task(registration.deregister(5.0))
    await asyncio.sleep(0)
    answered.set()
    assert await leaving
    assert isinstance(controller.heard[-1], pb.DeregisterWorkerRequest)
    running.cancel()


async def test_a_worker_that_never_registered_has_nothing_to_take_back(controller: Controller) -> None:
    assert not await registration_with(controller).deregister(5.0)
    assert controller.heard == []
