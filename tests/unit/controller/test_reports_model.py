"""Reports, starts and stops in any order, late, twice or never; workers and the controller die at any moment.

Trap T12: nothing of that may change an end, start an attempt twice, or leave a job without an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from jobcluster_common.errors import JobclusterError
from jobcluster_controller.domain.changes import Report, Source, TaskKey
from jobcluster_controller.domain.job import Job, Task
from jobcluster_controller.domain.states import Reason, State, WorkerState
from jobcluster_controller.store.failing import FailingStore
from jobcluster_controller.store.memory import MemoryStore

from tests.unit.controller.house import Core
from tests.unit.controller.makers import NOW, Clock

WORKERS = ("w1", "w2")
workers = st.sampled_from(WORKERS)
number = st.integers(0, 1000)


def now_and_then(condition: Callable[[Faults], object] = lambda _: True) -> Callable[[Any], Any]:
    """For what ends everything: were it as likely as all else, nothing would ever be under way."""
    return precondition(lambda self: self.steps % 5 == 0 and bool(condition(self)))


@dataclass
class Machine:
    """One worker: what it claimed, what lives there, which ends it has not seen acknowledged."""

    incarnation: int = 0
    epoch: int = 0
    registered: bool = False
    claims: set[TaskKey] = field(default_factory=set)
    live: set[TaskKey] = field(default_factory=set)
    ends: dict[TaskKey, Task] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """Something that was said and may arrive now, later, again or never."""

    source: Source
    reports: tuple[Report, ...]


class Faults(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.store = FailingStore(MemoryStore(), failing=False)
        self.core = self.run(self._new_core())
        self.machines = {worker_id: Machine() for worker_id in WORKERS}
        self.orders: list[tuple[str, TaskKey]] = []
        self.told: list[Told] = []
        self.jobs: list[str] = []
        self.process_starts: dict[TaskKey, int] = {}
        self.ends_seen: dict[str, tuple[State, Reason | None]] = {}
        self.real_ends: dict[TaskKey, Task] = {}
        self.steps = 0
        self.disk_full_for = 0

    async def _new_core(self) -> Core:
        return await Core(self.store, self.clock).load()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Runs it to its end, and all that follows from it."""

        async def whole() -> Any:
            try:
                return await what
            finally:
                for _ in range(6):
                    await asyncio.sleep(0)

        return self.runner.run(whole())

    def attempt(self, what: Coroutine[Any, Any, Any]) -> Any:
        """As run; that it is refused is an answer too."""
        try:
            return self.run(what)
        except JobclusterError:
            return None

    def collect(self) -> None:
        """What the controller sent since is under way."""
        for job, task in self.core.dispatcher.started:
            self.orders.append((task.worker_id or "", TaskKey(job.job_id, task.rank, task.attempt)))
        self.core.dispatcher.started.clear()

    def source(self, worker_id: str) -> Source:
        machine = self.machines[worker_id]
        return Source(worker_id, str(machine.incarnation), machine.epoch)

    def say(self, worker_id: str, task: Task, key: TaskKey) -> None:
        self.told.append(Told(self.source(worker_id), (Report(key.job_id, task),)))

    @initialize()
    def both_are_there(self) -> None:
        for worker_id in WORKERS:
            self.register(worker_id)

    # Callers

    @rule()
    def post(self) -> None:
        job = self.attempt(self.core.start())
        if job is not None:
            self.jobs.append(job.job_id)

    @rule(count=st.integers(1, 3))
    def jobs_run(self, count: int) -> None:
        """Often enough that something is under way when things go wrong."""
        for _ in range(count):
            self.post()
            self.collect()
            if self.orders:
                self.a_start_arrives(len(self.orders) - 1, again=False)
            if self.told:
                self.a_report_arrives(len(self.told) - 1, again=False)

    @rule(which=number)
    @precondition(lambda self: self.jobs)
    def stop(self, which: int) -> None:
        self.attempt(self.core.jobs.stop(self.jobs[which % len(self.jobs)]))

    # Workers

    @rule(worker_id=workers)
    def register(self, worker_id: str) -> None:
        machine = self.machines[worker_id]
        known = self.attempt(self.core.add_worker(worker_id, 3, str(machine.incarnation)))
        if known is not None:
            machine.registered, machine.epoch = True, known.epoch

    @rule(worker_id=workers)
    def beat(self, worker_id: str) -> None:
        machine = self.machines[worker_id]
        self.attempt(self.core.registry.heartbeat(worker_id, str(machine.incarnation), machine.epoch))

    @rule(worker_id=workers)
    def the_link_breaks(self, worker_id: str) -> None:
        """Whatever was on its way there or from there is gone, for good or till it is told again."""
        self.orders = [order for order in self.orders if order[0] != worker_id]
        self.told = [told for told in self.told if told.source.worker_id != worker_id]

    @rule(worker_id=workers)
    @precondition(lambda self: any(machine.live for machine in self.machines.values()))
    def worker_dies(self, worker_id: str) -> None:
        self._new_life(worker_id)

    def _new_life(self, worker_id: str) -> None:
        machine = self.machines[worker_id]
        machine.live.clear()
        machine.incarnation += 1
        machine.registered = False

    @rule(worker_id=workers, old=st.booleans())
    @now_and_then()
    def deregister(self, worker_id: str, old: bool) -> None:
        machine = self.machines[worker_id]
        incarnation = machine.incarnation - 1 if old else machine.incarnation
        if not old and machine.live:
            return  # it stops its jobs before
        self.attempt(self.core.registry.deregister(worker_id, str(incarnation)))
        if not old:
            self._new_life(worker_id)

    @rule(which=number, again=st.booleans())
    @precondition(lambda self: self.orders)
    def a_start_arrives(self, which: int, again: bool) -> None:
        at = which % len(self.orders)
        worker_id, key = self.orders[at] if again else self.orders.pop(at)
        machine = self.machines[worker_id]
        if key in machine.claims:
            return
        held = self.core.ledger.head(key.job_id)
        if held is not None and held.tasks[0].incarnation != str(machine.incarnation):
            return  # sent on a link to the launcher before this one: that link is gone
        machine.claims.add(key)
        machine.live.add(key)
        self.process_starts[key] = self.process_starts.get(key, 0) + 1
        self.say(worker_id, Task(state=State.RUNNING, started_at=NOW), key)

    @rule(
        worker_id=workers, which=number, end=st.sampled_from([State.SUCCEEDED, State.FAILED, State.STOPPED])
    )
    def a_task_ends(self, worker_id: str, which: int, end: State) -> None:
        machine = self.machines[worker_id]
        if machine.live:
            self._end(worker_id, sorted(machine.live, key=str)[which % len(machine.live)], end)

    def _end(self, worker_id: str, key: TaskKey, end: State) -> None:
        machine = self.machines[worker_id]
        machine.live.discard(key)
        reason = Reason.STOPPED if end is State.STOPPED else Reason.EXITED
        machine.ends[key] = self.real_ends[key] = Task(
            state=end, reason=reason, started_at=NOW, finished_at=NOW
        )
        self.say(worker_id, machine.ends[key], key)

    @rule(which=number, again=st.booleans())
    @precondition(lambda self: self.told)
    def a_report_arrives(self, which: int, again: bool) -> None:
        at = which % len(self.told)
        told = self.told[at] if again else self.told.pop(at)
        self._deliver(told)

    def _deliver(self, told: Told) -> None:
        if not self.core.books.believes(told.source):
            return

        async def deliver() -> bool:
            durable = self.core.books.reported(told.source, told.reports)
            if durable is not None:
                await durable
            return True

        if self.attempt(deliver()):
            for report in told.reports:  # acknowledged
                self.machines[told.source.worker_id].ends.pop(report.key, None)

    @rule(worker_id=workers)
    def the_stream_is_opened_anew(self, worker_id: str) -> None:
        source, machine = self.source(worker_id), self.machines[worker_id]
        if not self.core.books.believes(source):
            return
        live = [Report(k.job_id, Task(state=State.RUNNING, started_at=NOW)) for k in machine.live]
        ended = [Report(k.job_id, task) for k, task in machine.ends.items()]
        self._deliver(Told(source, (*live, *ended)))

        async def all_told() -> None:
            keys = {report.key for report in (*live, *ended)}
            lost = self.core.books.all_told(source, keys)
            if lost is not None:
                await lost
            for report in live:
                if await self.core.books.unwanted(source, report):
                    self._end(worker_id, report.key, State.STOPPED)

        self.attempt(all_told())

    # The controller

    @rule(which=number)
    @precondition(lambda self: self.orders)
    def a_start_is_refused(self, which: int) -> None:
        worker_id, key = self.orders.pop(which % len(self.orders))
        if key in self.machines[worker_id].claims:
            return

        async def refused() -> None:
            source = self.source(worker_id)
            if self.core.books.wants_start(source, key):
                # A worker that refuses an attempt will not start it when the order comes again.
                self.orders = [order for order in self.orders if order != (worker_id, key)]
                durable = self.core.books.refused(source, key, True, "draining")
                if durable is not None:
                    await durable

        self.attempt(refused())

    @rule(seconds=st.sampled_from([1, 5, 20]))
    @now_and_then()
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.pass_by(1)
            self.attempt(self.core.monitor.tick())

    @rule()
    @now_and_then()
    def the_controller_dies_and_comes_back(self) -> None:
        self.collect()
        self.store.failing, self.disk_full_for = False, 0
        self.core = self.run(self._new_core())

    @rule(steps=st.integers(1, 3))
    def the_disk_is_full(self, steps: int) -> None:
        self.store.failing, self.disk_full_for = True, steps + 1

    # What must hold

    @invariant()
    def a_step_is_over(self) -> None:
        self.steps += 1
        self.disk_full_for -= 1
        if self.disk_full_for <= 0:
            self.store.failing = False

    @invariant()
    def an_end_never_changes(self) -> None:
        self.collect()
        for job_id in self.jobs:
            job: Job = self.run(self.core.jobs.get(job_id))
            if job_id in self.ends_seen:
                assert (job.state, job.tasks[0].reason) == self.ends_seen[job_id]
            elif job.done:
                self.ends_seen[job_id] = (job.state, job.tasks[0].reason)

    @invariant()
    def no_attempt_starts_twice(self) -> None:
        assert all(count == 1 for count in self.process_starts.values())

    @invariant()
    def what_is_shown_is_committed_and_the_books_add_up(self) -> None:
        for job_id in self.jobs:
            shown, stored = self.core.ledger.shown(job_id), self.run(self.store.inner.job(job_id))
            assert shown is None or shown == stored
        held = dict.fromkeys(WORKERS, 0)
        for job in self.core.ledger.active():
            for task in job.tasks:
                if task.worker_id is not None and not task.state.done:
                    held[task.worker_id] += 1
        assert held == {w: self.core.registry.running(w) for w in WORKERS}

    def teardown(self) -> None:
        """Once all is well again each job comes to one end, and it is the true one wherever there is one."""
        self.store.failing = False
        for _ in range(len(self.jobs) + 3):
            for worker_id in WORKERS:
                self.register(worker_id)
                self.the_stream_is_opened_anew(worker_id)
            self.collect()
            while self.orders:
                self.a_start_arrives(0, again=False)
            for worker_id in WORKERS:
                for key in list(self.machines[worker_id].live):
                    self._end(worker_id, key, State.SUCCEEDED)
                self.the_stream_is_opened_anew(worker_id)
            self.clock.pass_by(0.9)
            self.attempt(self.core.monitor.tick())
            self.an_end_never_changes()
            stuck = [j for j in self.core.ledger.active() if j.state is State.STOPPING]
            for job in stuck:
                self._settle_stop(job)
        for job_id in self.jobs:
            job = self.run(self.core.jobs.get(job_id))
            assert job.done, job
            if job.state is not State.LOST and job.tasks[0].started_at is not None:
                assert job.state is self.real_ends[TaskKey(job_id, 0, job.tasks[0].attempt)].state
        assert {w.state for w in self.core.registry.all()} <= {WorkerState.READY}
        self.runner.close()

    def _settle_stop(self, job: Job) -> None:
        """As a link does when the worker knows nothing of an attempt that is to stop."""
        key = TaskKey(job.job_id, 0, job.tasks[0].attempt)
        worker_id = job.tasks[0].worker_id or ""
        if key in self.machines[worker_id].claims:
            return
        self.machines[worker_id].claims.add(key)  # the tombstone

        async def settle() -> None:
            durable = self.core.books.never_started(self.source(worker_id), key)
            if durable is not None:
                await durable

        self.attempt(settle())


TestFaults = Faults.TestCase
TestFaults.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
