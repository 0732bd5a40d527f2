"""A uid for each task: 4096 of them per launcher, a slice of the block per supervisor. Stdlib only.

A block belongs to whoever has bound its abstract unix socket: the kernel frees it when the last holder is dead, so
two launchers on one host never share a uid, and no lock file can go stale.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

FIRST_UID = 100_000
# Rootless containers often map 65536 uids and no more.
FIRST_UID_OF_SMALL_MAP = 20_000
BLOCK_UIDS = 4096
SLICE_UIDS = 64
_BLOCKS = 1024


class NoUids(Exception):
    """No block or uid is free."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Uids of one supervisor: tasks get first … last-1, the last one only signals (no process ever has it)."""

    first: int

    @property
    def signaller(self) -> int:
        return self.first + SLICE_UIDS - 1

    @property
    def task_uids(self) -> range:
        return range(self.first, self.signaller)


class Block:
    """A launcher's block; kept by this object's socket, which supervisors inherit."""

    def __init__(self, first: int, reservation: socket.socket) -> None:
        self.first = first
        self._reservation = reservation
        self._taken: set[int] = set()

    @classmethod
    def reserve(cls, first: int = FIRST_UID, in_use: Collection[int] = ()) -> Block:
        """The first free block from uid ``first`` on that this user namespace maps, and with none of these uids: a
        stop would reach whoever has one (what a killed launcher left, a rootless container's processes).

        :raises NoUids: all blocks are taken, or the kernel refuses the socket.
        """
        for start in range(first, first + _BLOCKS * BLOCK_UIDS, BLOCK_UIDS):
            if not mapped(start, BLOCK_UIDS):
                break
            if any(start <= uid < start + BLOCK_UIDS for uid in in_use):
                continue
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                sock.bind(f"\0jobcluster-uids-{start}")
            except OSError as error:
                sock.close()
                if error.errno != errno.EADDRINUSE:
                    raise NoUids(f"reserving uids: {error}") from error
                continue
            return cls(start, sock)
        raise NoUids("all blocks of uids are taken on this host")

    def take_slice(self) -> Slice:
        """:raises NoUids: all slices are taken."""
        for first in range(self.first, self.first + BLOCK_UIDS, SLICE_UIDS):
            if first not in self._taken:
                self._taken.add(first)
                return Slice(first)
        raise NoUids("all uids of this worker are taken by its supervisors")

    def give_back(self, slice_: Slice) -> None:
        self._taken.discard(slice_.first)

    def close(self) -> None:
        self._reservation.close()


class Uids:
    """A supervisor's uids, given out in turn: one comes back into use as late as possible."""

    def __init__(self, slice_: Slice) -> None:
        self.signaller = slice_.signaller
        self._all = slice_.task_uids
        self._next = 0
        self._live: set[int] = set()

    def take(self) -> int:
        """:raises NoUids: every uid has a live task."""
        for step in range(len(self._all)):
            uid = self._all[(self._next + step) % len(self._all)]
            if uid not in self._live:
                self._next = (self._next + step + 1) % len(self._all)
                self._live.add(uid)
                return uid
        raise NoUids(f"all {len(self._all)} uids of this supervisor have live tasks")

    def give_back(self, uid: int) -> None:
        self._live.discard(uid)


def mapped(first: int, count: int, read: Callable[[], str] = Path("/proc/self/uid_map").read_text) -> bool:
    """Whether this user namespace has those uids (a rootless container often has no more than 65536)."""
    with contextlib.suppress(OSError, ValueError):
        for line in read().splitlines():
            inside, _, size = (int(word) for word in line.split())
            if inside <= first and first + count <= inside + size:
                return True
    return False
