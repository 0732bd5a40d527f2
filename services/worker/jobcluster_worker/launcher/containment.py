"""What belongs to a task: three kinds of membership behind one interface. Stdlib only.

None of them can be left by a process: not by setsid, a double fork or nohup. The process group is no such thing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Protocol

from jobcluster_worker.launcher import processes


class Containment(Protocol):
    """All processes of one task."""

    def signal(self, number: int) -> None:
        """Signals every process. :raises OSError: it cannot."""

    def kill(self) -> None:
        """Kills every process, also those being forked now. :raises OSError: it cannot."""

    def empty(self) -> bool:
        """Whether no process of it lives. The leader must have been reaped."""


class LeafOfTree(Protocol):
    """What is used of a cgroup leaf."""

    def signal(self, number: int) -> int: ...

    def kill(self) -> None: ...

    def populated(self) -> bool: ...


class InLeaf:
    """Membership by cgroup: cgroup.procs, cgroup.kill, cgroup.events."""

    def __init__(self, leaf: LeafOfTree, zombies: Callable[[], bool]) -> None:
        """``zombies`` tells whether a child of ours, other than a leader, is of this task."""
        self._leaf, self._zombies = leaf, zombies

    def signal(self, number: int) -> None:
        self._leaf.signal(number)

    def kill(self) -> None:
        self._leaf.kill()

    def empty(self) -> bool:
        # A process leaves the cgroup before it can be reaped: populated 0 does not mean that it is gone.
        return not self._leaf.populated() and not self._zombies()


class ByUid:
    """Membership by a uid that no other task has; no_new_privs and no capabilities keep every process in it."""

    def __init__(self, uid: int, signaller: int, living: Callable[[int], bool]) -> None:
        """``living`` tells whether a child of ours, other than a leader, has that uid."""
        self._uid, self._signaller, self._living = uid, signaller, living

    def signal(self, number: int) -> None:
        processes.signal_uid(self._uid, self._signaller, number)

    def kill(self) -> None:
        processes.signal_uid(self._uid, self._signaller, signal.SIGKILL)

    def empty(self) -> bool:
        return not self._living(self._uid)


class ByDescent:
    """Membership by descent: everything below this process, which has this one task only and is a subreaper."""

    def __init__(self, living: Callable[[], bool]) -> None:
        """``living`` tells whether there is a child of ours other than a leader."""
        self._living = living

    def signal(self, number: int) -> None:
        members = processes.descendants()
        parents = {os.getpid(), *members}
        for pid in members:
            processes.send_to_child(pid, number, parents)

    def kill(self) -> None:
        kill_below()

    def empty(self) -> bool:
        return not self._living()


def kill_below(pid: int | str = "self", spare: frozenset[int] = frozenset()) -> None:
    """Kills everything below a process, but for the trees of the spared children.

    First all are stopped, until a look finds none that is new: what is stopped cannot fork, so none is missed.
    """
    top = os.getpid() if pid == "self" else int(pid)
    stopped: set[int] = set()
    for _ in range(1000):
        # Parents come before their children, and a parent that is stopped reaps nobody: the numbers stay true.
        found = [child for child in processes.children(pid) if child not in spare]
        for child in found:
            found += [other for other in processes.children(child) if other not in found]
        before = len(stopped)
        for other in found:
            if other not in stopped and processes.send_to_child(other, signal.SIGSTOP, {top, *stopped}):
                stopped.add(other)
        if len(stopped) == before:
            break
    for other in stopped:
        processes.send(other, signal.SIGKILL)
