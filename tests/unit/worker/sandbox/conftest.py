import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jobcluster_worker
import pytest

SOURCES = Path(jobcluster_worker.__file__).parent.parent
PLAIN_UID = 65534
TASK_UID = 100_007


class Room:
    """A supervisor's stand-in in a process of its own (room.py), with a work directory for its tasks."""

    def __init__(self, process: "subprocess.Popen[str]", place: Path, task_uid: int | None) -> None:
        self._process = process
        self.place = place
        self.task_uid = task_uid
        self.work = place / "data" / "work"
        self.enforced: dict[str, str] = json.loads(self._line())

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"verb": verb, "work": str(self.work), "uid": self.task_uid, **request}) + "\n"
        )
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def run(self, *argv: str, **request: Any) -> dict[str, Any]:
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", **request.pop("env", {})}
        return self.ask("run", argv=list(argv), env=env, **request)

    def shell(self, script: str, **request: Any) -> str:
        """The output of a shell in a task."""
        answer = self.run("/bin/sh", "-c", script, **request)
        assert "output" in answer, answer
        return str(answer["output"])

    def counts_as(self, before: dict[str, Any], deadline_seconds: float = 10) -> bool:
        """Whether the room comes to hold what it held before; the kernel takes ended threads apart a little later."""
        deadline = time.monotonic() + deadline_seconds
        while self.ask("count") != before:
            if time.monotonic() > deadline:
                return False
        return True

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the room has died"
        return line


@contextmanager
def open_room(plain: bool) -> Iterator[Room]:
    task_uid = None if plain or os.geteuid() != 0 else TASK_UID
    owner = TASK_UID if task_uid else PLAIN_UID
    with tempfile.TemporaryDirectory(prefix="room-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "data" / "work").mkdir(parents=True)
        sources = place / "sources" if plain else SOURCES
        if plain:
            # A copy that the plain user can read, wherever the checkout lies.
            shutil.copytree(SOURCES / "jobcluster_worker", sources / "jobcluster_worker")
        if os.geteuid() == 0:
            os.chown(place / "data" / "work", owner, owner)
        argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("room.py")), str(sources)]
        if plain and os.geteuid() == 0:
            argv.append(str(PLAIN_UID))
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Room(process, place, task_uid)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0


@pytest.fixture(scope="module")
def root_room() -> Iterator[Room]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with open_room(plain=False) as room:
        yield room


@pytest.fixture(scope="module")
def plain_room() -> Iterator[Room]:
    with open_room(plain=True) as room:
        yield room


@pytest.fixture
def new_room() -> Callable[[], Any]:
    return lambda: open_room(plain=os.geteuid() != 0)
