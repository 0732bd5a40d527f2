"""What every Store promises, run on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobcluster_common.errors import BadRequest, Internal
from jobcluster_controller.domain.job import (
    Enforcement,
    IoLimits,
    Job,
    JobSpec,
    Limits,
    Output,
    OutputOptions,
    StreamTotals,
    Task,
    Usage,
)
from jobcluster_controller.domain.query import JobFilter
from jobcluster_controller.domain.states import Reason, State, WorkerState
from jobcluster_controller.domain.worker import WorkerLimits
from jobcluster_controller.store import IdempotencyKey, Repeat, Store, codec
from jobcluster_controller.store.memory import MemoryStore
from jobcluster_controller.store.sqlite import SqliteStore

from tests.unit.controller.makers import NOW, job, spec, worker

KEY = IdempotencyKey("ci", "POST /v1/jobs", "k1", "hash-1", NOW)


@pytest.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = await SqliteStore.open(tmp_path / "c.db") if request.param == "sqlite" else MemoryStore()
    yield opened
    await opened.close()


def full_job() -> Job:
    """One with everything in it that can be."""
    task = Task(
        attempt=2,
        state=State.FAILED,
        worker_id="w1",
        incarnation="one",
        epoch=3,
        reason=Reason.OOM_KILLED,
        error_text="ünïcode \x00 and nul",
        signal="KILL",
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=1),
        usage=Usage(1.5, 2, 3, 4, 5, 0.25, 1),
        output=Output(
            "/o", "/l", StreamTotals(3, "aa"), StreamTotals(1, "bb"), StreamTotals(2, "cc"), 9, True
        ),
        limits_effective=Limits(0.5, 1, 2, IoLimits(1, 2, 3, 4), "process"),
        enforced={"cpu": Enforcement(True), "io": Enforcement(False, "no device")},
    )
    wanted = JobSpec(
        command=("a", "b c"),
        path="x.sh",
        args=("1",),
        files={"f": b"\x00\xff"},
        env={"A": "ü"},
        cwd="/",
        stdin=b"",
        timeout_seconds=1.5,
        limits=Limits(cpu=0.5, io=IoLimits(read_bps=7)),
        limits_default=Limits(memory=7, io=IoLimits(write_iops=8)),
        network="none",
        output=OutputOptions(1, "stop", False),
        worker_id="w1",
        name="n",
        labels={"a": "b"},
        document={"command": ["a", "b c"], "nested": {"x": [1, None, True]}},
    )
    return Job("full", wanted, NOW, (task,), (Task(state=State.LOST),), None, "arr", ("TERM", 1.5))


async def test_a_job_comes_back_as_it_was(store: Store) -> None:
    await store.insert(full_job())
    assert await store.job("full") == full_job()
    assert await store.job("none") is None


async def test_saved_changes_come_back_and_the_last_one_counts(store: Store) -> None:
    first = job("a")
    await store.insert(first)
    running = first.with_task(Task(state=State.RUNNING, worker_id="w1", started_at=NOW))
    ended = first.with_task(running.tasks[0].evolve(state=State.SUCCEEDED, reason=Reason.EXITED, exit_code=0))
    lazily = store.save(jobs=[running], lazy=True)
    await store.save(jobs=[ended])
    await lazily
    assert await store.job("a") == ended
    assert await store.active_jobs() == []


async def test_a_lazy_save_alone_is_committed_too(store: Store) -> None:
    first = job("a")
    await store.insert(first)
    running = first.with_task(Task(state=State.RUNNING, worker_id="w1"))
    await store.save(jobs=[running], lazy=True)
    assert await store.job("a") == running


async def test_a_job_that_was_never_inserted_cannot_be_saved_and_nothing_of_that_write_is(
    store: Store,
) -> None:
    known = job("known")
    await store.insert(known)
    changed = known.with_task(Task(state=State.RUNNING, worker_id="w1"))
    with pytest.raises(Internal):
        await store.save(jobs=[changed, job("unknown")])
    assert await store.job("known") == known
    assert await store.job("unknown") is None


async def test_a_key_is_kept_with_its_job_and_a_repeat_adds_nothing(store: Store) -> None:
    assert await store.insert(job("a"), KEY) is None
    assert await store.insert(job("b"), KEY) == Repeat("a", "hash-1")
    assert await store.repeat(KEY) == Repeat("a", "hash-1")
    assert await store.job("b") is None


async def test_a_key_is_unique_per_caller_route_and_key(store: Store) -> None:
    await store.insert(job("a"), KEY)
    others = [replace(KEY, caller="x"), replace(KEY, route="x"), replace(KEY, key="x")]
    for number, other in enumerate(others):
        assert await store.insert(job(f"other-{number}"), other) is None


async def test_a_key_is_free_again_after_24_hours(store: Store) -> None:
    await store.insert(job("a"), KEY)
    almost = replace(KEY, created_at=NOW + timedelta(hours=24) - timedelta(microseconds=1))
    assert await store.repeat(almost) == Repeat("a", "hash-1")
    later = replace(KEY, body_hash="hash-2", created_at=NOW + timedelta(hours=24))
    assert await store.repeat(later) is None
    assert await store.insert(job("b"), later) is None
    assert await store.repeat(later) == Repeat("b", "hash-2")


async def test_forgotten_keys_and_workers_are_gone_and_others_stay(store: Store) -> None:
    newer = replace(KEY, key="k2", created_at=NOW + timedelta(hours=1))
    await store.insert(job("a"), KEY)
    await store.insert(job("b"), newer)
    await store.save(workers=[worker("w1"), worker("w2")])
    await store.forget(NOW, ["w1"])
    assert await store.repeat(KEY) is None
    assert await store.repeat(newer) == Repeat("b", "hash-1")
    assert await store.workers() == [worker("w2")]


async def test_workers_come_back_as_they_were(store: Store) -> None:
    known = worker(
        state=WorkerState.LOST,
        labels={"zone": "ü"},
        version="1",
        epoch=4,
        enforced={"io": Enforcement(False, "why")},
        limits=WorkerLimits(Limits(cpu=0.5), Limits(memory=7, io=IoLimits(read_bps=9)), Limits(pids=3)),
        retired=("zero",),
    )
    await store.save(workers=[worker("w2"), known.evolve(state=WorkerState.READY)])
    await store.save(workers=[known])
    assert await store.workers() == [known, worker("w2")]


def test_a_worker_kept_before_workers_told_their_limits_has_none() -> None:
    row = codec.worker(worker(limits=WorkerLimits()))
    assert "limits" not in row and codec.worker_from("w1", row).limits == WorkerLimits()


async def test_active_jobs_come_oldest_first(store: Store) -> None:
    jobs = [job(f"j{n}") for n in (3, 1, 2)]
    for each in jobs:
        await store.insert(each)
    await store.save(jobs=[jobs[1].with_task(Task(state=State.STOPPED, reason=Reason.STOPPED))])
    assert [j.job_id for j in await store.active_jobs()] == ["j3", "j2"]


async def test_pages_are_newest_first_and_cover_all_once_though_jobs_come_meanwhile(store: Store) -> None:
    for number in range(7):
        await store.insert(job(f"j{number}"))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        jobs, cursor = await store.list_jobs(JobFilter(limit=3, cursor=cursor))
        seen += [j.job_id for j in jobs]
        if cursor is None:
            break
        await store.insert(job())
    assert seen == [f"j{number}" for number in reversed(range(7))]


@pytest.mark.parametrize("cursor", ["", "x", "n", "nzz", "n 1", "n-1", "n1_0", "n" + "f" * 40, "\x00"])
async def test_a_cursor_that_is_none_of_ours_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(BadRequest):
        await store.list_jobs(JobFilter(cursor=cursor))


FILTERS: list[dict[str, Any]] = [
    {},
    {"state": State.RUNNING},
    {"state": State.FAILED},
    {"worker_id": "w1"},
    {"name": "a"},
    {"array_id": "x"},
    {"labels": {"k": "1"}},
    {"labels": {"k": "1", "l": "2"}},
    {"state": State.RUNNING, "worker_id": "w1", "name": "a", "labels": {"k": "1"}},
    {"state": State.FAILED, "worker_id": "w1"},
    {"array_id": "x", "name": "b", "labels": {"l": "2"}},
    {"name": "none"},
]


@pytest.mark.parametrize("which", FILTERS, ids=str)
async def test_each_filter_and_all_together_show_what_matches(store: Store, which: dict[str, Any]) -> None:
    expected = []
    combinations = [
        (state, worker_id, name, array_id, labels)
        for state in (State.RUNNING, State.FAILED)
        for worker_id in ("w1", "w2")
        for name in ("a", "b", None)
        for array_id in ("x", None)
        for labels in ({}, {"k": "1"}, {"k": "1", "l": "2"}, {"k": "2", "l": "1"})
    ]
    for state, worker_id, name, array_id, labels in combinations:
        each = job(
            task=Task(state=state, worker_id=worker_id),
            spec=spec(name=name, labels=labels),
            array_id=array_id,
        )
        store.insert(each)
        facts = {"state": state, "worker_id": worker_id, "name": name, "array_id": array_id}
        wanted = {k: v for k, v in which.items() if k != "labels"}
        if wanted.items() <= facts.items() and which.get("labels", {}).items() <= labels.items():
            expected.append(each)
    await store.save()
    jobs, cursor = await store.list_jobs(JobFilter(limit=100, **which))
    assert (jobs, cursor) == (expected[::-1], None)


async def test_a_job_is_listed_by_the_worker_that_it_waits_for_and_then_by_the_one_that_holds_it(
    store: Store,
) -> None:
    waits = job("waits", spec=spec(worker_id="w1"))
    await asyncio.gather(store.insert(waits), store.insert(job("anywhere")))

    async def listed(**which: Any) -> list[str]:
        return [j.job_id for j in (await store.list_jobs(JobFilter(**which)))[0]]

    assert await listed(worker_id="w1") == await listed(worker_id="w1", state=State.QUEUED) == ["waits"]
    assert await listed() == ["anywhere", "waits"]
    await store.save(jobs=[waits.with_task(Task(state=State.STOPPED))])
    assert await listed(worker_id="w1") == ["waits"] and await listed(worker_id="w2") == []


async def test_a_caller_that_goes_away_takes_nothing_back(store: Store) -> None:
    store.insert(job("a")).cancel()
    await store.save()
    assert await store.job("a") is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary(), st.floats(0, 1e9))
def test_texts_bytes_and_numbers_survive_the_codec(text: str, data: bytes, number: float) -> None:
    made = job(spec=spec(env={text: text}, files={"f": data}, timeout_seconds=number, name=text))
    assert codec.job(made.job_id, codec.job_status(made), codec.job_spec(made.spec)) == made


async def test_many_writers_at_once_lose_nothing(store: Store) -> None:
    await asyncio.gather(*(store.insert(job(f"j{number}")) for number in range(200)))
    jobs, _ = await store.list_jobs(JobFilter(limit=500))
    assert [j.job_id for j in jobs] == [f"j{number}" for number in reversed(range(200))]
