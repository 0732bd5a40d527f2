from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from jobcluster_worker.output.follow import IndexWatch, follow, snapshot
from jobcluster_worker.output.index import STDERR, STDOUT
from jobcluster_worker.output.log import OutputLog
from jobcluster_worker.output.reader import WINDOW_BYTES, OutputReader


@pytest.fixture
async def watch() -> AsyncIterator[IndexWatch]:
    watch = IndexWatch()
    yield watch
    watch.close()


async def followed(watch: IndexWatch, directory: Path, stream: str = "merged", offset: int = 0) -> bytes:
    whole = bytearray()
    with OutputReader(directory, stream) as reader, watch.changes(reader.index_fd) as changed:
        async with aclosing(follow(reader, changed, offset)) as chunks:
            async for at, data in chunks:
                assert at == offset + len(whole)
                assert len(data) <= WINDOW_BYTES
                whole += data
    return bytes(whole)


async def test_followers_that_join_at_any_time_get_every_byte_of_a_growing_output(
    tmp_path: Path, watch: IndexWatch
) -> None:
    source = random.Random(7)
    runs = [
        (source.choice((STDOUT, STDERR)), source.randbytes(source.randrange(1, 40_000))) for _ in range(300)
    ]
    log = OutputLog(tmp_path, max_bytes=1 << 30)

    def write() -> None:
        for kind, data in runs:
            log.write(kind, data, time.monotonic())
        log.seal({"state": "succeeded"})
        log.close()

    tasks = [asyncio.create_task(followed(watch, tmp_path, s)) for s in ("merged", "stdout", "stderr")]
    await asyncio.sleep(0)
    writer = threading.Thread(target=write)
    writer.start()
    for stream in ("merged", "stdout", "stderr"):
        tasks.append(asyncio.create_task(followed(watch, tmp_path, stream)))
        await asyncio.sleep(0)
    got = await asyncio.wait_for(asyncio.gather(*tasks), 30)
    writer.join()
    got += [await followed(watch, tmp_path, stream) for stream in ("merged", "stdout", "stderr")]
    hashes = [hashlib.sha256(data).hexdigest() for data in got]
    parts = [b"".join(d for k, d in runs if kind in (k, None)) for kind in (None, STDOUT, STDERR)]
    assert hashes == [hashlib.sha256(part).hexdigest() for part in parts] * 3
    assert watch.watches == 0


async def test_a_follower_of_a_silent_output_sleeps_and_wakes_for_the_first_byte(
    tmp_path: Path, watch: IndexWatch
) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 30)
    followers = [asyncio.create_task(followed(watch, tmp_path)) for _ in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert watch.watches == 1
    used = time.thread_time()
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    await asyncio.sleep(0.3)
    # One for the sleep itself; 50 polling followers would make hundreds.
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - switches <= 5
    assert time.thread_time() - used < 0.05
    log.write(STDOUT, b"at last", 1.0)
    log.seal({})
    log.close()
    assert await asyncio.wait_for(asyncio.gather(*followers), 10) == [b"at last"] * 50


async def test_a_follower_that_vanishes_at_any_point_leaves_no_watch_and_no_descriptor(
    tmp_path: Path, watch: IndexWatch
) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 30)
    log.write(STDOUT, bytes(5 * WINDOW_BYTES), 1.0)
    before, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    for rounds in range(100):
        follower = asyncio.create_task(followed(watch, tmp_path))
        for _ in range(rounds % 10):
            await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
    assert watch.watches == 0
    assert (len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())) == (before, tasks)
    log.close()


async def test_a_new_follower_after_the_last_one_left_is_woken_too(tmp_path: Path, watch: IndexWatch) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 30)
    for _ in range(3):
        with OutputReader(tmp_path) as reader, watch.changes(reader.index_fd) as changed:
            log.write(STDOUT, b"x", time.monotonic())
            log.flush(time.monotonic())
            await asyncio.wait_for(changed.wait(), 10)
    log.close()


async def test_a_limit_ends_a_follow_at_exactly_that_many_bytes(tmp_path: Path, watch: IndexWatch) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 30)
    log.write(STDOUT, bytes(WINDOW_BYTES + 100), 1.0)
    with OutputReader(tmp_path) as reader, watch.changes(reader.index_fd) as changed:
        sizes = [len(data) async for _, data in follow(reader, changed, 50, WINDOW_BYTES + 10)]
    assert sum(sizes) == WINDOW_BYTES + 10
    log.close()


async def test_a_snapshot_ends_at_the_size_it_began_with(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 30)
    log.write(STDOUT, bytes(WINDOW_BYTES + 100), 1.0)
    with OutputReader(tmp_path) as reader:
        size = reader.size()
        log.write(STDOUT, b"more", 2.0)
        assert sum([len(data) async for _, data in snapshot(reader, 10, size)]) == WINDOW_BYTES + 90
        with pytest.raises(OSError, match="shorter"):
            _ = [chunk async for chunk in snapshot(reader, 0, size + 1000)]
    log.close()


async def test_an_abandoned_output_ends_where_it_is_when_followers_are_told(
    tmp_path: Path, watch: IndexWatch
) -> None:
    log, abandoned = OutputLog(tmp_path, max_bytes=1 << 30), False
    log.write(STDOUT, b"all there is", 1.0)
    log.close()
    with OutputReader(tmp_path) as reader, watch.changes(reader.index_fd) as changed:
        chunks = follow(reader, changed, 0, abandoned=lambda: abandoned)
        assert await anext(chunks) == (0, b"all there is")
        rest = asyncio.ensure_future(anext(chunks, None))
        await asyncio.sleep(0)
        abandoned = True
        changed.set()
        assert await asyncio.wait_for(rest, 10) is None
