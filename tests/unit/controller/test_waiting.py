from __future__ import annotations

from jobcluster_controller.domain.job import Limits
from jobcluster_controller.waiting import Ask, WaitingLine

ANY = Ask(None)


def test_first_come_first_served_over_all_lines() -> None:
    line = WaitingLine()
    for job_id, worker_id in (("a", "w1"), ("b", None), ("c", "w2"), ("d", None)):
        line.add(job_id, Ask(worker_id))
    assert line.firsts() == ["a", "b", "c"]
    assert line.firsts(["w2"]) == ["b", "c"]
    line.remove("b")
    assert line.firsts() == ["a", "c", "d"]
    assert len(line) == 3


def test_one_that_is_in_keeps_its_place() -> None:
    line = WaitingLine()
    line.add("a", ANY)
    line.add("b", ANY)
    line.add("a", ANY)
    assert line.firsts() == ["a"]


def test_one_that_could_not_go_after_all_is_first_again() -> None:
    line = WaitingLine()
    line.add("a", ANY)
    line.add("b", ANY)
    number = line.remove("a")
    assert number is not None
    line.put_back("a", ANY, number)
    assert line.firsts() == ["a"]


def test_several_that_could_not_go_after_all_are_in_their_order_again() -> None:
    line = WaitingLine()
    for job_id in "abcd":
        line.add(job_id, ANY)
    numbers = {job_id: line.remove(job_id) or 0 for job_id in "abc"}
    for job_id in "abc":
        line.put_back(job_id, ANY, numbers[job_id])
    order = []
    while len(line):
        order += line.firsts()
        line.remove(order[-1])
    assert order == ["a", "b", "c", "d"]


def test_an_empty_line_is_no_line() -> None:
    line = WaitingLine()
    line.add("a", Ask("w1"))
    assert line.waits(Ask("w1")) and not line.waits(ANY)
    line.remove("a")
    assert not line.waits(Ask("w1")) and line.remove("a") is None


def test_those_who_ask_for_other_limits_wait_in_a_line_of_their_own() -> None:
    line, big = WaitingLine(), Ask(None, Limits(memory=1 << 40))
    line.add("a", big)
    line.add("b", ANY)
    line.add("c", big)
    assert line.firsts() == line.firsts(["w1"]) == ["a", "b"]
    assert line.waits(big) and not line.waits(Ask("w1", big.limits))
