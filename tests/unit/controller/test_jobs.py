from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from jobcluster_common.errors import (
    Conflict,
    Fault,
    Invalid,
    NotFound,
    QueueFull,
    RangeNotSatisfiable,
    Unavailable,
)
from jobcluster_controller.domain.bounds import Bounds
from jobcluster_controller.domain.changes import Report
from jobcluster_controller.domain.job import IoLimits, Job, Limits, Output, Task
from jobcluster_controller.domain.query import JobFilter, OutputEnd, OutputQuery, OutputStart
from jobcluster_controller.domain.states import Reason, State
from jobcluster_controller.domain.worker import Worker
from jobcluster_controller.jobs import Idempotency
from jobcluster_controller.store.failing import FailingStore
from jobcluster_controller.store.sqlite import SqliteStore

from tests.unit.controller.house import CALLER, Core, key
from tests.unit.controller.makers import Clock, spec

KEY = Idempotency("POST /v1/jobs", "k1", "hash-1")


@pytest.fixture
async def core() -> Core:
    return await Core().load()


async def test_a_job_is_given_to_a_ready_worker_durable_then_dispatched(core: Core) -> None:
    await core.add_worker()
    job = await core.start()
    assert (job.state, job.tasks[0].worker_id) == (State.STARTING, "w1")
    assert await core.store.job(job.job_id) == job
    assert [j.job_id for j, _ in core.dispatcher.started] == [job.job_id]


async def test_without_a_worker_it_waits_and_says_why(core: Core) -> None:
    job = await core.start()
    assert (job.state, job.queue_reason) == (State.QUEUED, "no worker is registered")
    await core.add_worker(draining=True)
    assert (await core.jobs.get(job.job_id)).queue_reason == "0 of 1 worker fit: 1 draining"
    jobs, _ = await core.jobs.list(JobFilter())
    assert jobs[0].queue_reason == "0 of 1 worker fit: 1 draining"


async def test_who_waits_is_placed_in_order_as_room_comes(core: Core) -> None:
    jobs = [await core.start() for _ in range(4)]
    await core.add_worker(tasks=2)
    await core.store.save()
    await asyncio.sleep(0)
    assert [j.job_id for j, _ in core.dispatcher.started] == [j.job_id for j in jobs[:2]]
    await core.tell(jobs[0], State.SUCCEEDED)
    await asyncio.sleep(0)
    assert [j.job_id for j, _ in core.dispatcher.started] == [j.job_id for j in jobs[:3]]
    assert core.registry.running("w1") == 2


async def test_one_that_wants_another_worker_does_not_hold_up_the_line(core: Core) -> None:
    await core.add_worker("w1", tasks=1)
    await core.add_worker("w2", tasks=1)
    await core.start(spec(worker_id="w1"))
    waits = await core.start(spec(worker_id="w1"))
    goes = await core.start()
    assert (waits.state, goes.tasks[0].worker_id) == (State.QUEUED, "w2")


async def test_a_newcomer_does_not_overtake_who_waits(core: Core) -> None:
    await core.add_worker(tasks=1)
    first, second = await core.start(), await core.start()
    third = await core.start(spec(worker_id="w1"))
    await core.tell(first, State.SUCCEEDED)
    assert (await core.jobs.get(second.job_id)).state is State.STARTING
    assert (await core.jobs.get(third.job_id)).state is State.QUEUED


async def test_a_worker_that_is_not_there_or_takes_no_jobs_is_refused_and_a_silent_one_waited_for(
    core: Core,
) -> None:
    with pytest.raises(NotFound):
        await core.start(spec(worker_id="w1"))
    await core.add_worker()
    await core.registry.unreachable("w1")
    waiting = await core.start(spec(worker_id="w1"))
    assert waiting.queue_reason == "0 of 1 worker fit: 1 unreachable"
    await core.registry.heartbeat("w1", "one", 1)
    assert (await core.jobs.get(waiting.job_id)).state is State.STARTING
    await core.registry.heartbeat("w1", "one", 1, draining=True)
    with pytest.raises(Conflict, match="draining"):
        await core.start(spec(worker_id="w1"))
    await core.registry.lost("w1")
    with pytest.raises(Conflict, match="lost"):
        await core.start(spec(worker_id="w1"))
    await core.add_worker()
    await core.registry.deregister("w1", "one")
    with pytest.raises(Conflict, match="gone"):
        await core.start(spec(worker_id="w1"))


