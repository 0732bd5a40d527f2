"""Placement: takes jobs out of the waiting line and gives them to workers that have room."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterable

from . import scheduler
from .domain.changes import placed
from .domain.job import Job, JobSpec
from .domain.states import State, WorkerState
from .domain.worker import Worker
from .ledger import Ledger
from .registry import Registry
from .scheduler import Candidate
from .waiting import Ask, WaitingLine

_AVOID_SECONDS = 1.0


class Placement:
    """Who waits, and who goes where. All of it is decided at once, in memory; the ledger commits it."""

    def __init__(
        self, ledger: Ledger, registry: Registry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._clock = clock
        self._avoided: dict[str, tuple[float, str]] = {}
        self._line = WaitingLine()
        self._numbers: dict[str, int] = {}
        self._turn = 0
        self._placed_last: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        return len(self._line)

    def place_new(self, job: Job) -> Job:
        """A new job, placed where it may go now; else as it was."""
        if self._line.waits(Ask.of(job.spec)):
            return job
        return self._place(job, self.candidates(job.spec.worker_id))

    def queue(self, job: Job) -> None:
        """Into the waiting line, at its end."""
        self._line.add(job.job_id, Ask.of(job.spec))

    def drain(self, workers: Iterable[str] | None = None) -> None:
        """Places all who wait and fit now (on these workers only, where named), the longest waiting first."""
        if not len(self._line):
            return
        names = None if workers is None else list(workers)
        passed: set[str] = set()
        # Each into the ledger at once, so that the next one sees the room that is left.
        while (job := self._next(names, passed)) is not None:
            self._ledger.change([job])

    def committed(self, before: Job | None, job: Job) -> None:
        """Keeps the line true to what was committed: a job that a worker gave back waits again, an ended one not."""
        if job.done:
            self._line.remove(job.job_id)
            self._numbers.pop(job.job_id, None)
        elif job.state is State.QUEUED:
            head = self._ledger.head(job.job_id)
            # A new one has been in the line since it was decided, and was offered all room that there was.
            if before is not None and head is not None and head.state is State.QUEUED:
                self.queue(job)
                self.drain()
        else:
            self._numbers.pop(job.job_id, None)

    def reverted(self, shown: Job | None, job: Job) -> None:
        """A placement was not committed: the job waits again, where it was; a new one is forgotten."""
        if shown is None:
            self._line.remove(job.job_id)
        elif shown.state is State.QUEUED and job.state is not State.QUEUED:
            number = self._numbers.pop(job.job_id, None)
            if number is None:
                self.queue(shown)
            else:
                self._line.put_back(job.job_id, Ask.of(shown.spec), number)

    def reason(self, spec: JobSpec) -> str:
        return scheduler.queue_reason(spec, self.candidates(spec.worker_id))

    def candidates(self, worker_id: str | None = None) -> builtins.list[Candidate]:
        if worker_id is not None:
            worker = self._registry.find(worker_id)
            return [self._candidate(worker)] if worker is not None else []
        return [self._candidate(w) for w in self._registry.all() if w.state is not WorkerState.GONE]

    def avoid(self, worker_id: str, reason: str) -> None:
        """It has just refused a start: not asked again at once, which would only go round in a circle."""
        self._avoided[worker_id] = (self._clock() + _AVOID_SECONDS, reason)

    def _of(self, names: builtins.list[str] | None) -> builtins.list[Candidate]:
        return self.candidates() if names is None else [c for name in names for c in self.candidates(name)]

    def _candidate(self, worker: Worker) -> Candidate:
        worker_id = worker.worker_id
        until, refused = self._avoided.get(worker_id, (0.0, ""))
        if refused and self._clock() >= until:
            del self._avoided[worker_id]
            refused = ""
        placed_last = self._placed_last.get(worker_id, 0)
        return Candidate(worker, self._ledger.running(worker_id), placed_last, refused)

    def _next(self, names: builtins.list[str] | None, passed: set[str]) -> Job | None:
        """The next one that fits; ``passed`` are those that did not, and do not with less room either."""
        candidates = [candidate for candidate in self._of(names) if candidate.open]
        if not candidates:
            return None
        for job_id in self._line.firsts(names):
            if job_id in passed:
                continue
            job = self._ledger.head(job_id)
            if job is None or job.state is not State.QUEUED:
                self._line.remove(job_id)
                return self._next(names, passed)
            found = self._place(job, candidates)
            if found is not job:
                number = self._line.remove(job_id)
                if number is not None:
                    self._numbers[job_id] = number
                return found
            passed.add(job_id)
        return None

    def _place(self, job: Job, candidates: builtins.list[Candidate]) -> Job:
        worker = scheduler.choose(job.spec, candidates)
        if worker is None:
            return job
        self._turn += 1
        self._placed_last[worker.worker_id] = self._turn
        return placed(job, 0, worker)
