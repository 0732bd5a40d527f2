"""The controller's core in one piece for tests, with a dispatcher that notes what it would send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from jobcluster_controller.books import Books
from jobcluster_controller.dispatch import Dispatcher
from jobcluster_controller.domain.bounds import UNBOUNDED, Bounds
from jobcluster_controller.domain.changes import Report, Source, TaskKey
from jobcluster_controller.domain.job import NO_LIMITS, Job, JobSpec, Limits, Output, Task
from jobcluster_controller.domain.states import Reason, State
from jobcluster_controller.domain.worker import Capacity, Worker, WorkerLimits
from jobcluster_controller.jobs import Caller, JobService
from jobcluster_controller.ledger import Ledger
from jobcluster_controller.monitor import Monitor
from jobcluster_controller.registry import Lease, Registry
from jobcluster_controller.store import Store
from jobcluster_controller.store.memory import MemoryStore

from tests.unit.controller.makers import NOW, Clock, spec

CALLER = Caller("ci", "operator")


class NotingDispatcher(Dispatcher):
    """Sends nothing; ``started`` and ``stopped`` are what it was given, in order."""

    def __init__(self) -> None:
        super().__init__(None)
        self.started: list[tuple[Job, Task]] = []
        self.stopped: list[tuple[Job, Task]] = []
        self.books: Books | None = None

    def attach(self, books: Books) -> None:
        self.books = books

    async def worker_changed(self, worker: Worker) -> None:
        pass

    def start(self, job: Job, task: Task) -> None:
        self.started.append((job, task))

    def stop(self, job: Job, task: Task) -> None:
        self.stopped.append((job, task))


class Core:
    """One life of a controller on a store."""

    def __init__(
        self,
        store: Store | None = None,
        clock: Clock | None = None,
        queue_max: int = 100,
        bounds: Bounds = UNBOUNDED,
    ) -> None:
        self.clock = clock or Clock()
        self.store = store or MemoryStore()
        self.ledger = Ledger(self.store)
        self.registry = Registry(self.store, self.ledger.running, self.clock, self.clock.now)
        self.dispatcher = NotingDispatcher()
        self.jobs = JobService(
            self.store,
            self.ledger,
            self.registry,
            self.dispatcher,
            queue_max=queue_max,
            bounds=bounds,
            clock=self.clock,
            now=self.clock.now,
        )
        self.monitor = Monitor(self.registry, self.jobs, Lease(), self.clock)

    async def load(self) -> Core:
        await self.registry.load()
        await self.jobs.load()
        return self

    @property
    def books(self) -> Books:
        assert self.dispatcher.books is not None
        return self.dispatcher.books

    async def add_worker(
        self,
        worker_id: str = "w1",
        tasks: int = 2,
        incarnation: str = "one",
        draining: bool = False,
        most: Limits = NO_LIMITS,
    ) -> Worker:
        return await self.registry.register(
            worker_id,
            "h:1",
            incarnation,
            capacity=Capacity(2.0, 1 << 30, tasks),
            draining=draining,
            limits=WorkerLimits(max=most),
        )

    async def start(self, wanted: JobSpec | None = None) -> Job:
        job, created = await self.jobs.start(wanted or spec(), CALLER)
        assert created
        return job

    def source(self, worker_id: str = "w1") -> Source:
        return Source.of(self.registry.get(worker_id))

    async def tell(
        self,
        job: Job,
        state: State,
        reason: Reason | None = None,
        source: Source | None = None,
        attempt: int = 1,
        output: Output | None = None,
    ) -> None:
        """A report, and the wait until it is durable."""
        task = Task(
            attempt=attempt,
            state=state,
            reason=reason or (Reason.EXITED if state.done else None),
            exit_code=0 if state is State.SUCCEEDED else None,
            started_at=NOW if state is not State.STARTING else None,
            output=output or Output(),
        )
        durable = self.books.reported(source or self.source(), [Report(job.job_id, task)])
        if durable is not None:
            await durable


def key(job: Job) -> TaskKey:
    return TaskKey(job.job_id, 0, 1)


MakeCore = Callable[..., Awaitable[Core]]
