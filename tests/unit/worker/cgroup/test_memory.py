from jobcluster_worker.cgroup import memory

MEMORY_EVENTS = """low 0
high 0
max 31
oom 2
oom_kill 1
oom_group_kill 0
"""


def test_a_limit_forbids_swap_and_an_oom_kill_takes_the_whole_task() -> None:
    assert memory.values({"memory_bytes": 1 << 26}) == [
        ("memory.oom.group", "1"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
    ]


def test_oom_process_kills_only_the_victim() -> None:
    assert memory.values({"memory_bytes": 4096, "oom": "process"})[0] == ("memory.oom.group", "0")


def test_without_a_limit_swap_is_left_alone() -> None:
    assert memory.values({}) == [("memory.oom.group", "1")]


def test_files_are_read_back() -> None:
    assert memory.parse_max("67108864\n") == 1 << 26
    assert memory.parse_max("max\n") is None
    assert [memory.parse_oom_group(text) for text in ("1\n", "0\n")] == ["group", "process"]


def test_oom_kills_are_the_kills_not_the_times_memory_was_short() -> None:
    assert memory.parse_events(MEMORY_EVENTS) == {"oom_kills": 1}
