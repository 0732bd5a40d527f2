"""Whose the processes below a supervisor are: leaders, what they left behind, and trees that are to become empty.

Stdlib only.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from jobcluster_worker.launcher.containment import ByDescent, ByUid, Containment, InLeaf
from jobcluster_worker.launcher.loop import URGENT, Loop
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.orphans import Orphans
from jobcluster_worker.launcher.shapes import id_of
from jobcluster_worker.launcher.uids import Uids

if TYPE_CHECKING:
    from jobcluster_worker.launcher.task import RunningTask

_LOOK_AGAIN_SECONDS = 0.5


class Members:
    """``tasks`` is a view of the tasks that have not ended; without ``uids`` there is one task at most."""

    def __init__(self, loop: Loop, uids: Uids | None, tasks: Collection[RunningTask]) -> None:
        self._loop = loop
        self._uids = uids
        self._tasks = tasks
        self._leaders: dict[int, RunningTask] = {}
        self._settling: dict[RunningTask, int] = {}
        """With the descriptor that tells of a change in its leaf; -1: there is none."""
        self._look = False
        self._looks_again = False
        self._orphans = Orphans(self._leaders.__contains__, self._is_starting)

    def contain(self, task: RunningTask) -> Containment:
        """How its tree is reached; from now on its leader is known."""
        self._leaders[task.leader.pid] = task
        if task.start.leaf is not None:
            return InLeaf(task.start.leaf, partial(self._has_orphan, task.start.uid))
        if task.start.uid is not None and self._uids is not None:
            return ByUid(task.start.uid, self._uids.signaller, self._orphans.any_of)
        return ByDescent(self._orphans.any)

    def watch(self, task: RunningTask) -> None:
        """Its leader is gone: ``settle`` is called whenever its tree may have become empty."""
        self._leaders.pop(task.leader.pid, None)
        self._settling[task] = -1
        leaf = task.start.leaf
        if leaf is None:
            return
        try:
            fd = leaf.events_fd()
        except OSError as error:
            # Out of descriptors: the end of a child of ours tells as well.
            note("task_fault", "warning", reason=f"cgroup.events: {error}", **id_of(task.key))
            return
        # Level-triggered until it is read again by this very descriptor; settle comes at the turn's end.
        self._loop.watch(fd, URGENT, partial(_read_again, fd))
        self._settling[task] = fd

    def unwatch(self, task: RunningTask) -> None:
        fd = self._settling.pop(task, -1)
        if fd >= 0:
            self._loop.unwatch(fd)

    def child_ended(self) -> None:
        """Some child did: it is looked for at the turn's end; a leader that nothing else tells of, now."""
        self._look = True
        for task in [task for task in self._leaders.values() if not task.leader.is_watched]:
            task.leader.look()

    def end_turn(self) -> None:
        """Reaps what tasks left behind, and has those settle that may be over."""
        if not self._look and not self._settling:
            return
        self._look = False
        try:
            found = self._orphans.look()
        except OSError as error:
            # Out of descriptors: nothing else might ever tell of what has ended by now.
            if not self._looks_again:
                self._looks_again = True
                note("task_fault", "error", reason=f"children: {error}")
                self._loop.after(_LOOK_AGAIN_SECONDS, self._look_again)
            return
        owners = {task.start.uid: task for task in self._tasks}
        for uid, cpu_seconds in found:
            owner = owners.get(uid if self._uids is not None else None)
            if owner is not None:
                owner.leader.cpu_seconds += cpu_seconds
        for task in list(self._settling):
            task.settle()

    def _look_again(self) -> None:
        self._looks_again = False
        self.child_ended()

    def _has_orphan(self, uid: int | None) -> bool:
        # Without uids nobody can tell whose an orphan is; the leaf alone must do.
        return uid is not None and self._orphans.any_of(uid)

    def _is_starting(self, uid: int | None) -> bool:
        return any(task.starts and (uid is None or task.start.uid == uid) for task in self._tasks)


def _read_again(fd: int, _events: int) -> None:
    os.pread(fd, 256, 0)
