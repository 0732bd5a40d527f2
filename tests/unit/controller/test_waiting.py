from __future__ import annotations

from jobcluster_controller.waiting import WaitingLine


def test_first_come_first_served_over_all_lines() -> None:
    line = WaitingLine()
    for job_id, worker_id in (("a", "w1"), ("b", None), ("c", "w2"), ("d", None)):
        line.add(job_id, worker_id)
    assert line.firsts() == ["a", "b", "c"]
    assert line.firsts(["w2"]) == ["b", "c"]
    line.remove("b")
    assert line.firsts() == ["a", "c", "d"]
    assert len(line) == 3


def test_one_that_is_in_keeps_its_place() -> None:
    line = WaitingLine()
    line.add("a", None)
    line.add("b", None)
    line.add("a", None)
    assert line.firsts() == ["a"]


def test_one_that_could_not_go_after_all_is_first_again() -> None:
    line = WaitingLine()
    line.add("a", None)
    line.add("b", None)
    number = line.remove("a")
    assert number is not None
    line.put_back("a", None, number)
    assert line.firsts() == ["a"]


def test_an_empty_line_is_no_line() -> None:
    line = WaitingLine()
    line.add("a", "w1")
    assert line.waits("w1") and not line.waits(None)
    line.remove("a")
    assert not line.waits("w1") and line.remove("a") is None
