"""Outputs that have no end on the disk, as a loss of power or a full disk leaves them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from jobcluster.v1 import worker_pb2 as pb
from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.shapes import TaskKey, new_task
from jobcluster_worker.output.follow import IndexWatch
from jobcluster_worker.output.index import STDOUT
from jobcluster_worker.output.log import OutputLog
from jobcluster_worker.server.remains import Remains
from jobcluster_worker.server.streams import Streams
from jobcluster_worker.server.tasks import TaskTable

KEY: TaskKey = ("job", 0, 1)
KEPT = b"what was kept"


class Disk:
    def __init__(self, directory: Path, watch: IndexWatch) -> None:
        claims.prepare_directories(directory)
        self.table = TaskTable()
        remains = Remains(directory, directory, "now", self.table)
        self.streams = Streams(self.table, remains, watch)
        remains.directory(KEY).mkdir(parents=True)
        self.output = OutputLog(remains.directory(KEY), max_bytes=1 << 20)
        self.output.write(STDOUT, KEPT, 0.0)
        self.output.flush(0.0)

    async def follow(self, after_start: Callable[[], None] = lambda: None) -> tuple[bytes, pb.OutputEnd]:
        data = b""
        async with asyncio.timeout(20), aclosing(self.streams.open(KEY, pb.StreamJobRequest())) as messages:
            async for message in messages:
                if message.HasField("start"):
                    after_start()
                data += message.output
        return data, message.end

    def ended(self, kept: int, sha256: str) -> None:
        task = new_task(KEY, "lost")
        task["output"]["merged"] = {"bytes": kept, "sha256": sha256}
        self.table.update(task, None)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    watch = IndexWatch()
    made = Disk(tmp_path / "data", watch)
    yield made
    made.output.close()
    watch.close()


async def test_of_a_task_that_nobody_knows_any_more_what_there_is_is_given_and_not_called_complete(
    disk: Disk,
) -> None:
    data, end = await disk.follow()
    assert (data, end.offset, end.complete) == (KEPT, len(KEPT), False)


@pytest.mark.parametrize(("counted", "complete"), [(True, True), (False, False)])
async def test_of_an_ended_task_it_is_complete_if_that_much_was_counted(
    disk: Disk, counted: bool, complete: bool
) -> None:
    disk.ended(len(KEPT), hashlib.sha256(KEPT).hexdigest() if counted else "")
    data, end = await disk.follow()
    assert (data, end.complete, end.task.state) == (KEPT, complete, "lost")


async def test_a_follower_whose_task_ends_and_is_forgotten_while_it_begins_gets_all_of_it(disk: Disk) -> None:
    disk.table.update(new_task(KEY, "running"), "s1")

    def end() -> None:
        disk.output.write(STDOUT, b", and more", 1.0)
        task = new_task(KEY, "succeeded")
        disk.output.seal(dict(task))
        disk.table.update(task, "s1")
        disk.table.forget(KEY)

    data, told = await disk.follow(end)
    assert (data, told.complete, told.task.state) == (KEPT + b", and more", True, "succeeded")
