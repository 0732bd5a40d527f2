"""The test's end of a supervisor's or the launcher's socket: the test is the server."""

from __future__ import annotations

import base64
import itertools
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobcluster_worker.launcher import wire
from jobcluster_worker.launcher.shapes import TERMINAL, TaskKey, key_of

from tests.unit.worker.launcher.process_tree import SECONDS

Task = dict[str, Any]


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
            # Not longer: what is waited for may be in a file.
            self.take(min(left, 0.02))
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
        self.wait(lambda: self.tasks.get(key, {}).get("state") in TERMINAL, f"the end of {key}", seconds)
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


def text_of(task: Task) -> str:
    return Path(task["output"]["path"]).read_text()


def facts(task: Task) -> tuple[str, str, int | None, str]:
    return task["state"], task["reason"], task["exit_code"], task["signal"]
