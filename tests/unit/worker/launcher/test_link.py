from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobcluster_worker.launcher.link import Link
from jobcluster_worker.launcher.loop import Loop
from jobcluster_worker.launcher.shapes import new_task
from jobcluster_worker.launcher.wire import Channel, Message, connect, listen


class Room:
    """A link in a loop that the test turns, and what came over it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.came: list[Message] = []
        self.link = Link(self.loop, listen(path), self.came.append)
        self.loop.after_events = self.link.flush

    def connect(self) -> Channel:
        return connect(self.path)


@pytest.fixture
def room(scratch: Path) -> Iterator[Room]:
    room = Room(str(scratch / "socket"))
    yield room
    room.link.close()
    room.loop.close()


@pytest.fixture
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def forbid_descriptors() -> tuple[int, int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    return before


@pytest.mark.usefixtures("no_more_descriptors")
def test_a_connection_that_cannot_be_taken_is_taken_later_without_spinning(
    room: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    channel = room.connect()
    before = forbid_descriptors()
    room.loop.step()
    began = room.loop.clock()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    # The next thing that happens is the time to try it again.
    room.loop.step()
    assert room.loop.clock() - began > 0.5
    channel.queue({"op": "hello"})
    assert channel.flush()
    while not room.came:
        room.loop.step()
    assert capfd.readouterr().err.count("connection_dropped") == 1
    channel.close()


def test_what_waits_for_a_slow_reader_is_the_newest_state_of_each_task(room: Room) -> None:
    channel = room.connect()
    room.loop.step()
    room.link.greet({"event": "hello"})
    keys = [(f"job-{number}", 0, 1) for number in range(2000)]
    for _ in range(5):
        for key in keys:
            room.link.tell(key, new_task(key, "running"))
            room.link.flush()
    for key in keys:
        room.link.tell(key, new_task(key, "succeeded"))
    newest: dict[str, str] = {}
    count = 0
    while len(newest) < len(keys) or set(newest.values()) != {"succeeded"}:
        room.link.flush()
        for message in channel.receive() or ():
            if message["event"] == "task":
                count += 1
                newest[message["task"]["job_id"]] = message["task"]["state"]
    # One waits in the queue for each, and those that were in the socket already.
    assert count < 3 * len(keys)
    channel.close()
