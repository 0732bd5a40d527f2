"""The end log of a supervisor: one JSON task a line, appended at each end, read by the server when its writer is gone.

No fsync: the controller's commit is the point of durability, and an end not acknowledged before a power loss is
reported as lost. Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from jobcluster_worker.launcher.shapes import Task, TaskKey, key_of

COMPACT_BYTES = 1 << 20
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def end_log_path(state_directory: Path, incarnation: str, supervisor: str) -> Path:
    return state_directory / "ends" / f"{incarnation}.{supervisor}.log"


class EndLog:
    """The writing side; only the supervisor that it is named after (or, once that is dead, the launcher) has it.

    The file is made at the first end, so that a supervisor without ends leaves no file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._size = 0
        self._unwritten: dict[TaskKey, bytes] = {}

    def append(self, task: Task) -> None:
        """Appends an end, and those that could not be written before.

        :raises OSError: it cannot be written now; it is kept for the next time.
        """
        self._unwritten[key_of(task)] = _line(task)
        self._write_unwritten()

    def forget(self, remaining: Iterable[Task]) -> None:
        """Tells which ends are not acknowledged yet: the file shrinks when there are none, or when it has grown big.

        :raises OSError: it cannot be rewritten; the file is as before.
        """
        left = list(remaining)
        keys = {key_of(task) for task in left}
        self._unwritten = {key: line for key, line in self._unwritten.items() if key in keys}
        if self._fd < 0 or (left and self._size < COMPACT_BYTES):
            return
        if not left:
            os.ftruncate(self._fd, 0)
            self._size = 0
            return
        self._rewrite(left)

    def close(self, remove: bool) -> None:
        """Closes the log; ``remove`` when every end in it is acknowledged. What is unwritten is tried once more."""
        with contextlib.suppress(OSError):
            if self._unwritten and not remove:
                self._write_unwritten()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    def _write_unwritten(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, _FLAGS, 0o600)
            self._size = os.fstat(self._fd).st_size
        self._write(b"".join(self._unwritten.values()))
        self._unwritten.clear()

    def _write(self, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, memoryview(data)[done:])
        except OSError:
            # No half line: the next append would be glued to it.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _rewrite(self, left: list[Task]) -> None:
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        fd, old, size = os.open(new, _FLAGS, 0o600), self._fd, self._size
        self._fd, self._size = fd, 0
        try:
            self._write(b"".join(map(_line, left)))
            os.rename(new, self.path)
        except OSError:
            self._fd, self._size = old, size
            os.close(fd)
            new.unlink(missing_ok=True)
            raise
        os.close(old)


def _line(task: Task) -> bytes:
    return json.dumps(task, separators=(",", ":")).encode() + b"\n"


def read_ends(path: Path) -> list[Task]:
    """The ends in a log; an incomplete last line (its writer was killed) is passed over, a missing file is empty.

    :raises OSError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    tasks: list[Task] = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            task = json.loads(line)
            key_of(task)
            tasks.append(task)
    return tasks
