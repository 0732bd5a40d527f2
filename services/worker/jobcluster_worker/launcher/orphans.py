"""What tasks leave behind: a subreaper's children that are no leader. Found, counted by uid, reaped. Stdlib only."""

from __future__ import annotations

import os
from collections.abc import Callable

from jobcluster_worker.launcher import processes


class Orphans:
    """Only the loop reaps, so a pid known here means the same process until it is reaped here."""

    def __init__(self, is_leader: Callable[[int], bool], is_starting: Callable[[int | None], bool]) -> None:
        """``is_starting(uid)``: a start with that uid (None: any at all) is under way; its leader is not known yet."""
        self._is_leader = is_leader
        self._is_starting = is_starting
        self._own_uid = os.getuid()
        self._uids: dict[int, int] = {}

    def look(self) -> list[tuple[int, float]]:
        """Finds new orphans and reaps those that have ended; gives uid and CPU seconds of each of these."""
        gone: list[tuple[int, float]] = []
        while True:
            self._find()
            reaped = self._reap()
            if not reaped:
                return gone
            # Whoever was reaped may have left us its own children since we looked.
            gone += reaped

    def _find(self) -> None:
        for pid in processes.children():
            if pid in self._uids or self._is_leader(pid):
                continue
            uid = processes.uid_of(pid)
            # It may be a leader that its starter thread has not reported yet. A forked start is root at first.
            if uid is None or self._is_starting(uid) or (uid == self._own_uid and self._is_starting(None)):
                continue
            self._uids[pid] = uid

    def any(self) -> bool:
        """Whether one lives, of whatever task."""
        return bool(self._uids)

    def any_of(self, uid: int) -> bool:
        """Whether one with that uid lives."""
        return uid in self._uids.values()

    def _reap(self) -> list[tuple[int, float]]:
        gone = []
        for pid, uid in list(self._uids.items()):
            try:
                reaped = processes.reap(pid)
            except ChildProcessError:
                del self._uids[pid]
                continue
            if reaped is not None:
                del self._uids[pid]
                gone.append((uid, reaped[1]))
        return gone
