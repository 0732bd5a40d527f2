"""Retention: what ended tasks left on the disk goes when it is too old, or the oldest first when it is too much."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from jobcluster_worker.launcher.claims import task_directory
from jobcluster_worker.launcher.shapes import JOB_ID, TaskKey, id_of
from jobcluster_worker.output.log import DATA_NAME, INDEX_NAME

log = structlog.get_logger()

LOOK_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Kept:
    """An ended task's directory: when its output was sealed (seconds since the epoch), and bytes on the disk."""

    key: TaskKey
    ended_at: float
    disk_bytes: int


def too_much(kept: list[Kept], now: float, seconds: float | None, total_bytes: int | None) -> list[Kept]:
    """Which of them are to go, oldest first."""
    oldest_first = sorted(kept, key=lambda k: k.ended_at)
    over = sum(k.disk_bytes for k in kept) - total_bytes if total_bytes is not None else 0
    going = []
    for task in oldest_first:
        too_old = seconds is not None and now - task.ended_at > seconds
        if not too_old and over <= 0:
            break
        going.append(task)
        over -= task.disk_bytes
    return going


class Retention:
    """Looks from time to time. ``in_use`` tells which tasks live, or have an end that is not acknowledged."""

    def __init__(
        self,
        data_directory: Path,
        in_use: Callable[[TaskKey], bool],
        seconds: float | None,
        total_bytes: int | None,
    ) -> None:
        self._data = data_directory
        self._in_use = in_use
        self._seconds = seconds
        self._total_bytes = total_bytes

    @property
    def look_seconds(self) -> float:
        """From one look to the next."""
        wanted = LOOK_SECONDS_MAX if self._seconds is None else self._seconds / 4
        return min(LOOK_SECONDS_MAX, max(0.5, wanted))

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self.look_seconds)
            try:
                gone = await asyncio.to_thread(self.look)
            except OSError as error:
                log.error("retention_failed", reason=str(error))
                continue
            if gone:
                log.info("outputs_removed", tasks=len(gone), disk_bytes=sum(task.disk_bytes for task in gone))

    def look(self) -> list[Kept]:
        """Removes what is too old or too much; gives what is gone.

        :raises OSError: if the directory of jobs cannot be read
        """
        going = too_much(list(self._kept()), time.time(), self._seconds, self._total_bytes)
        return [task for task in going if self._remove(task.key)]

    def _kept(self) -> Iterator[Kept]:
        with os.scandir(self._data / "jobs") as jobs:
            for job in jobs:
                if not JOB_ID.fullmatch(job.name):
                    continue
                for directory in _listed(Path(job.path)):
                    rank, _, attempt = directory.name.partition(".")
                    if rank.isdigit() and attempt.isdigit():
                        key = (job.name, int(rank), int(attempt))
                        # A claim is made before the directory and removed when the end is acknowledged.
                        if not self._in_use(key):
                            yield Kept(key, _sealed_at(directory), _disk_bytes(directory))

    def _remove(self, key: TaskKey) -> bool:
        directory = task_directory(self._data, key)
        try:
            # Readers who have it open go on; whoever comes now is told that it is gone.
            for name in (INDEX_NAME, DATA_NAME):
                (directory / name).unlink(missing_ok=True)
            if os.getuid() != 0:
                _open_up(directory)
            shutil.rmtree(directory)
        except (OSError, RecursionError) as error:
            log.warning("output_not_removed", reason=str(error), **id_of(key))
            return False
        with contextlib.suppress(OSError):  # another attempt is there
            directory.parent.rmdir()
        return True


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _sealed_at(directory: Path) -> float:
    """The end is the last that is written to an index."""
    for name in (INDEX_NAME, ""):
        try:
            return (directory / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _disk_bytes(directory: Path) -> int:
    """Blocks of all files below; what vanishes meanwhile, or cannot be entered, counts as nothing."""
    found = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                found += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return found


def _open_up(directory: Path) -> None:
    """A task may have left directories that even their owner cannot enter."""
    for parent, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
