"""What dead supervisors left: claims, end logs, outputs without an end. Every claimed attempt gets its end from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog

from jobcluster_worker.backoff import delays
from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.claims import Claim, claim_path, task_directory
from jobcluster_worker.launcher.ends import end_log_path, read_ends
from jobcluster_worker.launcher.shapes import (
    OutputInfo,
    StreamTotals,
    Task,
    TaskKey,
    id_of,
    key_of,
    new_task,
    no_output,
)
from jobcluster_worker.output.index import DamagedIndex
from jobcluster_worker.output.log import DATA_NAME, OutputLog
from jobcluster_worker.output.reader import OutputReader
from jobcluster_worker.output.recovery import recover
from jobcluster_worker.server.tasks import TaskTable

log = structlog.get_logger()

MEND_SECONDS = (1.0, 60.0)
"""Between two tries, the first and the longest: each reads the whole output."""

_SERVER = "server"
"""Whose claim an attempt is that was stopped before it was here."""


@dataclass(frozen=True, slots=True)
class Left:
    """Claims of the dead, and those of their ends that are in logs."""

    claims: list[Claim]
    ends: dict[TaskKey, Task]


class Remains:
    """Reads and settles what lies on the disk; a claim is removed when its end is durable at the controller."""

    def __init__(
        self,
        data_directory: Path,
        state_directory: Path,
        incarnation: str,
        table: TaskTable,
        log_path: str = "",
    ) -> None:
        self._data = data_directory
        self._ends = state_directory / "ends"
        self._state = state_directory
        self._incarnation = incarnation
        self._table = table
        self._log_path = log_path
        self._settling = asyncio.Lock()
        self._logs: dict[Path, set[TaskKey]] = {}
        """End logs of the dead, and which of their ends are not acknowledged."""
        self._unsealed: dict[TaskKey, Task] = {}
        """Outputs without an end that could not be given one (a full disk). Their claims are not released."""
        self._to_mend = asyncio.Event()

    def directory(self, key: TaskKey) -> Path:
        return task_directory(self._data, key)

    def written(self, key: TaskKey, task: Task) -> OutputInfo:
        """The output of a task that runs, with what there is of it now."""
        output = task["output"]
        try:
            with OutputReader(self.directory(key)) as reader:
                sizes = reader.sizes()
        except (OSError, DamagedIndex):
            return output
        totals = {stream: StreamTotals(bytes=size, sha256="") for stream, size in sizes.items()}
        return {**output, "merged": totals["merged"], "stdout": totals["stdout"], "stderr": totals["stderr"]}

    def is_claimed(self, key: TaskKey) -> bool:
        return claim_path(self._data, key).is_symlink()

    def attempts(self, job_id: str) -> list[TaskKey]:
        """All attempts of a job that have a directory here, in the order of rank and attempt.

        :raises OSError: it cannot be looked at; which does not mean that there is none
        """
        found = []
        try:
            names = [path.name for path in (self._data / "jobs" / job_id).iterdir()]
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []
        for name in names:
            rank, _, attempt = name.partition(".")
            if rank.isdigit() and attempt.isdigit():
                found.append((job_id, int(rank), int(attempt)))
        return sorted(found)

    def end_of(self, key: TaskKey) -> Task | None:
        """The task as its output tells its end; None if there is no output or no end."""
        try:
            with OutputReader(self.directory(key)) as reader:
                return cast("Task | None", reader.sealed())
        except (OSError, ValueError, DamagedIndex):
            return None

    async def find(self, alive: set[str], ungreeted: set[str]) -> Left:
        """At the server's start, before it starts anything: what earlier ones left, for ``settle``.

        ``alive`` are this incarnation's supervisors, of which ``ungreeted`` have not said yet what they hold: their
        claims are reported as starting.
        """
        held = await asyncio.to_thread(claims.held, self._data)
        logged = await asyncio.to_thread(self._read_logs, alive)
        left = Left([], logged)
        for claim in held:
            ours = claim.incarnation == self._incarnation
            if self._table.get(claim.key) is not None:
                continue
            if ours and claim.supervisor in ungreeted:
                self._table.update(new_task(claim.key, "starting"), claim.supervisor)
            elif not (ours and claim.supervisor in alive):
                left.claims.append(claim)
        # Ends whose claim is gone were acknowledged; their log outlived its writer only.
        kept = {claim.key for claim in held}
        self._trim_logs([key for key in logged if key not in kept])
        return left

    async def settle(self, left: Left) -> None:
        """Gives each of them its end. Takes as long as it takes to read their outputs."""
        for claim in left.claims:
            await self._settle(claim, left.ends.get(claim.key))

    async def lost(self, supervisor: str, keys: Iterable[TaskKey], in_flight: set[TaskKey]) -> None:
        """A supervisor of this incarnation is dead: ends what it held."""
        path = end_log_path(self._state, self._incarnation, supervisor)
        logged = {key_of(task): task for task in await asyncio.to_thread(read_ends, path)}
        self._logs[path] = set(logged)
        held = {
            claim.key: claim
            for claim in await asyncio.to_thread(claims.held, self._data)
            if claim.supervisor == supervisor and claim.incarnation == self._incarnation
        }
        for key in dict.fromkeys([*keys, *held]):
            if key not in held and key in in_flight:
                # It died before it claimed: whoever waits for this start gives it to another.
                self._table.forget(key)
            else:
                await self._settle(
                    held.get(key) or Claim(key, self._incarnation, supervisor, -1), logged.get(key)
                )
        self._trim_logs([key for key in logged if key not in held])

    async def bury(self, key: TaskKey, reason: str) -> Task | None:
        """Makes sure that an attempt which is not here yet is never started; None if it is here after all.

        :raises OSError: if it cannot be written
        """
        return await asyncio.to_thread(self._bury, key, reason)

    def release(self, keys: Iterable[TaskKey]) -> None:
        """The ends of these, which no living supervisor holds, are durable at the controller."""
        known = [key for key in keys if key not in self._unsealed]
        for key in known:
            claims.release(self._data, key)
        self._trim_logs(known)

    async def mend(self) -> None:
        """Seals the outputs that could not be sealed, once they can be. Until it is cancelled."""
        waits = delays(*MEND_SECONDS)
        while True:
            await self._to_mend.wait()
            await asyncio.sleep(next(waits))
            for key, task in list(self._unsealed.items()):
                try:
                    await asyncio.to_thread(recover, self.directory(key), task)
                except FileNotFoundError:
                    pass  # it is gone, and nobody will read it
                except (OSError, DamagedIndex):
                    continue
                del self._unsealed[key]
                if self._table.get(key) is None:
                    self.release([key])
            if not self._unsealed:
                self._to_mend.clear()
                waits = delays(*MEND_SECONDS)

    async def _settle(self, claim: Claim, logged: Task | None) -> None:
        # One at a time: a supervisor that was dying when this server began is found, and told of, both.
        async with self._settling:
            known = self._table.get(claim.key)
            if known is not None and known.ended:
                return
            try:
                task = await asyncio.to_thread(self._end, claim, logged)
            except (OSError, DamagedIndex) as error:
                log.error("output_not_recovered", reason=str(error), **id_of(claim.key))
                task = logged or self._lost_task(claim)
                if isinstance(error, OSError):
                    self._unsealed[claim.key] = task
                    self._to_mend.set()
        log.info("task_recovered", state=task["state"], reason=task["reason"], **id_of(claim.key))
        self._table.update(task, None)

    def _end(self, claim: Claim, logged: Task | None) -> Task:
        directory = self.directory(claim.key)
        try:
            return cast("Task", recover(directory, logged or self._lost_task(claim)))
        except FileNotFoundError:
            return logged or self._lost_task(claim)

    def _lost_task(self, claim: Claim) -> Task:
        task = new_task(claim.key, "failed")
        known = self._table.get(claim.key)
        if known is not None:
            task.update(known.task)
        task["output"] = no_output(
            str(self.directory(claim.key) / DATA_NAME), self._log_path, self.directory(claim.key).is_dir()
        )
        if claim.incarnation == self._incarnation:
            task["state"], task["reason"] = "failed", "supervisor_lost"
            task["error_text"] = "its supervisor died"
        else:
            task["state"], task["reason"] = "lost", "worker_lost"
            task["error_text"] = "its worker came back without it"
        task["finished_at_us"] = time.time_ns() // 1000
        return task

    def _bury(self, key: TaskKey, reason: str) -> Task | None:
        try:
            directory = claims.take(self._data, Claim(key, self._incarnation, _SERVER, -1))
        except claims.Claimed:
            return None
        task = new_task(key, "stopped")
        task["reason"], task["finished_at_us"] = reason, time.time_ns() // 1000
        try:
            with closing(OutputLog(directory, max_bytes=1)) as output:
                task["output"] = no_output(str(directory / DATA_NAME), self._log_path, True)
                task["output"].update(output.totals())  # type: ignore[typeddict-item]
                output.seal(task)
        except OSError:
            # A claim without an end could neither be stopped again nor started: nobody would ever tell of it.
            claims.give_up(self._data, key)
            raise
        return task

    def _read_logs(self, alive: set[str]) -> dict[TaskKey, Task]:
        ends: dict[TaskKey, Task] = {}
        for path in sorted(self._ends.glob("*.log")):
            incarnation, _, supervisor = path.stem.partition(".")
            if incarnation == self._incarnation and supervisor in alive:
                continue
            try:
                found = {key_of(task): task for task in read_ends(path)}
            except OSError as error:
                log.error("end_log_unreadable", file=str(path), reason=str(error))
                continue
            self._logs[path] = set(found)
            ends.update(found)
        return ends

    def _trim_logs(self, acknowledged: Iterable[TaskKey]) -> None:
        done = set(acknowledged)
        for path, keys in list(self._logs.items()):
            keys -= done
            if not keys:
                path.unlink(missing_ok=True)
                del self._logs[path]