async def test_what_could_never_fit_is_invalid(core: Core) -> None:
    await core.add_worker()
    with pytest.raises(Invalid, match="/limits/cpu: 64 is more than any known worker gives a task: 2;"):
        await core.start(spec(limits=Limits(cpu=64.0)))
    assert await core.jobs.list(JobFilter()) == ([], None)


async def test_a_job_that_only_a_silent_worker_allows_waits_for_it_and_holds_up_nobody(core: Core) -> None:
    await core.add_worker("small", tasks=1, most=Limits(memory=64 << 20))
    await core.add_worker("big", most=Limits(memory=256 << 20))
    await core.registry.unreachable("big")
    waits = await core.start(spec(limits=Limits(memory=128 << 20)))
    assert (
        waits.queue_reason == "0 of 2 workers fit: 1 unreachable, 1 with less for a task than asked (memory)"
    )
    first = await core.start(spec(limits=Limits(memory=64 << 20)))
    second = await core.start(spec(limits=Limits(memory=64 << 20)))
    assert (first.tasks[0].worker_id, second.state) == ("small", State.QUEUED)
    await core.tell(first, State.SUCCEEDED, source=core.source("small"))
    assert (await core.jobs.get(second.job_id)).tasks[0].worker_id == "small"
    await core.registry.heartbeat("big", "one", 1)
    assert (await core.jobs.get(waits.job_id)).tasks[0].worker_id == "big"


async def test_the_clusters_most_is_refused_before_anything_is_stored() -> None:
    core = await Core(bounds=Bounds(max=Limits(cpu=1.0, memory=64 << 20))).load()
    with pytest.raises(Invalid) as refused:
        await core.start(spec(limits=Limits(cpu=2.0, memory=128 << 20)))
    assert refused.value.faults == [
        Fault("/limits/cpu", "2 is more than this cluster allows: 1; ask for 1 or less"),
        Fault("/limits/memory", "128MiB is more than this cluster allows: 64MiB; ask for 64MiB or less"),
    ]
    assert await core.jobs.list(JobFilter()) == ([], None)


async def test_what_is_not_asked_for_is_the_clusters_default_or_its_most_and_binds_no_worker() -> None:
    bounds = Bounds(Limits(cpu=0.5), Limits(cpu=1.0, memory=1 << 40, io=IoLimits(write_bps=9)))
    core = await Core(bounds=bounds).load()
    await core.add_worker(most=Limits(memory=64 << 20))
    job = await core.start(spec(limits=Limits(pids=7), document={"command": "true", "limits": {"pids": 7}}))
    assert job.state is State.STARTING
    assert job.spec.limits == Limits(pids=7)
    assert job.spec.limits_default == Limits(cpu=0.5, memory=1 << 40, io=IoLimits(write_bps=9))
    assert job.spec.document == {
        "command": "true",
        "limits": {"pids": 7, "cpu": 0.5, "memory": 1 << 40, "io": {"write_bps": 9}},
    }
    assert await core.store.job(job.job_id) == job
    less = await core.start(spec(limits=Limits(cpu=0.1)))
    assert (less.spec.limits.cpu, less.spec.limits_default.cpu) == (0.1, None)


async def test_no_more_wait_than_are_allowed_to() -> None:
    core = await Core(queue_max=2).load()
    first = await core.start()
    await core.start()
    with pytest.raises(QueueFull):
        await core.start()
    await core.jobs.stop(first.job_id)
    await core.start()


async def test_the_same_key_and_body_is_the_same_job_and_another_body_is_refused(core: Core) -> None:
    job, created = await core.jobs.start(spec(), CALLER, KEY)
    again, created_again = await core.jobs.start(spec(), CALLER, KEY)
    assert (created, created_again, again.job_id) == (True, False, job.job_id)
    with pytest.raises(Invalid):
        await core.jobs.start(spec(), CALLER, Idempotency(KEY.route, KEY.key, "hash-2"))


async def test_a_repeat_is_answered_even_when_its_worker_is_gone_and_the_queue_full() -> None:
    core = await Core(queue_max=1).load()
    await core.add_worker()
    wanted = spec(worker_id="w1")
    job, _ = await core.jobs.start(wanted, CALLER, KEY)
    await core.registry.deregister("w1", "one")
    await core.start()
    again, created = await core.jobs.start(wanted, CALLER, KEY)
    assert (again.job_id, created) == (job.job_id, False)


