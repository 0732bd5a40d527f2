"""What the server knows of tasks: those that live, and ends that the controller has not acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobcluster_worker.launcher.shapes import TERMINAL, Task, TaskKey, key_of

MINTED_ATTEMPT = 0
"""The attempt of a job that this worker minted an id for: the controller does not know it."""

_ORDER = {"starting": 0, "running": 1, "stopping": 2}


@dataclass(slots=True)
class Entry:
    """A task as last heard of. ``holder`` is the supervisor that has it; None: that one is gone."""

    task: Task
    holder: str | None

    @property
    def ended(self) -> bool:
        return self.task["state"] in TERMINAL


class TaskTable:
    """Changes are told to listeners at once, in order. States only go forward; an end never changes."""

    def __init__(self) -> None:
        self._entries: dict[TaskKey, Entry] = {}
        self._of_job: dict[str, set[TaskKey]] = {}
        self._listeners: set[Callable[[TaskKey], None]] = set()
        self._watchers: dict[TaskKey, set[asyncio.Event]] = {}
        self._alive = 0

    @property
    def alive(self) -> int:
        """How many tasks have not ended."""
        return self._alive

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: TaskKey) -> Entry | None:
        return self._entries.get(key)

    def __iter__(self) -> Iterator[TaskKey]:
        """The keys as they are now; the table may change meanwhile."""
        return iter(list(self._entries))

    def of_job(self, job_id: str) -> list[TaskKey]:
        """The keys of a job's tasks, in the order of rank and attempt."""
        return sorted(self._of_job.get(job_id, ()))

    def held_by(self, holder: str) -> list[TaskKey]:
        return [key for key, entry in self._entries.items() if entry.holder == holder]

    def update(self, task: Task, holder: str | None) -> None:
        """Takes a report; an older one than what is known changes nothing."""
        key = key_of(task)
        known = self._entries.get(key)
        if known is None:
            self._entries[key] = Entry(task, holder)
            self._of_job.setdefault(key[0], set()).add(key)
            self._alive += task["state"] not in TERMINAL
        else:
            if holder is not None:
                known.holder = holder
            if known.ended or not _is_news(known.task, task):
                return
            self._alive -= task["state"] in TERMINAL
            known.task = task
        self._tell(key)

    def orphan(self, keys: Iterable[TaskKey]) -> None:
        """The holder of these is gone."""
        for key in keys:
            if key in self._entries:
                self._entries[key].holder = None

    def forget(self, key: TaskKey) -> Entry | None:
        """Removes an entry: its end is durable elsewhere, or it was never true."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._alive -= not entry.ended
            keys = self._of_job[key[0]]
            keys.discard(key)
            if not keys:
                del self._of_job[key[0]]
            self._tell(key)
        return entry

    @contextmanager
    def listening(self, listener: Callable[[TaskKey], None]) -> Iterator[None]:
        """Calls ``listener`` with the key of every change."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    @contextmanager
    def watching(self, key: TaskKey, changed: asyncio.Event) -> Iterator[None]:
        """Sets ``changed`` at every change of one task."""
        watchers = self._watchers.setdefault(key, set())
        watchers.add(changed)
        try:
            yield
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(key) is watchers:
                del self._watchers[key]

    def _tell(self, key: TaskKey) -> None:
        for listener in tuple(self._listeners):
            listener(key)
        for changed in self._watchers.get(key, ()):
            changed.set()


def _is_news(old: Task, new: Task) -> bool:
    if new["state"] in TERMINAL:
        return True
    # The same state again may bring a pid or read-back limits.
    return _ORDER[new["state"]] >= _ORDER[old["state"]]
