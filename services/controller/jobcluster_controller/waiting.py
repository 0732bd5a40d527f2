"""The waiting line: queued jobs, first come first served among those that ask for the same.

One line per worker and limits asked for: a job that waits for the one big worker does not hold up those that others
can take. A worker with room is offered to the longest waiting first, so none is overtaken on what it could have had.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from .domain.job import JobSpec, Limits


class Ask(NamedTuple):
    """What decides where a job can go. ``worker_id`` None = any worker."""

    worker_id: str | None
    limits: Limits = Limits()

    @classmethod
    def of(cls, spec: JobSpec) -> Ask:
        return cls(spec.worker_id, spec.limits)


class WaitingLine:
    """Job ids in the order in which they came."""

    def __init__(self) -> None:
        self._lines: dict[Ask, OrderedDict[str, int]] = {}
        self._place: dict[str, tuple[Ask, int]] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._place)

    def add(self, job_id: str, ask: Ask) -> None:
        """At the end; a job that is in already keeps its place."""
        if job_id not in self._place:
            self._put(job_id, ask, next(self._numbers))

    def put_back(self, job_id: str, ask: Ask, number: int) -> None:
        """Where it was: it was taken out, and could not go after all."""
        if job_id in self._place:
            return
        self._put(job_id, ask, number)
        line = self._lines[ask]
        before = [*itertools.takewhile(lambda other: line[other] < number, line)]
        for other in (job_id, *reversed(before)):
            line.move_to_end(other, last=False)

    def remove(self, job_id: str) -> int | None:
        """Takes it out; its number, for ``put_back``."""
        place = self._place.pop(job_id, None)
        if place is None:
            return None
        ask, number = place
        line = self._lines[ask]
        del line[job_id]
        if not line:
            del self._lines[ask]
        return number

    def waits(self, ask: Ask) -> bool:
        """Whether somebody is in that line, whom a newcomer must not overtake."""
        return ask in self._lines

    def firsts(self, workers: Iterable[str] | None = None) -> list[str]:
        """The first of each line (of those of ``workers`` and of any worker), the longest waiting before."""
        named = None if workers is None else {None, *workers}
        lines = [line for ask, line in self._lines.items() if named is None or ask.worker_id in named]
        heads = [next(iter(line.items())) for line in lines]
        return [job_id for job_id, _ in sorted(heads, key=lambda head: head[1])]

    def _put(self, job_id: str, ask: Ask, number: int) -> None:
        self._lines.setdefault(ask, OrderedDict())[job_id] = number
        self._place[job_id] = (ask, number)
