from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from jobcluster.v1 import worker_pb2 as pb
from jobcluster_worker.launcher.shapes import State, TaskKey, new_task
from jobcluster_worker.server.changes import CHANGES_PER_MESSAGE, Changes
from jobcluster_worker.server.tasks import TaskTable


class Controller:
    """The other side of a stream: what it sends, as requests."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[pb.WatchJobsRequest | None] = asyncio.Queue()

    def acknowledge(self, stream_id: str, sequence: int) -> None:
        self._queue.put_nowait(pb.WatchJobsRequest(stream_id=stream_id, acknowledged_sequence=sequence))

    def leave(self) -> None:
        self._queue.put_nowait(None)

    async def requests(self) -> AsyncIterator[pb.WatchJobsRequest]:
        yield pb.WatchJobsRequest()
        while (request := await self._queue.get()) is not None:
            yield request


class Scene:
    def __init__(self) -> None:
        self.table = TaskTable()
        self.acknowledged: list[TaskKey] = []
        self.heard = asyncio.Event()
        self.changes = Changes(self.table, "incarnation", self._acknowledge)
        self.changes.known.set()

    def _acknowledge(self, keys: list[TaskKey]) -> None:
        self.acknowledged += keys
        for key in keys:
            self.table.forget(key)
        self.heard.set()

    def report(self, job_id: str, state: State, attempt: int = 1) -> None:
        self.table.update(new_task((job_id, 0, attempt), state), "s1")


@pytest.fixture
async def scene() -> Scene:
    return Scene()


def told(message: pb.WatchJobsResponse) -> list[tuple[int, str, str]]:
    return [(change.sequence, change.task.job_id, change.task.state) for change in message.changes]


async def test_a_stream_begins_with_all_that_lives_or_is_unacknowledged_and_says_when_that_is_complete(
    scene: Scene,
) -> None:
    scene.report("lives", "running")
    scene.report("ended", "succeeded")
    scene.report("minted", "running", attempt=0)
    stream = scene.changes.watch(Controller().requests())
    first = await anext(stream)
    assert told(first) == [(1, "lives", "running"), (2, "ended", "succeeded")]
    assert (first.incarnation, first.snapshot_complete) == ("incarnation", True)
    scene.report("lives", "stopping")
    scene.report("new", "starting")
    second = await anext(stream)
    assert told(second) == [(3, "lives", "stopping"), (4, "new", "starting")]
    assert (second.stream_id, second.snapshot_complete) == (first.stream_id, False)
    await stream.aclose()


async def test_a_worker_without_tasks_says_so_at_once(scene: Scene) -> None:
    stream = scene.changes.watch(Controller().requests())
    first = await asyncio.wait_for(anext(stream), 10)
    assert (told(first), first.snapshot_complete) == ([], True)
    await stream.aclose()


async def test_no_snapshot_is_sent_before_all_that_may_live_is_known(scene: Scene) -> None:
    scene.changes.known.clear()
    stream = scene.changes.watch(Controller().requests())
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    scene.report("found", "running")
    scene.changes.known.set()
    assert told(await asyncio.wait_for(waiting, 10)) == [(1, "found", "running")]
    await stream.aclose()


async def test_what_changed_many_times_while_nobody_read_is_told_once_as_it_is_now(scene: Scene) -> None:
    stream = scene.changes.watch(Controller().requests())
    await anext(stream)
    for state in ("starting", "running", "stopping", "stopped"):
        scene.report("busy", state)
    assert told(await anext(stream)) == [(1, "busy", "stopped")]
    await stream.aclose()


async def test_a_big_snapshot_comes_in_bounded_messages_and_the_last_one_completes_it(scene: Scene) -> None:
    for number in range(2 * CHANGES_PER_MESSAGE + 1):
        scene.report(f"job-{number}", "running")
    stream = scene.changes.watch(Controller().requests())
    messages = [await anext(stream) for _ in range(3)]
    assert [len(m.changes) for m in messages] == [CHANGES_PER_MESSAGE, CHANGES_PER_MESSAGE, 1]
    assert [m.snapshot_complete for m in messages] == [False, False, True]
    await stream.aclose()


async def test_only_ends_up_to_the_acknowledged_sequence_of_this_very_stream_are_acknowledged(
    scene: Scene,
) -> None:
    controller = Controller()
    for job_id, state in (("a", "succeeded"), ("b", "running"), ("c", "failed"), ("d", "lost")):
        scene.report(job_id, state)  # type: ignore[arg-type]
    stream = scene.changes.watch(controller.requests())
    first = await anext(stream)
    controller.acknowledge("another", 4)
    controller.acknowledge(first.stream_id, 3)
    await asyncio.wait_for(scene.heard.wait(), 10)
    assert scene.acknowledged == [("a", 0, 1), ("c", 0, 1)]
    await stream.aclose()
    again = scene.changes.watch(controller.requests())
    assert {change.task.job_id for change in (await anext(again)).changes} == {"b", "d"}
    await again.aclose()


async def test_a_second_stream_ends_the_first(scene: Scene) -> None:
    first = scene.changes.watch(Controller().requests())
    await anext(first)
    waiting = asyncio.ensure_future(anext(first, None))
    await asyncio.sleep(0)
    second = scene.changes.watch(Controller().requests())
    await anext(second)
    assert await asyncio.wait_for(waiting, 10) is None
    scene.report("new", "running")
    assert told(await anext(second)) == [(1, "new", "running")]
    await second.aclose()


async def test_a_controller_that_leaves_ends_its_stream_and_leaves_no_task(scene: Scene) -> None:
    before = len(asyncio.all_tasks())
    controller = Controller()
    stream = scene.changes.watch(controller.requests())
    await anext(stream)
    controller.leave()
    assert await asyncio.wait_for(anext(stream, None), 10) is None
    for rounds in range(20):
        stream = scene.changes.watch(Controller().requests())
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream, None))
        for _ in range(rounds % 4):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await stream.aclose()
    assert len(asyncio.all_tasks()) == before