async def test_of_fifty_at_once_with_one_key_exactly_one_is_created(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    core = await Core(store).load()
    await core.add_worker(tasks=0)

    async def post() -> tuple[str, bool] | None:
        while True:
            try:
                job, created = await core.jobs.start(spec(), CALLER, KEY)
            except Conflict:
                await asyncio.sleep(0.001)
                continue
            return job.job_id, created

    answers = await asyncio.gather(*(post() for _ in range(50)))
    assert len({answer[0] for answer in answers if answer}) == 1
    assert sum(answer[1] for answer in answers if answer) == 1
    assert len(core.dispatcher.started) == 1
    assert len((await store.list_jobs(JobFilter()))[0]) == 1
    await store.close()


async def test_while_the_first_is_in_flight_the_second_is_told_so(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    core = await Core(store).load()
    answers = await asyncio.gather(
        core.jobs.start(spec(), CALLER, KEY), core.jobs.start(spec(), CALLER, KEY), return_exceptions=True
    )
    assert isinstance(answers[0], tuple) and isinstance(answers[1], Conflict)
    await store.close()


async def test_a_caller_that_goes_away_leaves_a_whole_job(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    core = await Core(store).load()
    await core.add_worker()
    calling = asyncio.create_task(core.jobs.start(spec(), CALLER))
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await store.save()
    jobs, _ = await core.jobs.list(JobFilter())
    assert [j.state for j in jobs] == [State.STARTING]
    assert [j.job_id for j, _ in core.dispatcher.started] == [jobs[0].job_id]
    await store.close()


async def test_what_the_store_does_not_commit_is_not_acknowledged_not_dispatched_and_not_there() -> None:
    store = FailingStore(failing=False)
    core = await Core(store).load()
    await core.add_worker(tasks=1)
    store.failing = True
    with pytest.raises(Unavailable):
        await core.start()
    assert core.dispatcher.started == [] and core.registry.running("w1") == 0
    with pytest.raises(Unavailable):
        await core.jobs.start(spec(), CALLER, KEY)
    store.failing = False
    job, created = await core.jobs.start(spec(), CALLER, KEY)
    assert created and job.state is State.STARTING
    assert core.jobs.counts()[State.STARTING] == 1


async def test_an_end_that_is_not_committed_is_not_shown_and_can_be_told_again() -> None:
    store = FailingStore(failing=False)
    core = await Core(store).load()
    await core.add_worker()
    job = await core.start()
    store.failing = True
    with pytest.raises(Unavailable):
        await core.tell(job, State.SUCCEEDED)
    with pytest.raises(Unavailable):
        await core.jobs.stop(job.job_id)
    assert (await core.jobs.get(job.job_id)).state is State.STARTING
    assert core.dispatcher.stopped == []
    store.failing = False
    await core.tell(job, State.SUCCEEDED)
    assert (await core.jobs.get(job.job_id)).state is State.SUCCEEDED


@contextmanager
def another_writer(file: Path) -> Iterator[None]:
    """Holds the database's write lock meanwhile."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.rollback()


async def test_nothing_is_shown_or_sent_before_its_commit(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    core = await Core(store).load()
    await core.add_worker()
    with another_writer(tmp_path / "c.db"):  # the store's commit waits for it
        posting = asyncio.create_task(core.jobs.start(spec(), CALLER))
        await asyncio.sleep(0)
        (decided,) = core.ledger.active()
        assert core.dispatcher.started == []
        with pytest.raises(NotFound):
            await core.jobs.get(decided.job_id)
    job, _ = await posting
    assert len(core.dispatcher.started) == 1
    with another_writer(tmp_path / "c.db"):
        ending = core.books.reported(
            core.source(), [Report(job.job_id, Task(state=State.FAILED, reason=Reason.EXITED))]
        )
        assert (await core.jobs.get(job.job_id)).state is State.STARTING
    assert ending is not None
    await ending
    assert (await core.jobs.get(job.job_id)).state is State.FAILED
    await store.close()


async def test_a_placement_that_is_not_committed_is_tried_again_in_order() -> None:
    store = FailingStore(failing=False)
    core = await Core(store).load()
    await core.add_worker(tasks=1)
    jobs = [await core.start() for _ in range(3)]
    store.failing = True
    with pytest.raises(Unavailable):
        await core.tell(jobs[0], State.SUCCEEDED)
    assert [(await core.jobs.get(j.job_id)).state for j in jobs] == [
        State.STARTING,
        State.QUEUED,
        State.QUEUED,
    ]
    assert core.registry.running("w1") == 1
    store.failing = False
    for done in jobs[:2]:
        await core.tell(done, State.SUCCEEDED)
        await asyncio.sleep(0)
    assert [j.job_id for j, _ in core.dispatcher.started] == [j.job_id for j in jobs]


async def test_a_stop_of_a_queued_job_is_at_once_and_of_a_running_one_is_delivered(core: Core) -> None:
    queued = await core.start()
    stopped = await core.jobs.stop(queued.job_id)
    assert (stopped.state, stopped.tasks[0].reason) == (State.STOPPED, Reason.STOPPED)
    await core.add_worker()
    running = await core.start()
    await core.tell(running, State.RUNNING)
    stopping = await core.jobs.stop(running.job_id, "INT", 3.0)
    assert (stopping.state, stopping.stop_requested) == (State.STOPPING, ("INT", 3.0))
    assert [j.job_id for j, _ in core.dispatcher.stopped] == [running.job_id]
    again = await core.jobs.stop(running.job_id, "TERM", 3.0)
    assert again == stopping and len(core.dispatcher.stopped) == 1
    assert (await core.jobs.stop(running.job_id, "KILL")).state is State.STOPPING
    assert [j.stop_requested for j, _ in core.dispatcher.stopped] == [("INT", 3.0), ("KILL", 10.0)]
    await core.tell(running, State.STOPPED, Reason.STOPPED)
    ended = await core.jobs.stop(running.job_id)
    assert ended.state is State.STOPPED
    with pytest.raises(NotFound):
        await core.jobs.stop("none")


async def test_what_its_worker_stops_by_itself_is_left_its_grace_and_a_stop_of_it_is_delivered(
    core: Core,
) -> None:
    await core.add_worker()
    job = await core.start()
    await core.tell(job, State.RUNNING)
    await core.tell(job, State.STOPPING)
    core.books.all_told(core.source(), {key(job)})
    assert core.dispatcher.stopped == []
    await core.jobs.stop(job.job_id, "KILL")
    assert [j.stop_requested for j, _ in core.dispatcher.stopped] == [("KILL", 10.0)]
    await core.tell(job, State.FAILED, Reason.TIMED_OUT)
    ended = await core.jobs.get(job.job_id)
    assert (ended.state, ended.tasks[0].reason) == (State.FAILED, Reason.TIMED_OUT)


async def test_a_stop_at_an_unreachable_worker_is_kept_and_delivered_when_it_is_back(core: Core) -> None:
    await core.add_worker()
    job = await core.start()
    await core.tell(job, State.RUNNING)
    await core.registry.unreachable("w1")
    assert (await core.jobs.stop(job.job_id)).state is State.STOPPING
    core.dispatcher.stopped.clear()
    core.books.all_told(core.source(), {key(job)})
    assert [j.job_id for j, _ in core.dispatcher.stopped] == [job.job_id]


async def test_wait_answers_at_the_end_and_otherwise_after_its_time(core: Core) -> None:
    await core.add_worker()
    job = await core.start()
    assert (await core.jobs.wait(job.job_id, 0.01)).state is State.STARTING
    waiting = asyncio.create_task(core.jobs.wait(job.job_id, 30))
    await asyncio.sleep(0)
    await core.tell(job, State.RUNNING)
    assert not waiting.done()
    await core.tell(job, State.FAILED)
    assert (await waiting).state is State.FAILED
    assert (await core.jobs.wait(job.job_id, 30)).state is State.FAILED
    assert core.ledger._waiters == {}


async def test_a_job_is_found_on_the_worker_that_holds_it_only(core: Core) -> None:
    await core.add_worker()
    job = await core.start()
    assert (await core.jobs.get_on_worker("w1", job.job_id)).job_id == job.job_id
    for worker_id, job_id in (("w2", job.job_id), ("w1", "none"), ("\x00", "\x00")):
        with pytest.raises(NotFound):
            await core.jobs.get_on_worker(worker_id, job_id)


async def test_an_output_is_available_only_while_its_worker_may_answer(core: Core) -> None:
    await core.add_worker()
    job = await core.start()
    await core.tell(job, State.SUCCEEDED, output=Output(available=True))

    async def available() -> set[bool]:
        listed, _ = await core.jobs.list(JobFilter())
        return {found.tasks[0].output.available for found in (await core.jobs.get(job.job_id), *listed)}

    assert await available() == {True}
    await core.registry.unreachable("w1")
    assert await available() == {True}
    await core.registry.lost("w1")
    assert await available() == {False}


async def test_a_job_that_waits_for_a_worker_is_found_on_it(core: Core) -> None:
    await core.add_worker("w1", tasks=1)
    await core.add_worker("w2")
    await core.start(spec(worker_id="w1"))
    job = await core.start(spec(worker_id="w1"))
    assert (job.state, job.tasks[0].worker_id) == (State.QUEUED, None)
    assert (await core.jobs.get_on_worker("w1", job.job_id)).job_id == job.job_id
    assert job in (await core.jobs.list(JobFilter(worker_id="w1")))[0]
    with pytest.raises(NotFound):
        await core.jobs.get_on_worker("w2", job.job_id)


async def test_reports_of_an_older_life_or_epoch_or_of_another_worker_are_not_believed(core: Core) -> None:
    await core.add_worker("w1", incarnation="one")
    await core.add_worker("w2")
    old = core.source("w1")
    job = await core.start(spec(worker_id="w1"))
    await core.tell(job, State.SUCCEEDED, source=core.source("w2"))
    await core.tell(job, State.SUCCEEDED, attempt=2)
    await core.add_worker("w1", incarnation="two")
    await core.tell(job, State.SUCCEEDED, source=old)
    assert (await core.jobs.get(job.job_id)).state is State.STARTING


async def test_an_end_of_an_older_life_told_by_the_new_one_is_believed_and_the_rest_is_lost(
    core: Core,
) -> None:
    await core.add_worker(incarnation="one")
    told, untold = await core.start(), await core.start()
    await core.add_worker(incarnation="two")
    await core.tell(told, State.FAILED, Reason.SIGNALED)
    lost = core.books.all_told(core.source(), {key(told)})
    assert lost is not None
    await lost
    assert (await core.jobs.get(told.job_id)).tasks[0].reason is Reason.SIGNALED
    assert (await core.jobs.get(untold.job_id)).tasks[0].reason is Reason.WORKER_LOST


async def test_a_start_that_never_arrived_is_sent_again_and_what_was_running_is_lost(core: Core) -> None:
    await core.add_worker()
    starting, running = await core.start(), await core.start()
    await core.tell(running, State.RUNNING)
    core.dispatcher.started.clear()
    lost = core.books.all_told(core.source(), set())
    assert lost is not None
    await lost
    assert [j.job_id for j, _ in core.dispatcher.started] == [starting.job_id]
    assert (await core.jobs.get(running.job_id)).state is State.LOST


async def test_a_refused_start_goes_to_another_worker_or_fails_saying_why(core: Core) -> None:
    await core.add_worker("w1")
    first, second = await core.start(), await core.start()
    await core.add_worker("w2")
    again = core.books.refused(core.source("w1"), key(first), True, "draining")
    final = core.books.refused(core.source("w1"), key(second), False, "no such command")
    assert again is not None and final is not None
    await asyncio.gather(again, final)
    await core.store.save()
    moved = await core.jobs.get(first.job_id)
    assert (moved.state, moved.tasks[0].worker_id) == (State.STARTING, "w2")
    failed = await core.jobs.get(second.job_id)
    assert (failed.tasks[0].reason, failed.tasks[0].error_text) == (Reason.START_FAILED, "no such command")


async def test_while_the_only_worker_refuses_starts_the_job_waits_and_says_why(core: Core) -> None:
    await core.add_worker("w1")
    job = await core.start()
    again = core.books.refused(core.source("w1"), key(job), True, "ENOSPC: /data: 0 bytes are free")
    assert again is not None
    await again
    waiting = await core.jobs.get(job.job_id)
    assert (waiting.state, waiting.queue_reason) == (
        State.QUEUED,
        "0 of 1 worker fit: 1 just refused a start (ENOSPC: /data: 0 bytes are free)",
    )


async def test_what_must_not_live_is_told_from_what_may(core: Core) -> None:
    await core.add_worker()
    job = await core.start()
    live = Report(job.job_id, Task(state=State.RUNNING))
    assert not await core.books.unwanted(core.source(), live)
    assert not await core.books.unwanted(core.source(), Report("its own", Task(state=State.RUNNING)))
    assert await core.books.unwanted(core.source(), Report(job.job_id, Task(state=State.RUNNING, attempt=2)))
    await core.registry.lost("w1")
    await core.add_worker()
    assert (await core.jobs.get(job.job_id)).state is State.LOST
    assert await core.books.unwanted(core.source(), live)


@pytest.mark.parametrize("way", ["lost", "deregistered"])
async def test_jobs_of_a_worker_that_is_lost_or_gone_are_lost(core: Core, way: str) -> None:
    await core.add_worker()
    running, starting = await core.start(), await core.start()
    await core.tell(running, State.RUNNING)
    if way == "lost":
        await core.registry.lost("w1")
    else:
        await core.registry.deregister("w1", "one")
    for job in (running, starting):
        ended = await core.jobs.get(job.job_id)
        assert (ended.state, ended.tasks[0].reason) == (State.LOST, Reason.WORKER_LOST)
    assert core.registry.running("w1") == 0


async def test_after_a_restart_all_is_there_in_order(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    core = await Core(store).load()
    await core.add_worker(tasks=2)
    running, stopping = await core.start(), await core.start()
    await core.tell(running, State.RUNNING)
    await core.jobs.stop(stopping.job_id, "TERM", 60.0)
    await core.jobs.stop(stopping.job_id, "INT", 2.0)
    await core.jobs.stop(stopping.job_id, "TERM", 60.0)
    queued = [await core.start() for _ in range(3)]
    await store.close()

    store = await SqliteStore.open(tmp_path / "c.db")
    core = await Core(store).load()
    assert (await core.jobs.get(running.job_id)).state is State.RUNNING
    assert (await core.jobs.get(stopping.job_id)).stop_requested == ("INT", 2.0)
    assert core.registry.running("w1") == 2
    assert core.dispatcher.started == []
    await core.registry.heartbeat("w1", "one", 1)
    core.books.all_told(core.source(), {key(running)})
    assert [j.job_id for j, _ in core.dispatcher.stopped] == [stopping.job_id]
    await core.tell(running, State.SUCCEEDED)
    await store.save()
    assert (await core.jobs.get(queued[0].job_id)).state is State.STARTING
    assert (await core.jobs.get(queued[1].job_id)).state is State.QUEUED
    await store.close()


async def test_jobs_on_a_worker_that_went_while_the_controller_was_dying_are_lost_at_its_start(
    core: Core,
) -> None:
    await core.add_worker()
    job = await core.start()
    gone = core.registry.get("w1").evolve(state="gone")
    await core.store.save(workers=[gone])
    restarted = await Core(core.store).load()
    assert (await restarted.jobs.wait(job.job_id, 5)).tasks[0].reason is Reason.WORKER_LOST


async def items_of(core: Core, job: Job, query: OutputQuery) -> list[object]:
    return [item async for item in core.jobs.open_output(job.job_id, 0, query)]


async def test_the_output_of_a_job_that_ran_nowhere_is_empty(core: Core) -> None:
    job = await core.start()
    assert await items_of(core, job, OutputQuery()) == [
        OutputStart(0, 0, False),
        OutputEnd(0, False, job.tasks[0]),
    ]
    following = asyncio.create_task(items_of(core, job, OutputQuery(follow=True)))
    with pytest.raises(RangeNotSatisfiable):
        await items_of(core, job, OutputQuery(offset=1))
    stopped = await core.jobs.stop(job.job_id)
    assert await following == [OutputStart(0, 0, True), OutputEnd(0, True, stopped.tasks[0])]
    with pytest.raises(NotFound):
        await items_of(core, job.evolve(job_id="none"), OutputQuery())
    with pytest.raises(NotFound):
        async for _ in core.jobs.open_output(job.job_id, 1, OutputQuery()):
            pass


async def test_a_list_does_not_look_at_every_worker_for_every_job(core: Core) -> None:
    for number in range(20):
        await core.add_worker(f"w{number}", draining=True)
    for _ in range(20):
        await core.start()
    looks = 0
    before = core.registry.all

    def counted() -> list[Worker]:
        nonlocal looks
        looks += 1
        return before()

    core.registry.all = counted  # type: ignore[method-assign]
    await core.jobs.list(JobFilter(limit=20))
    assert looks == 1


async def test_clocks_are_the_ones_given() -> None:
    clock = Clock()
    core = await Core(clock=clock).load()
    clock.pass_by(5)
    assert (await core.start()).created_at == clock.now()
