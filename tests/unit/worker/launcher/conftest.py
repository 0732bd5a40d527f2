"""A real launcher with real supervisors; the test itself is the server on their sockets."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobcluster_worker.launcher import wire
from jobcluster_worker.launcher.shapes import TERMINAL, TaskKey, key_of

LAUNCHER = Path(wire.__file__).parent
STUB = Path(__file__).parent / "stub_server.py"
SECONDS = 20.0
NOBODY = 65534

Task = dict[str, Any]


def wait_until(is_true: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Looks until it is true; a state that nobody announces (a process is gone, a file is there)."""
    last = time.monotonic() + seconds
    while not (found := is_true()):
        assert time.monotonic() < last, f"not within {seconds} s: {what}"
        select.select([], [], [], 0.005)
    return found


class Connection:
    """The server's end of one socket, synchronous, with a deadline on everything."""

    def __init__(self, path: str) -> None:
        self.channel = wire.connect(path)
        self.tasks: dict[TaskKey, Task] = {}
        self.history: dict[TaskKey, list[str]] = {}
        self.events: list[dict[str, Any]] = []
        self.replies: dict[Any, dict[str, Any]] = {}
        self._ids = itertools.count(1)

    def send(self, message: dict[str, Any]) -> None:
        self.channel.queue(message)
        while not self.channel.flush():
            select.select([], [self.channel], [], SECONDS)

    def take(self, seconds: float) -> bool:
        """Takes what comes within so many seconds; False when nothing came."""
        if not select.select([self.channel], [], [], seconds)[0]:
            return False
        messages = self.channel.receive()
        if messages is None:
            raise ConnectionResetError("closed by the peer")
        for message in messages:
            self._sort(message)
        return True

    def wait(self, is_true: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        last = time.monotonic() + seconds
        while not (found := is_true()):
            left = last - time.monotonic()
            assert left > 0, f"not within {seconds} s: {what}; tasks: {self.tasks}"
            self.take(left)
        return found

    def call(self, message: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
        number = next(self._ids)
        self.send({**message, "id": number})
        self.wait(lambda: number in self.replies, f"reply to {message}"[:300], seconds)
        return self.replies.pop(number)

    def close(self) -> None:
        self.channel.close()

    def _sort(self, message: dict[str, Any]) -> None:
        if message["event"] == "task":
            self._know(message["task"])
        elif message["event"] == "hello":
            for task in (*message["tasks"], *message["ends"]):
                self._know(task)
            self.events.append(message)
        elif message["event"] == "reply":
            self.replies[message["id"]] = message
        else:
            self.events.append(message)

    def _know(self, task: Task) -> None:
        key = key_of(task)
        self.tasks[key] = task
        self.history.setdefault(key, []).append(task["state"])

    def event(self, name: str, seconds: float = SECONDS) -> dict[str, Any]:
        """The next event of that name; it is taken off the list."""
        found = self.wait(
            lambda: next((event for event in self.events if event["event"] == name), None), name, seconds
        )
        self.events.remove(found)
        return dict(found)


class Supervisor(Connection):
    """Drives one supervisor."""

    numbers = itertools.count(1)

    def hello(self) -> dict[str, Any]:
        self.send({"op": "hello"})
        return self.event("hello")

    def start(self, *words: str, job_id: str = "", prepare_only: bool = False, **spec: Any) -> TaskKey:
        """Starts, and insists that it is accepted."""
        key, reply = self.try_start(*words, job_id=job_id, prepare_only=prepare_only, **spec)
        assert reply["ok"], reply
        return key

    def try_start(
        self, *words: str, job_id: str = "", prepare_only: bool = False, **spec: Any
    ) -> tuple[TaskKey, dict[str, Any]]:
        whole = spec_of(*words, job_id=job_id or f"job-{next(self.numbers)}", **spec)
        message: dict[str, Any] = {"op": "start", "spec": whole}
        if prepare_only:
            message["prepare_only"] = True
        return key_of(whole), self.call(message)

    def stop(self, key: TaskKey, **more: Any) -> dict[str, Any]:
        return self.call({"op": "stop", "task": as_id(key), **more})

    def ack(self, *keys: TaskKey) -> None:
        assert self.call({"op": "ack", "tasks": [as_id(key) for key in keys]})["ok"]

    def until(self, key: TaskKey, state: str, seconds: float = SECONDS) -> Task:
        self.wait(lambda: self.tasks.get(key, {}).get("state") == state, f"{key} {state}", seconds)
        return self.tasks[key]

    def end(self, key: TaskKey, seconds: float = SECONDS) -> Task:
        self.wait(
            lambda: self.tasks.get(key, {}).get("state") in TERMINAL, f"the end of {key}", seconds
        )
        return self.tasks[key]

    def run(self, *words: str, **spec: Any) -> Task:
        """Starts and gives the end."""
        return self.end(self.start(*words, **spec))


def as_id(key: TaskKey) -> dict[str, Any]:
    return {"job_id": key[0], "task_rank": key[1], "attempt": key[2]}


def spec_of(*words: str, job_id: str, **more: Any) -> dict[str, Any]:
    if "files" in more:
        more["files"] = {
            name: base64.b64encode(content.encode()).decode() for name, content in more["files"].items()
        }
    return {
        "job_id": job_id,
        "task_rank": 0,
        "attempt": 1,
        "task_count": 1,
        "worker_id": "worker-1",
        "command_words": list(words),
        **more,
    }


def output_of(task: Task) -> str:
    return Path(task["output"]["path"]).read_text()


class Worker:
    """One launcher; closed with everything below it."""

    def __init__(self, directory: Path, user: int | None = None, **settings: Any) -> None:
        self.directory = directory
        self.state, self.data = directory / "state", directory / "data"
        self.templates = directory / "templates"
        self.starts_file = directory / "starts"
        behaviour = settings.pop("behaviour", "clean")
        self.bootstrap = {
            "server_argv": [sys.executable, "-I", str(STUB)],
            "state_directory": str(self.state),
            "data_directory": str(self.data),
            "template_directory": str(self.templates),
            "log_file": "",
            "hide": [str(self.state), str(self.data)],
            "limits_require": False,
            "grace_seconds": 2.0,
            "handover_seconds": 0.5,
            **settings,
        }
        self.templates.mkdir(exist_ok=True)
        self.errors = directory / "stderr"
        self.process = self._begin(behaviour, user)
        self.connections: list[Connection] = []

    def _begin(self, behaviour: str, user: int | None) -> subprocess.Popen[bytes]:
        fd = os.memfd_create("bootstrap")
        os.write(fd, json.dumps(self.bootstrap).encode())
        environment = {"STARTS_FILE": str(self.starts_file), "BEHAVIOUR": behaviour, "SECRET": "of the worker"}
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), "--bootstrap-fd", str(fd)],
                pass_fds=[fd],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )
        os.close(fd)
        return process

    @property
    def server_starts(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in self.starts_file.read_text().splitlines()]
        return []

    @property
    def run_directory(self) -> Path:
        first = wait_until(lambda: self.server_starts, f"a server; stderr: {self.errors.read_text()}")[0]
        argv = first["argv"]
        return Path(argv[argv.index("--run-directory") + 1])

    @property
    def incarnation(self) -> str:
        argv = wait_until(lambda: self.server_starts, "a server")[0]["argv"]
        return str(argv[argv.index("--incarnation") + 1])

    def connect(self) -> Connection:
        """To the launcher."""
        connection = Connection(str(self.run_directory / "launcher.sock"))
        self.connections.append(connection)
        return connection

    def supervisor(self, name: str = "s1") -> Supervisor:
        supervisor = Supervisor(str(self.run_directory / f"{name}.sock"))
        self.connections.append(supervisor)
        supervisor.hello()
        return supervisor

    def pids(self) -> list[int]:
        """Everything below the launcher."""
        return below(self.process.pid)

    def supervisor_pids(self) -> list[int]:
        server = {start["pid"] for start in self.server_starts}
        return [pid for pid in children(self.process.pid) if pid not in server]

    def claims(self) -> list[str]:
        return sorted(path.name for path in (self.data / "claims").iterdir())

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        left = self.pids()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        wait_until(lambda: not any(map(alive, left)), f"the end of all of {left}")


def children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(p) for p in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def below(pid: int) -> list[int]:
    found = children(pid)
    for child in found:
        found += [other for other in children(child) if other not in found]
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short directory that any user may enter (pytest's own is the test user's alone)."""
    path = Path(tempfile.mkdtemp(prefix="jc-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def begin(scratch: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers; all of them are ended with the test, and none may leave a process."""
    workers: list[Worker] = []

    def start(**settings: Any) -> Worker:
        directory = scratch / f"w{len(workers)}"
        directory.mkdir()
        user = settings.get("user")
        if user is not None:
            os.chown(directory, user, user)
        worker = Worker(directory, **settings)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close()


USERS = [
    pytest.param(
        None,
        id="as root" if os.getuid() == 0 else "as this user",
    ),
    pytest.param(
        NOBODY,
        id="as a plain user",
        marks=pytest.mark.skipif(os.getuid() != 0, reason="this user is a plain one already"),
    ),
]


@pytest.fixture(params=USERS)
def worker(begin: Callable[..., Worker], request: pytest.FixtureRequest) -> Worker:
    """A worker, as root and as a plain user."""
    return begin(user=request.param)


@pytest.fixture
def supervisor(worker: Worker) -> Supervisor:
    return worker.supervisor()
