from jobcluster_worker.cgroup import pids


def test_a_limit_is_written_and_read_back() -> None:
    assert pids.values({"pids": 32}) == [("pids.max", "32")]
    assert pids.values({}) == pids.values({"pids": 0}) == []
    assert pids.parse_max("32\n") == 32
    assert pids.parse_max("max\n") is None
