"""What the controller can have done here: start, stop, look, acknowledge. No gRPC in this room."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable

from jobcluster_common.errors import (
    Conflict,
    Fault,
    Internal,
    Invalid,
    JobclusterError,
    NotFound,
    Unavailable,
)
from jobcluster_common.limits import Amounts

from jobcluster_worker.launcher.shapes import JOB_ID, TERMINAL, Spec, Task, TaskKey, key_of
from jobcluster_worker.limits import applied
from jobcluster_worker.server.peer import PeerLost
from jobcluster_worker.server.remains import Remains
from jobcluster_worker.server.supervisors import Claimed, NoSupervisor, StartRefused, Supervisors
from jobcluster_worker.server.tasks import MINTED_ATTEMPT, TaskTable


class Draining(Conflict):
    """This worker takes no new jobs."""


class StaleEpoch(Conflict):
    """The controller that decided this has since given this worker up."""


class Jobs:
    """The tasks on this worker. ``epoch`` tells what the controller last said, 0 = nothing yet."""

    def __init__(
        self,
        table: TaskTable,
        supervisors: Supervisors,
        remains: Remains,
        *,
        epoch: Callable[[], int],
        max_tasks: int,
        limits_default: Amounts,
        limits_max: Amounts,
    ) -> None:
        self._table = table
        self._supervisors = supervisors
        self._remains = remains
        self._epoch = epoch
        self._max_tasks = max_tasks
        self._limits_default = limits_default
        self._limits_max = limits_max
        self.draining = False

    @staticmethod
    def mint_id() -> str:
        return str(uuid.uuid4())

    async def start(self, spec: Spec, epoch: int, limits_default: Amounts | None = None) -> None:
        """Starts a task; again, it is the same start. ``limits_default`` is the cluster's.

        :raises Draining, StaleEpoch, Invalid: it was not started and will not be
        :raises Unavailable: no room, or no disk; it was not started
        :raises Internal: it was here before, and its end was acknowledged
        :raises PeerLost: it is not known whether it was started
        """
        if self.draining:
            raise Draining("this worker takes no new jobs")
        if epoch and epoch < self._epoch():
            raise StaleEpoch(f"epoch {epoch} is over; now it is {self._epoch()}")
        key = key_of(spec)
        if self._table.get(key) is not None:
            return
        if self._table.alive >= self._max_tasks:
            raise Unavailable(f"{self._max_tasks} tasks run here already")
        defaults = [limits_default or {}, self._limits_default]
        spec["limits"] = applied(spec.get("limits", {}), defaults, self._limits_max)
        try:
            await self._supervisors.start(spec)
        except Claimed:
            await self._report_again(key)
        except NoSupervisor as error:
            raise Unavailable(str(error)) from error
        except StartRefused as error:
            if error.code == "unavailable":
                raise Unavailable(str(error)) from error
            raise Invalid([Fault("", str(error))]) from error

    async def stop(
        self, job_id: str, rank: int | None, attempt: int, signal: str, grace_seconds: float, reason: str
    ) -> str:
        """Stops a job's tasks here and gives a state: that of the first one. An end stays as it is.

        :raises NotFound: if there is no such task, and none that could come
        :raises PeerLost: if its supervisor does not answer
        """
        keys = self._matching(job_id, rank, attempt)
        if not keys and attempt and JOB_ID.fullmatch(job_id):
            buried = await self._bury((job_id, rank or 0, attempt), reason)
            if buried is not None:
                return buried["state"]
            keys = self._matching(job_id, rank, attempt)
        if not keys:
            ended = self._ended(job_id, rank, attempt)
            if ended is None:
                raise NotFound(f"no job {job_id[:128]} on this worker")
            return ended["state"]
        await asyncio.gather(*(self._stop(key, signal, grace_seconds, reason) for key in keys))
        entry = self._table.get(keys[0])
        return "stopping" if entry is None else entry.task["state"]

    async def query(self, job_id: str, rank: int, attempt: int) -> Task:
        """A task as it is now, with its usage and the size of its output so far.

        :raises NotFound: if there is no such task
        """
        key = self.resolve(job_id, rank, attempt)
        entry = self._table.get(key)
        if entry is not None and entry.ended:
            return entry.task
        # The output is sealed before its supervisor tells us: who has read it to the end is not told "running".
        ended = self._remains.end_of(key)
        if ended is not None:
            return ended
        if entry is None:
            raise NotFound(f"no job {job_id[:128]} on this worker")
        task = entry.task
        if entry.holder is not None and task["state"] != "starting":
            usage = await self._supervisors.usage(key, entry.holder)
            return {**task, "usage": usage or task["usage"], "output": self._remains.written(key, task)}
        return task

    def resolve(self, job_id: str, rank: int, attempt: int) -> TaskKey:
        """The key of a task that is here, of its newest attempt if none is named.

        :raises NotFound: if there is none
        """
        if JOB_ID.fullmatch(job_id):
            here = {*self._table.of_job(job_id), *self._remains.attempts(job_id)}
            found = [key for key in here if key[1] == rank and attempt in (0, key[2])]
            if found:
                return max(found)
        raise NotFound(f"no job {job_id[:128]} on this worker")

    def acknowledge(self, keys: Iterable[TaskKey]) -> None:
        """The ends of these are durable at the controller."""
        holders: dict[str | None, list[TaskKey]] = {}
        for key in keys:
            entry = self._table.get(key)
            if entry is not None and entry.ended:
                self._table.forget(key)
                holders.setdefault(entry.holder, []).append(key)
        for holder, held in holders.items():
            if holder is None:
                self._remains.release(held)
            else:
                self._supervisors.acknowledge(holder, held)

    def acknowledge_minted(self, key: TaskKey) -> None:
        """Ends of jobs that only this worker knows are acknowledged by nobody else."""
        entry = self._table.get(key)
        if key[2] == MINTED_ATTEMPT and entry is not None and entry.ended:
            # Later: whoever listens now is to see the end first.
            asyncio.get_running_loop().call_soon(self.acknowledge, [key])

    async def _stop(self, key: TaskKey, signal: str, grace_seconds: float, reason: str) -> None:
        entry = self._table.get(key)
        if entry is None or entry.ended or entry.holder is None:
            return
        await self._supervisors.stop(key, entry.holder, signal, grace_seconds, reason)

    async def _bury(self, key: TaskKey, reason: str) -> Task | None:
        try:
            task = await self._remains.bury(key, reason)
        except OSError as error:
            raise Unavailable(f"the stop could not be kept: {error}") from error
        if task is not None:
            self._table.update(task, None)
        return task

    async def _report_again(self, key: TaskKey) -> None:
        """A start of an attempt that was here before: whoever sends it has not heard of its end."""
        if self._table.get(key) is not None:
            return
        ended = await asyncio.to_thread(self._remains.end_of, key)
        if ended is not None and ended["state"] in TERMINAL:
            self._table.update(ended, None)
        elif self._remains.is_claimed(key):
            # Its supervisor will tell of it, or its claim is settled with what the dead left.
            raise PeerLost(f"{key[0]} is claimed by a supervisor that cannot be asked")
        else:
            raise Internal(f"{key[0]} was here before, and its end was acknowledged")

    def _matching(self, job_id: str, rank: int | None, attempt: int) -> list[TaskKey]:
        keys = [key for key in self._table.of_job(job_id) if rank in (None, key[1])]
        if attempt:
            return [key for key in keys if key[2] == attempt]
        newest = {key[1]: key for key in keys}  # in the order of attempts
        return list(newest.values())

    def _ended(self, job_id: str, rank: int | None, attempt: int) -> Task | None:
        if not JOB_ID.fullmatch(job_id):
            return None
        for key in reversed(self._remains.attempts(job_id)):
            if rank in (None, key[1]) and attempt in (0, key[2]):
                return self._remains.end_of(key)
        return None


def refusal(error: JobclusterError) -> str:
    """The code of a start that was not made, for programs."""
    if isinstance(error, Draining):
        return "draining"
    if isinstance(error, StaleEpoch):
        return "epoch"
    return "unavailable" if isinstance(error, Unavailable) else "invalid"
