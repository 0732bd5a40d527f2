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


def test_a_group_kill_counts_its_victim_twice_and_we_once() -> None:
    alone = "low 0\nhigh 0\nmax 35\noom 1\noom_kill 2\noom_group_kill 1\n"
    of_four = "low 0\nhigh 0\nmax 18\noom 1\noom_kill 5\noom_group_kill 1\n"
    assert [memory.parse_events(text)["oom_kills"] for text in (alone, of_four)] == [1, 4]
    assert memory.parse_events("oom_kill 0\noom_group_kill 0\n") == {"oom_kills": 0}
    assert memory.parse_events("oom_kill 1\noom_group_kill 1\n") == {"oom_kills": 1}  # a kill is never none


def test_oom_kills_are_the_kills_not_the_times_memory_was_short() -> None:
    assert memory.parse_events(MEMORY_EVENTS) == {"oom_kills": 1}
