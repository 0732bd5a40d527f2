from __future__ import annotations

import pytest
from jobcluster_common.errors import Invalid
from jobcluster_worker.launcher.shapes import Limits
from jobcluster_worker.server.limits import applied


@pytest.mark.parametrize(
    ("asked", "default", "most", "expected"),
    [
        ({}, {}, {}, {}),
        ({"cpu": 1.0}, {"cpu": 0.5, "pids": 9}, {}, {"cpu": 1.0, "pids": 9}),
        ({"cpu": 1.0}, {}, {"cpu": 1.0, "pids": 5}, {"cpu": 1.0, "pids": 5}),
        ({}, {"pids": 9}, {"pids": 5}, {"pids": 5}),
        ({"io": {"read_bps": 3}}, {"io": {"write_bps": 4}}, {}, {"io": {"read_bps": 3, "write_bps": 4}}),
        ({"oom": "process"}, {}, {}, {"oom": "process"}),
    ],
)
def test_a_task_gets_what_it_asks_else_the_default_else_the_most(
    asked: Limits, default: Limits, most: Limits, expected: Limits
) -> None:
    assert applied(asked, default, most) == expected


def test_more_than_the_most_is_refused_and_every_such_limit_is_named() -> None:
    asked: Limits = {"cpu": 2.0, "memory_bytes": 5, "io": {"read_bps": 9, "write_bps": 1}}
    most: Limits = {"cpu": 1.0, "memory_bytes": 5, "io": {"read_bps": 8, "write_bps": 8}}
    with pytest.raises(Invalid) as refused:
        applied(asked, {}, most)
    assert [fault.pointer for fault in refused.value.faults] == ["/limits/cpu", "/limits/io/read_bps"]
