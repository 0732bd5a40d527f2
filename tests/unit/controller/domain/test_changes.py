from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobcluster_controller.domain.changes import Fate, Source, merged, placed, reconciled, refused, stop_asked
from jobcluster_controller.domain.job import Task
from jobcluster_controller.domain.states import Reason, State, may_follow

from tests.unit.controller.makers import NOW, job, worker

HERE = Source("w1", "one", 1)


def held(state: State, **fields: object) -> Task:
    return Task(state=state, worker_id="w1", incarnation="one", epoch=1).evolve(**fields)


def test_a_queued_job_is_stopped_at_once() -> None:
    stopped = stop_asked(job(), "TERM", 5.0, NOW)
    assert (stopped.state, stopped.tasks[0].reason, stopped.tasks[0].finished_at) == (
        State.STOPPED,
        Reason.STOPPED,
        NOW,
    )


def test_what_was_stopped_before_it_ran_has_an_empty_output_that_can_be_checked() -> None:
    output = stop_asked(job(), "TERM", 5.0, NOW).tasks[0].output
    assert (output.available, output.merged.bytes) == (True, 0)
    assert output.merged.sha256 == hashlib.sha256(b"").hexdigest() == output.stderr.sha256


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_one_that_may_have_processes_is_stopping(state: State) -> None:
    stopping = stop_asked(job(task=held(state)), "INT", 5.0, NOW)
    assert (stopping.state, stopping.stop_requested) == (State.STOPPING, ("INT", 5.0))


@pytest.mark.parametrize("stricter", [("KILL", 30.0), ("INT", 0.0), ("TERM", 4.5)])
def test_of_two_stops_the_stricter_one_is_kept(stricter: tuple[str, float]) -> None:
    running = job(task=held(State.RUNNING))
    first = stop_asked(running, "TERM", 5.0, NOW)
    second = stop_asked(first, *stricter, NOW)
    assert second == first.evolve(stop_requested=stricter)
    assert stop_asked(second, "TERM", 5.0, NOW) is second
    assert stop_asked(second, *stricter, NOW) is second


def test_a_stop_as_strict_as_the_first_and_one_on_an_ended_job_change_nothing() -> None:
    stopping = stop_asked(job(task=held(State.RUNNING)), "TERM", 5.0, NOW)
    assert stop_asked(stopping, "INT", 5.0, NOW) is stopping
    done = job(task=held(State.FAILED))
    assert stop_asked(done, "TERM", 5.0, NOW) is done


def test_a_start_that_was_refused_waits_again_or_fails_or_is_stopped_if_so_asked() -> None:
    given_to = placed(job(), 0, worker())
    again = refused(given_to, 0, True, "draining", NOW)
    assert (again.state, again.tasks[0].worker_id) == (State.QUEUED, None)
    failed = refused(given_to, 0, False, "no such thing", NOW)
    assert (failed.state, failed.tasks[0].reason, failed.tasks[0].error_text) == (
        State.FAILED,
        Reason.START_FAILED,
        "no such thing",
    )
    stopping = stop_asked(given_to, "TERM", 1.0, NOW)
    assert refused(stopping, 0, True, "draining", NOW).state is State.STOPPED
    running = job(task=held(State.RUNNING))
    assert refused(running, 0, True, "draining", NOW) is running


def test_a_report_of_another_attempt_or_repeated_or_overtaken_is_no_news() -> None:
    running = held(State.RUNNING, started_at=NOW)
    assert merged(running, Task(state=State.SUCCEEDED, attempt=2, reason=Reason.EXITED)) is running
    assert merged(running, Task(state=State.RUNNING, started_at=NOW)) is running
    assert merged(running, Task(state=State.STARTING)) is running


def test_that_it_had_started_is_news_even_when_it_is_stopping_already() -> None:
    news = merged(held(State.STOPPING), Task(state=State.RUNNING, started_at=NOW))
    assert (news.state, news.started_at) == (State.STOPPING, NOW)


def test_an_end_keeps_where_it_ran_and_when_it_started() -> None:
    end = merged(
        held(State.RUNNING, started_at=NOW), Task(state=State.FAILED, reason=Reason.EXITED, exit_code=3)
    )
    assert (end.worker_id, end.started_at, end.exit_code) == ("w1", NOW, 3)


states = st.sampled_from(list(State))


@given(st.lists(states, max_size=12))
def test_whatever_is_reported_in_whatever_order_an_end_never_changes_and_nothing_goes_back(
    reports: list[State],
) -> None:
    task = held(State.STARTING)
    seen = [task.state]
    for state in reports:
        task = merged(task, Task(state=state, reason=Reason.EXITED if state.done else None))
        seen.append(task.state)
    for before, after in itertools.pairwise(seen):
        assert before is after or may_follow(before, after)
    ends = [state for state in reports if state.done]
    assert not ends or task.state is ends[0]


@pytest.mark.parametrize(
    ("task", "told", "fate"),
    [
        (held(State.STARTING), False, Fate.START),
        (held(State.STARTING), True, Fate.KEEP),
        (held(State.RUNNING), True, Fate.KEEP),
        (held(State.RUNNING), False, Fate.LOSE),
        (held(State.STOPPING), True, Fate.STOP),
        (held(State.STOPPING), False, Fate.STOP),
        (held(State.STOPPING, started_at=NOW), False, Fate.LOSE),
        (held(State.STARTING, incarnation="zero"), False, Fate.LOSE),
        (held(State.RUNNING, incarnation="zero"), False, Fate.LOSE),
        (held(State.RUNNING, incarnation="zero"), True, Fate.KEEP),
        (held(State.FAILED), False, Fate.KEEP),
    ],
)
def test_the_fate_of_what_a_worker_did_or_did_not_tell(task: Task, told: bool, fate: Fate) -> None:
    assert reconciled(task, HERE, told) is fate
