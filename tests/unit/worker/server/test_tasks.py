from __future__ import annotations

import asyncio
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st
from jobcluster_worker.launcher.shapes import TERMINAL, State, Task, TaskKey, new_task
from jobcluster_worker.server.tasks import TaskTable

STATES = st.sampled_from(get_args(State))
KEYS = st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.integers(1, 2))
LIFE = ("starting", "running", "stopping")


def task(state: State, key: TaskKey = ("a", 0, 1), pid: int = 0) -> Task:
    made = new_task(key, state)
    made["pid"] = pid
    return made


@given(st.lists(st.tuples(KEYS, STATES)))
def test_states_only_go_forward_and_an_end_never_changes(reports: list[tuple[TaskKey, State]]) -> None:
    table, expected = TaskTable(), dict[TaskKey, State]()
    for key, state in reports:
        table.update(task(state, key), "s1")
        old = expected.get(key)
        later = old is None or (
            state in TERMINAL or LIFE.index(state) >= LIFE.index(old) if old in LIFE else False
        )
        if later:
            expected[key] = state
    assert {key: entry.task["state"] for key in table if (entry := table.get(key))} == expected
    assert table.alive == sum(state not in TERMINAL for state in expected.values())
    for job_id in "ab":
        assert table.of_job(job_id) == sorted(key for key in expected if key[0] == job_id)
    for key in list(expected):
        table.forget(key)
    assert (len(table), table.alive, table.of_job("a")) == (0, 0, [])


def test_listeners_hear_of_news_only_and_of_what_is_forgotten() -> None:
    table, heard = TaskTable(), list[TaskKey]()
    with table.listening(heard.append):
        table.update(task("running"), "s1")
        table.update(task("starting"), "s1")
        assert heard == [("a", 0, 1)]
        table.update(task("running", pid=7), "s1")
        table.update(task("succeeded"), "s1")
        table.update(task("failed"), "s1")
        assert len(heard) == 3
        table.forget(("a", 0, 1))
        table.forget(("a", 0, 1))
        assert len(heard) == 4
    table.update(task("running"), "s1")
    assert len(heard) == 4


def test_a_watcher_of_one_task_is_woken_by_that_task_alone() -> None:
    table, changed = TaskTable(), asyncio.Event()
    with table.watching(("a", 0, 1), changed):
        table.update(task("running", ("b", 0, 1)), "s1")
        assert not changed.is_set()
        table.update(task("running"), "s1")
        assert changed.is_set()


def test_a_task_without_holder_keeps_its_report_and_takes_a_new_holder() -> None:
    table = TaskTable()
    table.update(task("running"), "s1")
    assert table.held_by("s1") == [("a", 0, 1)]
    table.orphan([("a", 0, 1), ("x", 0, 1)])
    assert table.held_by("s1") == []
    table.update(task("running"), "s2")
    assert table.held_by("s2") == [("a", 0, 1)]
