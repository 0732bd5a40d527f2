"""Which worker gets a job: pure functions of the spec and the workers as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobcluster_common import limits as amounts
from jobcluster_common.errors import Fault

from .domain.job import JobSpec
from .domain.states import WorkerState
from .domain.worker import Worker

# A worker that does not say how many tasks it takes is compared as if it took so many.
_UNSAID_TASKS = 64

# In which order queue_reason names what keeps workers from a job.
_NAMED = (
    WorkerState.STARTING,
    WorkerState.DRAINING,
    WorkerState.UNREACHABLE,
    WorkerState.LOST,
    WorkerState.GONE,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker and its load. ``placed_last`` = number of the last placement on it: between equals it is time for
    the one that waited longest."""

    worker: Worker
    running: int
    placed_last: int = 0
    refused: str = ""
    """Why it has just refused a start; it is not asked again for a while."""

    @property
    def full(self) -> bool:
        tasks = self.worker.capacity.tasks
        return tasks > 0 and self.running >= tasks

    @property
    def open(self) -> bool:
        """Whether it takes any job now."""
        return self.worker.state is WorkerState.READY and not self.full and not self.refused

    @property
    def rank(self) -> tuple[float, int, str]:
        """The least first."""
        load = self.running / (self.worker.capacity.tasks or _UNSAID_TASKS)
        return (load, self.placed_last, self.worker.worker_id)


def choose(spec: JobSpec, candidates: Iterable[Candidate]) -> Worker | None:
    """The least loaded worker that fits; the same for the same input. None: none fits now."""
    wanted = spec.limits.amounts()
    able = [c for c in candidates if c.open and spec.worker_id in (None, c.worker.worker_id)]
    best = min(able, key=lambda c: c.rank, default=None)
    # Mostly the first one will do: the limits of all others need not be looked at.
    if best is not None and beyond(wanted, best.worker):
        able = [c for c in able if not beyond(wanted, c.worker)]
        best = min(able, key=lambda c: c.rank, default=None)
    return best.worker if best is not None else None


def beyond(wanted: amounts.Amounts, worker: Worker) -> list[str]:
    """The limits asked for that are more than the worker can ever give a task."""
    return [
        name for name, amount in wanted.items() if (most := worker.most(name)) is not None and amount > most
    ]


def never_fits(spec: JobSpec, workers: Sequence[Worker]) -> list[Fault]:
    """Why no known worker could ever take the job, not even an idle one; none when one could, or none is known."""
    asked = [w for w in workers if spec.worker_id in (None, w.worker_id)]
    wanted = spec.limits.amounts()
    # Mostly the first one could, and then the others need not be looked at.
    if not asked or not all(beyond(wanted, w) for w in asked):
        return []
    lacking = [beyond(wanted, w) for w in asked]
    who = (
        "any known worker gives a task" if spec.worker_id is None else f"worker {spec.worker_id} gives a task"
    )
    otherwise = "" if spec.worker_id is None else ", or choose another worker"
    most = {
        name: max(w.most(name) or 0 for w in asked)
        for name in wanted
        if all(name in names for names in lacking)
    }
    if most:
        return amounts.faults(wanted, most, who, otherwise)
    each = _names(lacking)
    return [
        Fault("/limits", f"no known worker gives a task so much of all these: {each}; ask for less of one")
    ]


def queue_reason(spec: JobSpec, candidates: Sequence[Candidate]) -> str:
    """In words, why the job waits: "0 of 2 workers fit: 1 draining, 1 full (32 of 32 tasks)"."""
    asked = [c for c in candidates if spec.worker_id in (None, c.worker.worker_id)]
    if not asked:
        return (
            "no worker is registered" if spec.worker_id is None else f"worker {spec.worker_id} is not there"
        )
    wanted = spec.limits.amounts()
    held = [(c, beyond(wanted, c.worker)) for c in asked]
    lacking = [names for _, names in held if names]
    able = [c for c, names in held if not names]
    fitting = sum(c.open for c in able)
    head = f"{fitting} of {len(asked)} worker{'s' if len(asked) > 1 else ''} fit"
    if fitting:
        return f"{head}: others are before it"
    counts = Counter(c.worker.state for c in able)
    parts = [f"{counts[state]} {state}" for state in _NAMED if counts[state]]
    ready = [c for c in able if c.worker.state is WorkerState.READY]
    if full := [c for c in ready if c.full]:
        running, tasks = sum(c.running for c in full), sum(c.worker.capacity.tasks for c in full)
        parts.append(f"{len(full)} full ({running} of {tasks} tasks)")
    if refused := [c.refused for c in ready if c.refused and not c.full]:
        parts.append(f"{len(refused)} just refused a start ({refused[0]})")
    if lacking:
        parts.append(f"{len(lacking)} with less for a task than asked ({_names(lacking)})")
    return f"{head}: {', '.join(parts)}"


def _names(several: Iterable[Iterable[str]]) -> str:
    return ", ".join(sorted({name for names in several for name in names}))
