"""A supervisor's ends until the controller has them: in memory, in the end log, in the outputs. Stdlib only.

A claim is released when its end is durable at the controller and in the output: whatever dies before that, the claim
tells that there is something to be told, or to be sealed.
"""

from __future__ import annotations

from pathlib import Path

from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.ends import EndLog
from jobcluster_worker.launcher.loop import Loop
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import Task, TaskKey, id_of
from jobcluster_worker.launcher.unsealed import Unsealed
from jobcluster_worker.output.log import OutputLog


class Ended:
    """Nothing here raises OSError: a full disk loses no end as long as this process lives."""

    def __init__(self, loop: Loop, data_directory: Path, end_log: EndLog) -> None:
        self._data = data_directory
        self._log = end_log
        self._waiting: dict[TaskKey, Task] = {}
        """Not acknowledged yet."""
        self._unsealed = Unsealed(loop, self._sealed)

    @property
    def tasks(self) -> list[Task]:
        """Those that are not acknowledged."""
        return list(self._waiting.values())

    @property
    def unsealed(self) -> bool:
        """Whether an output waits for its end."""
        return bool(self._unsealed.tasks)

    def get(self, key: TaskKey) -> Task | None:
        return self._waiting.get(key)

    def add(self, key: TaskKey, task: Task, output: OutputLog | None = None) -> None:
        self._waiting[key] = task
        note(
            "task_ended",
            state=task["state"],
            reason=task["reason"],
            exit_code=task["exit_code"],
            signal=task["signal"],
            **id_of(key),
        )
        if output is not None:
            self._unsealed.seal(key, task, output)
        try:
            self._log.append(task)
        except OSError as error:
            note("end_not_written", "error", reason=str(error), **id_of(key))

    def acknowledged(self, keys: list[TaskKey]) -> None:
        """These are durable at the controller."""
        for key in keys:
            if self._waiting.pop(key, None) is not None and key not in self._unsealed:
                self._release(key)
        self._forget()

    def close(self) -> None:
        """What is still kept is left to whoever reads end log and claims."""
        self._unsealed.try_all()
        self._forget()
        self._log.close(remove=not self._kept())

    def _sealed(self, key: TaskKey) -> None:
        if key not in self._waiting:
            self._release(key)
            self._forget()

    def _release(self, key: TaskKey) -> None:
        try:
            claims.release(self._data, key)
        except OSError as error:
            # It is told again by the next launcher, and the controller knows that already.
            note("task_fault", "error", reason=f"releasing: {error}", **id_of(key))

    def _kept(self) -> list[Task]:
        return list((self._unsealed.tasks | self._waiting).values())

    def _forget(self) -> None:
        try:
            self._log.forget(self._kept())
        except OSError as error:
            note("end_not_written", "error", reason=str(error))
