from __future__ import annotations

import pytest
from jobcluster_common.errors import Unavailable
from jobcluster_controller.domain.states import Reason, State, WorkerState
from jobcluster_controller.monitor import own_silence, verdict
from jobcluster_controller.registry import Lease
from jobcluster_controller.store.failing import FailingStore

from tests.unit.controller.house import Core

LEASE = Lease(heartbeat_seconds=2, unreachable_seconds=10, lost_seconds=60)


@pytest.mark.parametrize(
    ("silent", "state"),
    [
        (0, WorkerState.READY),
        (10, WorkerState.READY),
        (10.1, WorkerState.UNREACHABLE),
        (60, WorkerState.UNREACHABLE),
        (60.1, WorkerState.LOST),
    ],
)
def test_silence_is_judged_by_the_lease(silent: float, state: WorkerState) -> None:
    assert verdict(silent, LEASE) is state


def test_a_look_that_is_late_was_our_own_silence() -> None:
    assert own_silence(1.0, 1.0) == 0
    assert own_silence(2.0, 1.0) == 0
    assert own_silence(62.0, 1.0) == 60


async def look_on(core: Core, seconds: int) -> None:
    for _ in range(seconds):
        core.clock.pass_by(1)
        await core.monitor.tick()


async def test_a_silent_worker_is_unreachable_then_lost_with_its_jobs() -> None:
    core = await Core().load()
    await core.add_worker()
    job = await core.start()
    await look_on(core, 10)
    assert core.registry.get("w1").state is WorkerState.READY
    await look_on(core, 1)
    assert core.registry.get("w1").state is WorkerState.UNREACHABLE
    await look_on(core, 49)
    assert (await core.jobs.get(job.job_id)).state is State.STARTING
    await look_on(core, 1)
    assert core.registry.get("w1").state is WorkerState.LOST
    assert core.registry.get("w1").epoch == 2
    assert (await core.jobs.get(job.job_id)).tasks[0].reason is Reason.WORKER_LOST


async def test_one_that_beats_is_left_alone() -> None:
    core = await Core().load()
    await core.add_worker()
    for _ in range(40):
        await look_on(core, 5)
        assert await core.registry.heartbeat("w1", "one", 1) is not None
    assert core.registry.get("w1").state is WorkerState.READY


async def test_a_controller_that_was_frozen_blames_nobody() -> None:
    core = await Core().load()
    await core.add_worker()
    await look_on(core, 3)
    core.clock.pass_by(600)
    await core.monitor.tick()
    assert core.registry.get("w1").state is WorkerState.READY
    await look_on(core, 61)
    assert core.registry.get("w1").state is WorkerState.LOST


async def test_what_the_store_refused_is_done_at_a_later_look() -> None:
    store = FailingStore(failing=False)
    core = await Core(store).load()
    await core.add_worker()
    job = await core.start()
    await look_on(core, 60)
    store.failing = True
    with pytest.raises(Unavailable):
        await look_on(core, 1)
    assert core.registry.get("w1").state is WorkerState.UNREACHABLE
    store.failing = False
    await look_on(core, 1)
    assert core.registry.get("w1").state is WorkerState.LOST
    assert (await core.jobs.get(job.job_id)).state is State.LOST
