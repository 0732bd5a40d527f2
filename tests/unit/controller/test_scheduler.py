from __future__ import annotations

import pytest
from jobcluster_common.limits import NAMES
from jobcluster_controller.domain.job import JobSpec, Limits
from jobcluster_controller.domain.states import WorkerState
from jobcluster_controller.domain.worker import Capacity, WorkerLimits
from jobcluster_controller.scheduler import Candidate, beyond, choose, never_fits, queue_reason

from tests.unit.controller.makers import spec, worker


def candidate(
    worker_id: str,
    running: int = 0,
    state: WorkerState = WorkerState.READY,
    tasks: int = 32,
    placed_last: int = 0,
) -> Candidate:
    return Candidate(worker(worker_id, state, capacity=Capacity(2.0, 1 << 30, tasks)), running, placed_last)


def test_the_least_loaded_ready_worker_is_chosen() -> None:
    chosen = choose(spec(), [candidate("a", 3), candidate("b", 1), candidate("c", 2)])
    assert chosen is not None and chosen.worker_id == "b"


def test_load_is_compared_with_what_a_worker_takes() -> None:
    chosen = choose(spec(), [candidate("small", 1, tasks=2), candidate("big", 4, tasks=32)])
    assert chosen is not None and chosen.worker_id == "big"


def test_between_equals_the_one_that_waited_longest_then_the_first_name() -> None:
    assert choose(spec(), [candidate("b"), candidate("a")]) == candidate("a").worker
    waited = [candidate("a", placed_last=7), candidate("b", placed_last=6)]
    assert choose(spec(), waited) == waited[1].worker
    assert choose(spec(), reversed(waited)) == waited[1].worker


def test_the_worker_asked_for_is_chosen_though_it_is_busier() -> None:
    chosen = choose(spec(worker_id="a"), [candidate("a", 30), candidate("b")])
    assert chosen is not None and chosen.worker_id == "a"


@pytest.mark.parametrize("state", [s for s in WorkerState if s is not WorkerState.READY])
def test_only_ready_workers_are_given_jobs(state: WorkerState) -> None:
    assert choose(spec(), [candidate("a", state=state)]) is None
    assert choose(spec(worker_id="a"), [candidate("a", state=state)]) is None


def test_a_full_worker_is_given_none_and_one_that_does_not_say_is_never_full() -> None:
    assert choose(spec(), [candidate("a", 32)]) is None
    assert choose(spec(), [candidate("a", 999, tasks=0)]) is not None


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "no worker is registered"),
        (
            [candidate("a", state=WorkerState.DRAINING), candidate("b", 32)],
            "0 of 2 workers fit: 1 draining, 1 full (32 of 32 tasks)",
        ),
        (
            [candidate("a", 32), candidate("b", 33), candidate("c", state=WorkerState.UNREACHABLE)],
            "0 of 3 workers fit: 1 unreachable, 2 full (65 of 64 tasks)",
        ),
        ([candidate("a", state=WorkerState.LOST)], "0 of 1 worker fit: 1 lost"),
        ([candidate("a")], "1 of 1 worker fit: others are before it"),
    ],
)
def test_why_a_job_waits_is_said_in_words(candidates: list[Candidate], reason: str) -> None:
    assert queue_reason(spec(), candidates) == reason


def test_why_a_job_waits_speaks_of_the_worker_asked_for_only() -> None:
    there = [candidate("a", state=WorkerState.UNREACHABLE), candidate("b")]
    assert queue_reason(spec(worker_id="a"), there) == "0 of 1 worker fit: 1 unreachable"


MIB = 1 << 20


def bounded(worker_id: str, state: WorkerState = WorkerState.READY, **most: float) -> Candidate:
    limits = WorkerLimits(max=Limits.of(most))
    return Candidate(worker(worker_id, state, limits=limits, capacity=Capacity(tasks=32)), 0)


def faults(wanted: JobSpec, *candidates: Candidate) -> list[tuple[str, str]]:
    return [(f.pointer, f.detail) for f in never_fits(wanted, [c.worker for c in candidates])]


def test_what_no_known_worker_could_ever_take_is_told_from_what_must_wait() -> None:
    workers = [worker("a"), worker("b", capacity=Capacity(4.0, 1 << 20, 2))]
    assert never_fits(spec(limits=Limits(cpu=4.0)), workers) == []
    assert never_fits(spec(limits=Limits(cpu=4.5)), workers) != []
    assert never_fits(spec(worker_id="a", limits=Limits(cpu=4.0)), workers) != []
    (together,) = never_fits(spec(limits=Limits(cpu=3.0, memory=1 << 25)), workers)
    assert together.pointer == "/limits" and "cpu, memory" in together.detail
    assert never_fits(spec(limits=Limits(cpu=4.5)), []) == []


def test_a_job_goes_only_where_its_limits_are_allowed() -> None:
    small, big = bounded("a", memory=64 * MIB), bounded("b", memory=256 * MIB)
    for amount, goes_to in ((64 * MIB, "a"), (65 * MIB, "b"), (256 * MIB, "b"), (257 * MIB, None)):
        chosen = choose(spec(limits=Limits(memory=amount)), [small, big])
        assert (chosen and chosen.worker_id) == goes_to
    assert choose(spec(), [small]) == small.worker


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_is_compared_with_the_most_and_with_what_all_tasks_of_the_worker_have(name: str) -> None:
    for field in ("max", "worker"):
        bounds = [WorkerLimits(**{field: Limits.of({name: most})}) for most in (2, 3)]
        below, enough = (worker("w", limits=bound, capacity=Capacity()) for bound in bounds)
        assert beyond({name: 3}, below) == [name] and beyond({name: 3}, enough) == []


def test_more_than_the_worker_asked_for_allows_is_told_in_users_words() -> None:
    wanted = spec(worker_id="a", limits=Limits(cpu=2.0, memory=128 * MIB))
    assert faults(wanted, bounded("a", memory=64 * MIB, cpu=0.5), bounded("b")) == [
        (
            "/limits/cpu",
            "2 is more than worker a gives a task: 0.5; ask for 0.5 or less, or choose another worker",
        ),
        (
            "/limits/memory",
            "128MiB is more than worker a gives a task: 64MiB; ask for 64MiB or less, or choose another worker",
        ),
    ]


def test_more_than_any_known_worker_allows_names_the_most_that_one_does() -> None:
    there = (bounded("a", memory=64 * MIB), bounded("b", WorkerState.LOST, memory=96 * MIB))
    assert faults(spec(limits=Limits(memory=128 * MIB)), *there) == [
        ("/limits/memory", "128MiB is more than any known worker gives a task: 96MiB; ask for 96MiB or less")
    ]
    assert faults(spec(limits=Limits(memory=80 * MIB)), *there) == []


def test_why_it_waits_tells_who_allows_less_from_who_is_not_there() -> None:
    there = [bounded("a", memory=64 * MIB), bounded("b", WorkerState.UNREACHABLE, memory=96 * MIB)]
    there.append(bounded("c", WorkerState.UNREACHABLE, pids=5))
    assert queue_reason(spec(limits=Limits(memory=80 * MIB, pids=9)), there) == (
        "0 of 3 workers fit: 1 unreachable, 2 with less for a task than asked (memory, pids)"
    )
