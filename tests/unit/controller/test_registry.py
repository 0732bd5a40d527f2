from __future__ import annotations

import pytest
from jobcluster_common.errors import Conflict, NotFound, Unavailable
from jobcluster_controller.domain.changes import Source
from jobcluster_controller.domain.states import WorkerState
from jobcluster_controller.domain.worker import Worker
from jobcluster_controller.registry import Registry
from jobcluster_controller.store import Store
from jobcluster_controller.store.failing import FailingStore
from jobcluster_controller.store.memory import MemoryStore

from tests.unit.controller.makers import Clock


class House:
    def __init__(self, store: Store | None = None) -> None:
        self.clock = Clock()
        self.store = store or MemoryStore()
        self.holds: dict[str, int] = {}
        self.told: list[tuple[str, WorkerState]] = []
        self.registry = self.again()

    def again(self) -> Registry:
        """A registry on the same store, as after a restart."""
        registry = Registry(self.store, lambda w: self.holds.get(w, 0), self.clock, self.clock.now)

        async def listen(worker: Worker) -> None:
            self.told.append((worker.worker_id, worker.state))

        registry.listeners.append(listen)
        return registry


@pytest.fixture
async def house() -> House:
    return House()


async def test_a_registered_worker_is_ready_and_durable(house: House) -> None:
    worker = await house.registry.register("w1", "h:1", "one", labels={"a": "b"})
    assert (worker.state, worker.epoch, worker.labels) == (WorkerState.READY, 1, {"a": "b"})
    assert await house.store.workers() == [worker]
    assert house.told == [("w1", WorkerState.READY)]


async def test_the_same_again_is_the_same_registration(house: House) -> None:
    first = await house.registry.register("w1", "h:1", "one")
    house.clock.pass_by(5)
    again = await house.registry.register("w1", "h:2", "one")
    assert (again.epoch, again.registered_at) == (first.epoch, first.registered_at)
    assert [w.address for w in house.registry.list()] == ["h:2"]


async def test_one_that_is_replaced_comes_not_back(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    await house.registry.register("w1", "h:2", "two")
    with pytest.raises(Conflict):
        await house.registry.register("w1", "h:1", "one")
    assert await house.registry.heartbeat("w1", "one", 1) is None
    assert house.registry.get("w1").incarnation == "two"


async def test_one_that_deregistered_comes_not_back_but_its_next_life_does(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    await house.registry.deregister("w1", "one")
    assert house.registry.list() == []
    assert [w.worker_id for w in house.registry.list(WorkerState.GONE)] == ["w1"]
    assert await house.registry.heartbeat("w1", "one", 1) is None
    with pytest.raises(Conflict):
        await house.registry.register("w1", "h:1", "one")
    assert (await house.registry.register("w1", "h:1", "two")).state is WorkerState.READY


async def test_a_late_deregistration_of_an_older_life_is_ignored(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    await house.registry.register("w1", "h:1", "two")
    await house.registry.deregister("w1", "one")
    assert house.registry.get("w1").state is WorkerState.READY
    with pytest.raises(NotFound):
        await house.registry.deregister("w2", "one")


async def test_a_client_without_incarnations_may_come_and_go_as_it_likes(house: House) -> None:
    for _ in range(3):
        await house.registry.register("w1", "h:1", "")
        await house.registry.deregister("w1", "")


async def test_lost_raises_the_epoch_and_what_was_before_is_not_believed(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    old = Source("w1", "one", 1)
    assert house.registry.believes(old)
    await house.registry.lost("w1")
    assert not house.registry.believes(old)
    assert await house.registry.heartbeat("w1", "one", 1) is None
    back = await house.registry.register("w1", "h:1", "one")
    assert (back.state, back.epoch) == (WorkerState.READY, 2)
    assert not house.registry.believes(old) and house.registry.believes(Source("w1", "one", 2))


async def test_a_heartbeat_renews_the_lease_and_brings_one_back_that_was_unreachable(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    house.clock.pass_by(11)
    await house.registry.unreachable("w1")
    assert house.registry.silent("w1") == 11
    worker = await house.registry.heartbeat("w1", "one", 1)
    assert worker is not None and worker.state is WorkerState.READY
    assert house.registry.silent("w1") == 0
    assert house.told[-2:] == [("w1", WorkerState.UNREACHABLE), ("w1", WorkerState.READY)]


async def test_a_heartbeat_with_the_wrong_epoch_or_of_nobody_must_register(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    assert await house.registry.heartbeat("w1", "one", 2) is None
    assert await house.registry.heartbeat("w2", "one", 1) is None


async def test_one_that_drains_stays_so_until_it_registers_anew(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    for draining in (True, False):
        worker = await house.registry.heartbeat("w1", "one", 1, draining)
        assert worker is not None and worker.state is WorkerState.DRAINING
    await house.registry.unreachable("w1")
    worker = await house.registry.heartbeat("w1", "one", 1)
    assert worker is not None and worker.state is WorkerState.DRAINING
    assert (await house.registry.register("w1", "h:1", "one")).state is WorkerState.READY


async def test_after_a_restart_all_are_unreachable_with_their_lease_in_full(house: House) -> None:
    await house.registry.register("w1", "h:1", "one")
    await house.registry.register("w2", "h:2", "one", draining=True)
    await house.registry.register("w3", "h:3", "one")
    await house.registry.lost("w3")
    house.clock.pass_by(1000)
    registry = house.again()
    await registry.load()
    assert {w.worker_id: w.state for w in registry.list()} == {
        "w1": WorkerState.UNREACHABLE,
        "w2": WorkerState.UNREACHABLE,
        "w3": WorkerState.LOST,
    }
    assert registry.silent("w1") == 0
    for worker_id, state in (("w1", WorkerState.READY), ("w2", WorkerState.DRAINING)):
        worker = await registry.heartbeat(worker_id, "one", 1)
        assert worker is not None and worker.state is state


async def test_what_cannot_be_committed_has_not_happened(house: House) -> None:
    failing = FailingStore(failing=False)
    house = House(failing)
    await house.registry.register("w1", "h:1", "one")
    failing.failing = True
    with pytest.raises(Unavailable):
        await house.registry.register("w2", "h:2", "one")
    with pytest.raises(Unavailable):
        await house.registry.lost("w1")
    with pytest.raises(Unavailable):
        await house.registry.deregister("w1", "one")
    assert [(w.worker_id, w.state, w.epoch) for w in house.registry.list()] == [("w1", WorkerState.READY, 1)]
    assert house.told == [("w1", WorkerState.READY)]
    assert await house.registry.heartbeat("w1", "one", 1) is not None


async def test_gone_and_lost_ones_are_forgotten_after_a_day_unless_they_hold_something(house: House) -> None:
    for worker_id in ("gone", "lost", "holds", "lives"):
        await house.registry.register(worker_id, "h:1", "one")
    await house.registry.deregister("gone", "one")
    await house.registry.lost("lost")
    await house.registry.lost("holds")
    house.holds["holds"] = 1
    house.clock.pass_by(86_390)
    await house.registry.forget()
    assert len(house.registry.all()) == 4
    house.clock.pass_by(20)
    await house.registry.forget()
    assert {w.worker_id for w in house.registry.all()} == {"holds", "lives"}
    assert {w.worker_id for w in await house.store.workers()} == {"holds", "lives"}
