"""Outputs whose end could not be written when it came (a full disk): tried again till it can. Stdlib only."""

from __future__ import annotations

from collections.abc import Callable

from jobcluster_worker.launcher.loop import Loop, Timer
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import Task, TaskKey, id_of
from jobcluster_worker.output.log import OutputLog

_AGAIN_SECONDS = 1.0


class Unsealed:
    """Holds them open: only the log itself still knows what of the data belongs to which stream.

    Without its end an output looks to nobody as if it were complete.
    """

    def __init__(self, loop: Loop, on_sealed: Callable[[TaskKey], None]) -> None:
        self._loop = loop
        self._on_sealed = on_sealed
        self._logs: dict[TaskKey, tuple[Task, OutputLog]] = {}
        self._timer: Timer | None = None

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._logs

    @property
    def tasks(self) -> dict[TaskKey, Task]:
        return {key: task for key, (task, _) in self._logs.items()}

    def seal(self, key: TaskKey, task: Task, log: OutputLog) -> None:
        """Now, or as soon as it can be."""
        self._logs[key] = (task, log)
        self._try(key)
        self._plan()

    def try_all(self) -> None:
        for key in list(self._logs):
            self._try(key, told=True)

    def _try(self, key: TaskKey, told: bool = False) -> None:
        task, log = self._logs[key]
        try:
            log.seal(task)
        except OSError as error:
            if not told:
                note("output_not_sealed", "error", reason=str(error), **id_of(key))
            return
        log.close()
        del self._logs[key]
        self._on_sealed(key)

    def _plan(self) -> None:
        if self._logs and self._timer is None:
            self._timer = self._loop.after(_AGAIN_SECONDS, self._again)

    def _again(self) -> None:
        self._timer = None
        self.try_all()
        self._plan()
