from __future__ import annotations

import pytest
from jobcluster_common.errors import Fault, Invalid
from jobcluster_common.limits import Amounts
from jobcluster_worker.launcher.shapes import Limits
from jobcluster_worker.limits import amounts, applied, from_amounts

ALL: Limits = {"cpu": 0.5, "memory_bytes": 1 << 26, "pids": 8, "io": {"read_bps": 9, "write_iops": 7}}


@pytest.mark.parametrize(
    ("asked", "cluster", "default", "most", "expected"),
    [
        ({}, {}, {}, {}, {}),
        ({"cpu": 1.0}, {}, {"cpu": 0.5, "pids": 9}, {}, {"cpu": 1.0, "pids": 9}),
        ({"cpu": 0.1}, {}, {"cpu": 0.5}, {"cpu": 1.0}, {"cpu": 0.1}),
        ({"cpu": 1.0}, {}, {}, {"cpu": 1.0, "pids": 5}, {"cpu": 1.0, "pids": 5}),
        ({}, {"pids": 7, "cpu": 4.0}, {"pids": 9}, {"cpu": 2.0}, {"pids": 7, "cpu": 2.0}),
        ({}, {"memory": 1 << 30}, {"memory": 1 << 26}, {}, {"memory_bytes": 1 << 26}),
        ({"memory_bytes": 1 << 28}, {"memory": 1 << 26}, {"memory": 1 << 27}, {}, {"memory_bytes": 1 << 28}),
        (
            {"io": {"read_bps": 3}},
            {},
            {"io/write_bps": 4},
            {"io/read_bps": 9, "io/read_iops": 1},
            {"io": {"read_bps": 3, "write_bps": 4, "read_iops": 1}},
        ),
        ({"oom": "process"}, {}, {}, {}, {"oom": "process"}),
    ],
)
def test_a_task_gets_what_it_asks_else_the_least_of_the_defaults_and_the_most(
    asked: Limits, cluster: Amounts, default: Amounts, most: Amounts, expected: Limits
) -> None:
    assert applied(asked, [cluster, default], most) == expected


def test_more_than_the_most_is_refused_in_users_words_and_every_such_limit_is_named() -> None:
    asked: Limits = {"cpu": 2.0, "memory_bytes": 128 << 20, "io": {"read_bps": 9, "write_bps": 1}}
    most = {"cpu": 1.5, "memory": 64 << 20, "io/read_bps": 8, "io/write_bps": 8}
    with pytest.raises(Invalid) as refused:
        applied(asked, [], most)
    assert refused.value.faults == [
        Fault("/limits/cpu", "2 is more than this worker allows: 1.5; ask for 1.5 or less"),
        Fault("/limits/memory", "128MiB is more than this worker allows: 64MiB; ask for 64MiB or less"),
        Fault("/limits/io/read_bps", "9 is more than this worker allows: 8; ask for 8 or less"),
    ]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(Invalid) as refused:
        applied({"cpu": 0.001, "memory_bytes": 4096, "pids": 1}, [], {})
    assert [fault.pointer for fault in refused.value.faults] == ["/limits/cpu", "/limits/memory"]


def test_the_names_of_users_and_those_of_the_proto_say_the_same() -> None:
    assert from_amounts(amounts(ALL)) == ALL
    assert amounts({"oom": "group", "cpu": 0.0}) == {} and from_amounts({}) == {}
