from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from jobcluster_controller.domain.job import Job, JobSpec, Task
from jobcluster_controller.domain.states import State, WorkerState
from jobcluster_controller.domain.worker import Worker
from jobcluster_controller.events import AT_ONCE, Events, JobChange

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def job(state: State = State.QUEUED, name: str = "n") -> Job:
    return Job("j", JobSpec(command=("true",), name=name), NOW, (Task(state=state),))


def worker(state: WorkerState = WorkerState.READY) -> Worker:
    return Worker("w", "a:1", state, "i", 1, NOW, NOW)


def numbers(events: Events, after: int) -> list[int] | None:
    found = events.after(after)
    return None if found is None else [event.number for event in found]


async def test_events_are_numbered_and_found_after_any_that_is_remembered() -> None:
    events = Events(remembered=3)
    assert numbers(events, 0) == []
    for state in (State.QUEUED, State.STARTING, State.RUNNING, State.SUCCEEDED):
        events.job_committed(None, job(state))
    await events.worker_changed(worker())
    assert events.last == 5
    assert [numbers(events, n) for n in range(7)] == [None, None, [3, 4, 5], [4, 5], [5], [], None]
    assert numbers(events, -1) is None


async def test_a_commit_that_changes_nothing_of_what_is_shown_is_no_event() -> None:
    events = Events()
    events.job_committed(None, job())
    events.job_committed(job(), job())
    events.job_committed(job(), job(State.STARTING))
    states = [e.change.state for e in events.after(0) or () if isinstance(e.change, JobChange)]
    assert states == [State.QUEUED, State.STARTING]


async def test_so_many_come_at_once_and_no_more() -> None:
    events = Events()
    for _ in range(AT_ONCE + 5):
        events.job_committed(None, job())
    assert len(events.after(0) or ()) == AT_ONCE
    assert numbers(events, AT_ONCE) == list(range(AT_ONCE + 1, AT_ONCE + 6))


async def test_who_waits_is_woken_by_the_next_one() -> None:
    events = Events()
    waiting = asyncio.create_task(events.came(0))
    await asyncio.sleep(0)
    assert not waiting.done()
    await events.worker_changed(worker(WorkerState.LOST))
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(events.came(0), 10)


async def test_two_starts_have_different_names() -> None:
    assert Events().start != Events().start
