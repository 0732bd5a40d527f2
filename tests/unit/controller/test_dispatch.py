"""The core against a worker's real gRPC server, over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jobcluster.v1 import common_pb2
from jobcluster_common.errors import Gone, NotFound, RangeNotSatisfiable, Unavailable
from jobcluster_controller.core import Core, running
from jobcluster_controller.domain.job import Job
from jobcluster_controller.domain.query import (
    OutputChunk,
    OutputCut,
    OutputEnd,
    OutputItem,
    OutputQuery,
    OutputStart,
)
from jobcluster_controller.domain.states import Reason, State
from jobcluster_controller.domain.worker import Capacity
from jobcluster_controller.registry import Lease
from jobcluster_controller.store.failing import FailingStore
from jobcluster_controller.store.sqlite import SqliteStore

from tests.unit.controller.house import CALLER
from tests.unit.controller.makers import eventually, spec
from tests.unit.controller.worker_twin import Trust, WorkerTwin, serving


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust(tmp_path_factory.mktemp("certs"))


@pytest.fixture
async def core(tmp_path: Path, trust: Trust) -> AsyncIterator[Core]:
    store = await SqliteStore.open(tmp_path / "c.db")
    async with running(store, trust.controller, Lease()) as core:
        yield core


@pytest.fixture
async def twin(trust: Trust) -> AsyncIterator[WorkerTwin]:
    async with serving(WorkerTwin(), trust) as twin:
        yield twin


async def register(core: Core, twin: WorkerTwin, tasks: int = 1000) -> None:
    await core.registry.register(
        twin.worker_id, twin.address, twin.incarnation, capacity=Capacity(tasks=tasks)
    )


async def synced(core: Core, twin: WorkerTwin) -> None:
    await register(core, twin)
    await eventually(lambda: twin.streams)


async def start(core: Core) -> Job:
    return (await core.jobs.start(spec(), CALLER))[0]


def key(job: Job) -> tuple[str, int, int]:
    return (job.job_id, 0, 1)


async def state_of(core: Core, job: Job) -> State:
    return (await core.jobs.get(job.job_id)).state


async def becomes(core: Core, job: Job, state: State) -> None:
    """Waits until the job is in that state.

    :raises TimeoutError: if it is not within ten seconds.
    """
    async with asyncio.timeout(10):
        while await state_of(core, job) is not state:  # noqa: ASYNC110  (a wait would hide lost wake-ups)
            await asyncio.sleep(0.005)


async def test_a_job_is_started_and_its_end_recorded_and_acknowledged(core: Core, twin: WorkerTwin) -> None:
    await register(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    twin.end(key(job), "failed", exit_code=7)
    ended = await core.jobs.wait(job.job_id, 10)
    assert (ended.state, ended.tasks[0].exit_code) == (State.FAILED, 7)
    await eventually(lambda: key(job) in twin.acknowledged)
    assert twin.starts == [key(job)]


async def test_a_running_job_is_shown_with_what_it_uses_and_has_written_now(
    core: Core, twin: WorkerTwin
) -> None:
    await register(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    status = twin.tasks[key(job)]
    status.usage.cpu_seconds, status.output.merged.bytes = 1.5, 7
    task = (await core.jobs.observed(await core.jobs.get(job.job_id))).tasks[0]
    assert (task.state, task.usage.cpu_seconds, task.output.merged.bytes) == (State.RUNNING, 1.5, 7)
    assert twin.queries == 1
    await asyncio.gather(*(core.jobs.observed(job.with_task(task)) for _ in range(20)))
    assert twin.queries <= 2  # many looks, one question


async def test_an_end_that_is_not_durable_yet_is_not_shown_by_a_look(core: Core, twin: WorkerTwin) -> None:
    await register(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    twin.tasks[key(job)] = common_pb2.TaskStatus(
        job_id=job.job_id, attempt=1, state="succeeded", reason="exited"
    )
    held = await core.jobs.get(job.job_id)
    assert await core.jobs.observed(held) == held


async def test_a_worker_that_does_not_answer_leaves_the_job_as_it_was_told_of(
    core: Core, twin: WorkerTwin
) -> None:
    await register(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    del twin.tasks[key(job)]
    held = await core.jobs.get(job.job_id)
    assert await core.jobs.observed(held) == held


async def test_a_look_at_a_worker_that_hangs_or_comes_anew_meanwhile_ends_too(
    core: Core, twin: WorkerTwin
) -> None:
    await register(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    held = await core.jobs.get(job.job_id)
    twin.hold_queries.clear()
    async with asyncio.timeout(10):
        assert await core.jobs.observed(held) == held
    looking = asyncio.create_task(core.jobs.observed(held))
    await eventually(lambda: twin.queries == 2)
    twin.incarnation = "two"
    await register(core, twin)  # the link of before is closed, and its calls with it
    assert await looking == held


async def test_a_job_that_waits_for_the_worker_is_started_when_its_stream_is_up(
    core: Core, twin: WorkerTwin
) -> None:
    job = await start(core)
    assert job.state is State.QUEUED
    await register(core, twin)
    await eventually(lambda: twin.starts == [key(job)])


async def test_many_jobs_go_in_few_calls_and_all_end(core: Core, twin: WorkerTwin) -> None:
    twin.end_at_once = True
    await synced(core, twin)
    jobs = await asyncio.gather(*(start(core) for _ in range(300)))
    ended = await asyncio.gather(*(core.jobs.wait(job.job_id, 20) for job in jobs))
    assert {job.state for job in ended} == {State.SUCCEEDED}
    assert sorted(twin.starts) == sorted(key(job) for job in jobs)
    assert len(twin.batches) < 60
    await eventually(lambda: len(twin.acknowledged) == 300)
    assert core.registry.running("w1") == 0


async def test_a_start_without_an_answer_is_sent_again_and_starts_once(core: Core, twin: WorkerTwin) -> None:
    await synced(core, twin)
    twin.unanswered = 1
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    assert twin.starts == [key(job)] and len(twin.batches) == 2


async def test_a_start_whose_fate_is_unknown_is_settled_when_the_stream_is_back(
    core: Core, twin: WorkerTwin
) -> None:
    await synced(core, twin)
    twin.hold_starts.clear()
    job = await start(core)
    await eventually(lambda: twin.batches)
    twin.break_stream()
    await eventually(lambda: twin.streams == 2)
    assert await state_of(core, job) is State.STARTING
    twin.hold_starts.set()
    await becomes(core, job, State.RUNNING)
    assert twin.starts == [key(job)]


async def test_ends_told_while_the_stream_was_down_are_told_at_the_next(core: Core, twin: WorkerTwin) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    twin.break_stream()
    twin.end(key(job))
    assert (await core.jobs.wait(job.job_id, 10)).state is State.SUCCEEDED
    await eventually(lambda: key(job) in twin.acknowledged)


async def test_what_is_running_and_not_told_any_more_is_lost(core: Core, twin: WorkerTwin) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    twin.tasks.clear()
    twin.break_stream()
    assert (await core.jobs.wait(job.job_id, 10)).tasks[0].reason is Reason.WORKER_LOST


async def test_a_stop_is_delivered_and_the_end_is_the_workers(core: Core, twin: WorkerTwin) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    assert (await core.jobs.stop(job.job_id, "INT", 3.5)).state is State.STOPPING
    assert (await core.jobs.wait(job.job_id, 10)).state is State.STOPPED
    assert [(s.signal, s.grace_seconds, s.attempt) for s in twin.stops] == [("INT", 3.5, 1)]


async def test_a_stricter_stop_follows_the_first_and_a_laxer_one_does_not(
    core: Core, twin: WorkerTwin
) -> None:
    twin.ends_by = frozenset({"KILL"})
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    await core.jobs.stop(job.job_id, "TERM", 60.0)
    await core.jobs.stop(job.job_id, "INT", 60.0)
    await eventually(lambda: len(twin.stops) == 1)
    await core.jobs.stop(job.job_id, "TERM", 30.0)
    await eventually(lambda: len(twin.stops) == 2)
    await core.jobs.stop(job.job_id, "KILL", 10.0)
    assert (await core.jobs.wait(job.job_id, 10)).state is State.STOPPED
    assert [(s.signal, s.grace_seconds) for s in twin.stops] == [
        ("TERM", 60.0),
        ("TERM", 30.0),
        ("KILL", 10.0),
    ]


async def test_a_stop_that_overtakes_its_start_means_that_it_never_starts(
    core: Core, twin: WorkerTwin
) -> None:
    await synced(core, twin)
    twin.hold_starts.clear()
    job = await start(core)
    await eventually(lambda: twin.batches)
    await core.jobs.stop(job.job_id)
    ended = await core.jobs.wait(job.job_id, 10)
    assert (ended.state, ended.tasks[0].reason) == (State.STOPPED, Reason.STOPPED)
    twin.hold_starts.set()
    await asyncio.sleep(0.05)
    assert twin.starts == []


async def test_a_stop_for_a_worker_that_is_away_is_delivered_when_it_is_back(
    core: Core, trust: Trust
) -> None:
    twin = WorkerTwin()
    async with serving(twin, trust):
        await synced(core, twin)
        job = await start(core)
        await becomes(core, job, State.RUNNING)
    for how in (("TERM", 60.0), ("INT", 3.0), ("TERM", 60.0)):
        assert (await core.jobs.stop(job.job_id, *how)).state is State.STOPPING
    async with serving(twin, trust, port=twin.port):
        assert (await core.jobs.wait(job.job_id, 10)).state is State.STOPPED
    assert {(s.signal, s.grace_seconds) for s in twin.stops} == {("INT", 3.0)}


@pytest.mark.parametrize("code", ["draining", "unavailable", "epoch"])
async def test_a_refused_job_goes_to_another_worker(
    core: Core, twin: WorkerTwin, trust: Trust, code: str
) -> None:
    twin.refuse = code
    await synced(core, twin)
    job = await start(core)
    other = WorkerTwin("w2")
    async with serving(other, trust):
        await synced(core, other)
        await eventually(lambda: other.starts == [key(job)])
        await becomes(core, job, State.RUNNING)


async def test_a_start_that_can_never_be_is_said_with_the_workers_words(core: Core, twin: WorkerTwin) -> None:
    twin.refuse = "invalid"
    await synced(core, twin)
    ended = await core.jobs.wait((await start(core)).job_id, 10)
    assert (ended.tasks[0].reason, ended.tasks[0].error_text) == (Reason.START_FAILED, "is invalid")


async def test_what_outlived_its_worker_being_lost_is_killed_when_it_is_back(
    core: Core, twin: WorkerTwin
) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    await core.registry.lost("w1")
    assert await state_of(core, job) is State.LOST
    await register(core, twin)
    await eventually(lambda: [(s.job_id, s.signal) for s in twin.stops] == [(job.job_id, "KILL")])
    await eventually(lambda: key(job) in twin.acknowledged)
    assert await state_of(core, job) is State.LOST


async def test_jobs_that_the_worker_minted_itself_are_left_alone(core: Core, twin: WorkerTwin) -> None:
    twin.report(("its-own", 0, 1), "running")
    twin.report(("odd", 0, 1), "no such state")
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    assert twin.stops == []


@pytest.mark.parametrize("wrong", [{"state": "nonsense"}, {"state": "running", "started_at_us": 1 << 62}])
async def test_a_report_that_makes_no_sense_holds_up_no_other(
    core: Core, twin: WorkerTwin, wrong: dict[str, Any]
) -> None:
    await register(core, twin)
    jobs = [await start(core) for _ in range(2)]
    for job in jobs:
        await becomes(core, job, State.RUNNING)
    twin.report(key(jobs[0]), **wrong)
    twin.end(key(jobs[1]))
    assert (await core.jobs.wait(jobs[1].job_id, 10)).state is State.SUCCEEDED
    assert (await state_of(core, jobs[0]), twin.streams) == (State.RUNNING, 1)


async def test_a_worker_of_another_life_than_registered_is_not_believed(core: Core, twin: WorkerTwin) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    twin.incarnation = "two"
    twin.end(key(job), "failed")
    twin.break_stream()
    await eventually(lambda: twin.streams >= 3)
    assert await state_of(core, job) is State.RUNNING
    await register(core, twin)
    assert (await core.jobs.wait(job.job_id, 10)).state is State.FAILED


async def test_a_worker_with_anothers_certificate_is_not_spoken_to(core: Core, trust: Trust) -> None:
    impostor = WorkerTwin("w2")
    async with serving(impostor, trust):
        await core.registry.register("w1", impostor.address, "one")
        job = await start(core)
        await asyncio.sleep(0.5)
        assert impostor.streams == 0 and impostor.starts == []
        assert await state_of(core, job) is State.STARTING


async def test_an_end_that_cannot_be_committed_is_not_acknowledged_and_told_again(
    tmp_path: Path, trust: Trust, twin: WorkerTwin
) -> None:
    store = FailingStore(await SqliteStore.open(tmp_path / "c.db"), failing=False)
    async with running(store, trust.controller, Lease()) as core:
        await synced(core, twin)
        job = await start(core)
        await becomes(core, job, State.RUNNING)
        store.failing = True
        twin.end(key(job))
        await eventually(lambda: twin.streams >= 3)
        assert await state_of(core, job) is State.RUNNING
        assert twin.acknowledged == set()
        store.failing = False
        assert (await core.jobs.wait(job.job_id, 10)).state is State.SUCCEEDED
        await eventually(lambda: key(job) in twin.acknowledged)


async def test_a_restart_disturbs_no_job_and_takes_up_what_it_had_not_sent(
    tmp_path: Path, trust: Trust, twin: WorkerTwin
) -> None:
    async with running(await SqliteStore.open(tmp_path / "c.db"), trust.controller, Lease()) as core:
        await synced(core, twin)
        first = await start(core)
        await becomes(core, first, State.RUNNING)
        twin.hold_starts.clear()
        second = await start(core)
        await eventually(lambda: len(twin.batches) == 2)
    twin.hold_starts.set()
    async with running(await SqliteStore.open(tmp_path / "c.db"), trust.controller, Lease()) as core:
        assert await state_of(core, first) is State.RUNNING
        await becomes(core, second, State.RUNNING)
        twin.end(key(first))
        assert (await core.jobs.wait(first.job_id, 10)).state is State.SUCCEEDED
    assert sorted(twin.starts) == sorted([key(first), key(second)])


# Output


async def read(core: Core, job: Job, query: OutputQuery) -> list[OutputItem]:
    return [item async for item in core.jobs.open_output(job.job_id, 0, query)]


def joined(items: list[OutputItem]) -> bytes:
    return b"".join(item.data for item in items if isinstance(item, OutputChunk))


async def test_followers_from_before_during_and_after_read_the_same_bytes(
    core: Core, twin: WorkerTwin
) -> None:
    job = await start(core)
    follow = OutputQuery(follow=True)
    readers = [asyncio.create_task(read(core, job, follow))]
    await register(core, twin)
    await eventually(lambda: twin.starts)
    data = os.urandom(3 << 20)
    for begin in range(0, len(data), 100_000):
        await twin.write(job.job_id, data[begin : begin + 100_000])
        if begin % 1_000_000 == 0:
            readers.append(asyncio.create_task(read(core, job, follow)))
    twin.end(key(job))
    readers.append(asyncio.create_task(read(core, job, follow)))
    for items in await asyncio.gather(*readers):
        assert isinstance(items[0], OutputStart) and items[-1] == OutputEnd(len(data), True)
        assert hashlib.sha256(joined(items)).digest() == hashlib.sha256(data).digest()
    assert await state_of(core, job) is State.SUCCEEDED
    await eventually(lambda: twin.readers == 0)


async def test_the_end_of_the_output_is_told_when_the_job_is_seen_to_have_ended(
    core: Core, twin: WorkerTwin
) -> None:
    await synced(core, twin)
    job = await start(core)
    await eventually(lambda: twin.starts)
    twin.end(key(job))
    async for item in core.jobs.open_output(job.job_id, 0, OutputQuery(follow=True)):
        if isinstance(item, OutputEnd):
            assert await state_of(core, job) is State.SUCCEEDED


async def test_a_snapshot_has_what_is_there_from_the_offset_on(core: Core, twin: WorkerTwin) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    await twin.write(job.job_id, b"0123456789")
    assert await read(core, job, OutputQuery(offset=4)) == [
        OutputStart(4, 10, False),
        OutputChunk(b"456789", 4),
        OutputEnd(10, False),
    ]
    with pytest.raises(RangeNotSatisfiable):
        await read(core, job, OutputQuery(offset=11))


async def test_a_reader_that_stops_reading_stops_the_worker_and_one_that_leaves_frees_it(
    core: Core, twin: WorkerTwin
) -> None:
    await synced(core, twin)
    job = await start(core)
    await becomes(core, job, State.RUNNING)
    await twin.write(job.job_id, bytes(64 << 20))
    items = core.jobs.open_output(job.job_id, 0, OutputQuery(follow=True))
    await anext(items)
    await anext(items)
    assert twin.readers == 1
    await items.aclose()
    await eventually(lambda: twin.readers == 0)


@pytest.mark.parametrize("how", ["the worker dies", "the worker is declared lost"])
async def test_a_break_in_the_middle_is_a_cut_and_never_an_end(core: Core, trust: Trust, how: str) -> None:
    twin = WorkerTwin()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(twin, trust))
        await synced(core, twin)
        job = await start(core)
        await becomes(core, job, State.RUNNING)
        await twin.write(job.job_id, b"so far")
        items = core.jobs.open_output(job.job_id, 0, OutputQuery(follow=True))
        assert isinstance(await anext(items), OutputStart)
        assert await anext(items) == OutputChunk(b"so far", 0)
        if how == "the worker dies":
            await stack.aclose()
        else:
            await core.registry.lost("w1")
        with pytest.raises(OutputCut) as cut:
            await anext(items)
        assert cut.value.offset == 6


async def test_output_that_cannot_be_had_is_told_apart(core: Core, trust: Trust) -> None:
    twin = WorkerTwin()
    async with serving(twin, trust):
        await synced(core, twin)
        job = await start(core)
        await becomes(core, job, State.RUNNING)
        twin.end(key(job))
        await core.jobs.wait(job.job_id, 10)
        del twin.outputs[job.job_id]
        with pytest.raises(Gone):
            await read(core, job, OutputQuery())
    with pytest.raises(Unavailable):
        await read(core, job, OutputQuery())
    await core.registry.unreachable("w1")
    with pytest.raises(Unavailable):
        await read(core, job, OutputQuery())
    await core.registry.lost("w1")
    with pytest.raises(Gone):
        await read(core, job, OutputQuery())
    with pytest.raises(NotFound):
        await read(core, job.evolve(job_id="none"), OutputQuery())


async def test_nothing_is_left_of_a_core_that_has_ended(
    tmp_path: Path, trust: Trust, twin: WorkerTwin
) -> None:
    before = asyncio.all_tasks()
    async with running(await SqliteStore.open(tmp_path / "c.db"), trust.controller, Lease()) as core:
        await synced(core, twin)
        job = await start(core)
        follower = asyncio.create_task(read(core, job, OutputQuery(follow=True)))
        await eventually(lambda: twin.readers)
    with pytest.raises(OutputCut):
        await follower
    await eventually(lambda: {t for t in asyncio.all_tasks() - before if "serv" not in repr(t)} == set())
