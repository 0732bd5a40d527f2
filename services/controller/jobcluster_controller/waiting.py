"""The waiting line: queued jobs, first come first served, one line per worker asked for and one for all others."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable


class WaitingLine:
    """Job ids in the order in which they came. None stands for "any worker"."""

    def __init__(self) -> None:
        self._lines: dict[str | None, OrderedDict[str, int]] = {}
        self._place: dict[str, tuple[str | None, int]] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._place)

    def add(self, job_id: str, worker_id: str | None) -> None:
        """At the end; a job that is in already keeps its place."""
        if job_id not in self._place:
            self._put(job_id, worker_id, next(self._numbers))

    def put_back(self, job_id: str, worker_id: str | None, number: int) -> None:
        """Where it was: it was taken out, and could not go after all."""
        if job_id in self._place:
            return
        self._put(job_id, worker_id, number)
        line = self._lines[worker_id]
        if len(line) > 1 and number < next(iter(line.values())):
            line.move_to_end(job_id, last=False)

    def remove(self, job_id: str) -> int | None:
        """Takes it out; its number, for ``put_back``."""
        place = self._place.pop(job_id, None)
        if place is None:
            return None
        worker_id, number = place
        line = self._lines[worker_id]
        del line[job_id]
        if not line:
            del self._lines[worker_id]
        return number

    def waits(self, worker_id: str | None) -> bool:
        """Whether somebody is in that line, whom a newcomer must not overtake."""
        return worker_id in self._lines

    def firsts(self, workers: Iterable[str] | None = None) -> list[str]:
        """The first of each line (of those of ``workers`` and of the common one), the longest waiting before."""
        names = self._lines.keys() if workers is None else {None, *workers} & self._lines.keys()
        heads = [next(iter(self._lines[name].items())) for name in names]
        return [job_id for job_id, _ in sorted(heads, key=lambda head: head[1])]

    def _put(self, job_id: str, worker_id: str | None, number: int) -> None:
        self._lines.setdefault(worker_id, OrderedDict())[job_id] = number
        self._place[job_id] = (worker_id, number)
