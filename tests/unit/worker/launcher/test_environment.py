"""The environment of a task: nothing of the worker's, all that a distributed program needs."""

from __future__ import annotations

import os
from typing import Any

import pytest
from jobcluster_worker.launcher.environment import environment
from jobcluster_worker.launcher.shapes import Spec


def spec(**more: Any) -> Spec:
    given: dict[str, Any] = {"job_id": "job", "task_rank": 0, "attempt": 1, **more}
    return given  # type: ignore[return-value]


def test_a_task_alone_has_exactly_these_variables() -> None:
    found = environment(spec(worker_id="w"), "/home")
    port = found.pop("MASTER_PORT")
    assert 20000 <= int(port) < 32768
    assert found == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/home",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "JOBCLUSTER_JOB_ID": "job",
        "JOBCLUSTER_TASK_RANK": "0",
        "JOBCLUSTER_TASK_COUNT": "1",
        "JOBCLUSTER_WORKER_ID": "w",
        "JOBCLUSTER_ATTEMPT": "1",
        "JOBCLUSTER_PEERS": "127.0.0.1",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }


def test_the_worker_s_own_environment_never_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PATH", "/of/the/product")
    found = environment(spec(), "/home")
    assert "SECRET" not in found and found["PATH"] != os.environ["PATH"]


def test_ranks_on_one_host_count_up_and_all_ranks_meet_at_the_first() -> None:
    peers = ["a", "b", "a", "b", "a"]
    found = [environment(spec(task_rank=r, task_count=5, peers=peers), "/") for r in range(5)]
    assert [one["LOCAL_RANK"] for one in found] == ["0", "0", "1", "1", "2"]
    assert {(one["MASTER_ADDR"], one["WORLD_SIZE"]) for one in found} == {("a", "5")}
    assert len({one["MASTER_PORT"] for one in found}) == 1
    assert found[3]["JOBCLUSTER_PEERS"] == "a,b,a,b,a"


def test_what_the_spec_says_wins() -> None:
    found = environment(spec(env={"HOME": "/x", "RANK": "7", "NEW": "1"}), "/home")
    assert (found["HOME"], found["RANK"], found["NEW"]) == ("/x", "7", "1")


@pytest.mark.parametrize(("index", "expected"), [(0, "0"), (41, "41"), (None, None)])
def test_a_copy_of_an_array_knows_its_index(index: int | None, expected: str | None) -> None:
    assert environment(spec(array_index=index), "/").get("JOBCLUSTER_ARRAY_INDEX") == expected
