"""Who may start here: a user id, room on the disk, and the claim that makes sure it happens once. Stdlib only."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.claims import Claim, Claimed
from jobcluster_worker.launcher.commands import Refused
from jobcluster_worker.launcher.shapes import Spec, TaskKey
from jobcluster_worker.launcher.uids import NoUids, Slice, Uids

LEAST_ROOM_BYTES = 1 << 20
"""With less on the disk a start is refused before anything of it is made, so that it can be made elsewhere or later."""
_LEAST_FILES = 16


class Admission:
    """``incarnation`` and ``name`` say whose the claims are."""

    def __init__(self, data_directory: Path, incarnation: str, name: str, slice_: Slice | None) -> None:
        self._data = data_directory
        self._incarnation = incarnation
        self._name = name
        self.uids = Uids(slice_) if slice_ is not None else None

    def admit(self, spec: Spec, key: TaskKey) -> tuple[Path, int | None]:
        """The directory of the attempt, and its uid where tasks have their own.

        :raises Refused: ``full``, ``unavailable`` or ``claimed``; nothing is taken then.
        """
        self._look_for_room(sum(len(text) // 4 * 3 for text in (spec.get("files") or {}).values()))
        uid = self._take_uid()
        try:
            return self.claim(key, uid), uid
        except Refused:
            self.give_back(uid)
            raise

    def claim(self, key: TaskKey, uid: int | None = None) -> Path:
        """:raises Refused: ``claimed``, or ``unavailable`` where it cannot be written."""
        claim = Claim(key, self._incarnation, self._name, -1 if uid is None else uid)
        try:
            return claims.take(self._data, claim)
        except Claimed:
            raise Refused("claimed", "it was started, stopped or cancelled on this worker before") from None
        except OSError as error:
            raise Refused("unavailable", f"claiming: {_named(error)}") from error

    def give_back(self, uid: int | None) -> None:
        if self.uids is not None and uid is not None:
            self.uids.give_back(uid)

    def _take_uid(self) -> int | None:
        try:
            return self.uids.take() if self.uids is not None else None
        except NoUids as error:
            raise Refused("full", str(error)) from None

    def _look_for_room(self, file_bytes: int) -> None:
        try:
            disk = os.statvfs(self._data)
        except OSError as error:
            raise Refused("unavailable", _named(error)) from error
        free, needed = disk.f_bavail * disk.f_frsize, LEAST_ROOM_BYTES + file_bytes
        # Some file systems do not count their blocks or files: then both numbers are 0.
        if disk.f_blocks and free < needed:
            raise Refused(
                "unavailable", f"ENOSPC: {self._data}: {free} bytes are free, and a start needs {needed}"
            )
        if disk.f_files and disk.f_favail < _LEAST_FILES:
            raise Refused("unavailable", f"ENOSPC: {self._data}: no more files can be made")


def _named(error: OSError) -> str:
    return (
        f"{errno.errorcode.get(error.errno or 0, 'EIO')}: {error.filename or ''}: {error.strerror or error}"
    )
