"""A real launcher with real supervisors; the test itself is the server on their sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jobcluster_worker
from jobcluster_worker.launcher.shapes import Spec, Task, TaskKey
from jobcluster_worker.server.changes import Changes
from jobcluster_worker.server.jobs import Jobs
from jobcluster_worker.server.remains import Remains
from jobcluster_worker.server.supervisors import Supervisors
from jobcluster_worker.server.tasks import TaskTable

T = TypeVar("T")
PACKAGE = Path(jobcluster_worker.__path__[0])
SECONDS = 30.0
# The launcher's server: it says how it was started, and leaves the sockets to the test.
STAND_IN = """
import json, os, signal, sys
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(sys.argv[2:], file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
signal.pause()
"""


def eventually(look: Callable[[], T | None]) -> T:
    """What ``look`` gives once it is something: for what nobody announces."""
    deadline = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return found


@dataclass
class Home:
    """A worker's directories and its launcher."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    run_directory: Path = Path()
    incarnation: str = ""

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def log(self) -> str:
        return (self.directory / "launcher.log").read_text()

    def start(self, **more: Any) -> None:
        told = self.directory / "told.json"
        told.unlink(missing_ok=True)
        bootstrap = {
            "server_argv": [sys.executable, "-I", "-S", "-c", STAND_IN, str(told)],
            "state_directory": str(self.state),
            "data_directory": str(self.data),
            "limits_require": False,
            "grace_seconds": 2.0,
            "handover_seconds": 0.5,
            **more,
        }
        reader, writer = os.pipe()
        os.write(writer, json.dumps(bootstrap).encode())
        os.close(writer)
        argv = [sys.executable, "-I", "-S", str(PACKAGE / "launcher"), "--bootstrap-fd", str(reader)]
        with (self.directory / "launcher.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stderr=log, stdout=log, pass_fds=[reader]
            )
        os.close(reader)
        given = eventually(lambda: json.loads(told.read_text()) if told.exists() else None)
        options = dict(zip(given[::2], given[1::2], strict=True))
        self.run_directory = Path(options["--run-directory"])
        self.incarnation = options["--incarnation"]

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(SECONDS)
            self.process = None

    def kill(self) -> None:
        """As when the machine loses the whole tree at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(SECONDS)
        self.process = None

    def supervisor_pid(self, name: str) -> int:
        """By the launcher's log, which names each once."""
        for line in self.log.splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                if entry["event"] == "supervisor_started" and entry["supervisor"] == name:
                    return int(entry["pid"])
        raise AssertionError(f"no supervisor {name} in {self.log}")


class Rooms:
    """The server's rooms without its door, as after a start of the server."""

    def __init__(self, home: Home) -> None:
        self.table = TaskTable()
        self.remains = Remains(home.data, home.state, home.incarnation, self.table, "/the/log")
        self.supervisors = Supervisors(
            home.run_directory,
            self.table,
            lambda name, keys: self.remains.lost(name, keys, self.supervisors.in_flight),
            32,
        )
        self.epoch = 0
        self.jobs = Jobs(
            self.table,
            self.supervisors,
            self.remains,
            epoch=lambda: self.epoch,
            max_tasks=100,
            limits_default={},
            limits_max={},
        )
        self.changes = Changes(self.table, home.incarnation, self.jobs.acknowledge)

    async def open(self) -> None:
        await self.supervisors.open()
        left = await self.remains.find(self.supervisors.names, self.supervisors.ungreeted)
        await self.remains.settle(left)
        self.changes.known.set()

    async def close(self) -> None:
        await self.supervisors.close()

    async def start(self, job_id: str, *words: str, **more: Any) -> TaskKey:
        spec = spec_of(job_id, *words, **more)
        await self.jobs.start(spec, 0)
        return job_id, spec["task_rank"], spec["attempt"]

    async def until(self, key: TaskKey, *states: str) -> Task:
        """The task once it is in one of ``states``."""
        changed = asyncio.Event()
        with self.table.watching(key, changed):
            async with asyncio.timeout(SECONDS):
                while (entry := self.table.get(key)) is None or entry.task["state"] not in states:
                    changed.clear()
                    await changed.wait()
        return entry.task

    async def end(self, key: TaskKey) -> Task:
        return await self.until(key, "succeeded", "failed", "stopped", "lost")

    async def settled(self, is_so: Callable[[], object]) -> None:
        """Waits for what no task's change announces."""
        async with asyncio.timeout(SECONDS):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def spec_of(job_id: str, *words: str, **more: Any) -> Spec:
    spec: Spec = {"job_id": job_id, "task_rank": 0, "attempt": 1, "command_words": list(words)}
    spec.update(more)  # type: ignore[typeddict-item]
    return spec
