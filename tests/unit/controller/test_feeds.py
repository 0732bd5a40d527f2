"""One stream of a worker for many readers, who each get every byte, whatever the others do."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, Callable

import pytest
from jobcluster_common.errors import NotFound, Unavailable
from jobcluster_controller import feeds as feeds_module
from jobcluster_controller.domain.query import OutputChunk, OutputCut, OutputEnd, OutputItem, OutputStart
from jobcluster_controller.feeds import Feeds

from tests.unit.controller.makers import eventually

KEY = ("w1", "job", 0, 1, "merged")
PIECE = 50_000


class Source:
    """An output that may grow; it counts the streams opened on it and those that are open."""

    def __init__(self, data: bytes = b"", ended: bool = True) -> None:
        self.data, self.ended = bytearray(data), ended
        self.opened = self.open = 0
        self.error: Exception | None = None
        self._grown = asyncio.Event()

    def write(self, data: bytes, ended: bool = False) -> None:
        self.data += data
        self.ended = ended
        self._grown.set()

    def break_off(self, error: Exception) -> None:
        self.error = error
        self._grown.set()

    async def at(self, offset: int) -> AsyncGenerator[OutputItem]:
        self.opened += 1
        self.open += 1
        try:
            if self.error is not None:
                raise self.error
            yield OutputStart(offset, len(self.data), self.ended)
            while True:
                while offset < len(self.data):
                    piece = bytes(self.data[offset : offset + PIECE])
                    yield OutputChunk(piece, offset)
                    offset += len(piece)
                if self.ended:
                    break
                if self.error is not None:
                    raise self.error
                self._grown.clear()
                await self._grown.wait()
            yield OutputEnd(offset, True)
        finally:
            self.open -= 1


class Follower:
    """What one reader has got so far."""

    def __init__(self, feeds: Feeds, source: Source, offset: int = 0) -> None:
        self.items = feeds.follow(KEY, offset, source.at)
        self.begin = self.offset = offset
        self.data = bytearray()

    async def take(self) -> bool:
        """The next item; False at the end."""
        item = await anext(self.items)
        if isinstance(item, OutputChunk):
            assert item.offset == self.offset, "a gap or a repeat"
            self.data += item.data
            self.offset += len(item.data)
        elif isinstance(item, OutputEnd):
            assert item.offset == self.offset
            await self.items.aclose()
            return False
        return True

    async def read(self, pause: Callable[[], float] = lambda: 0.0) -> bytes:
        while await self.take():  # noqa: ASYNC110
            await asyncio.sleep(pause())  # the reader's own pace
        return bytes(self.data)


def nothing_left(feeds: Feeds, source: Source) -> bool:
    left = (feeds._feeds, feeds._readers, feeds._count)
    tasks = [t for t in asyncio.all_tasks() if t.get_name() == "feed"]
    return left == ({}, 0, 0) and source.open == 0 and not tasks


async def test_readers_at_one_place_share_a_stream_and_nothing_is_left_of_it() -> None:
    feeds, source = Feeds(), Source(ended=False)
    followers = [Follower(feeds, source) for _ in range(10)]
    readings = [asyncio.create_task(f.read()) for f in followers]
    data = os.urandom(10 * PIECE)
    for begin in range(0, len(data), PIECE):
        source.write(data[begin : begin + PIECE])
        await eventually(lambda: {f.offset for f in followers} == {len(source.data)})
        assert source.opened == source.open == 1
    source.write(b"the end", ended=True)
    assert {bytes(r) for r in await asyncio.gather(*readings)} == {data + b"the end"}
    assert source.opened == 1
    assert nothing_left(feeds, source)


async def test_who_falls_behind_goes_on_at_his_own_place_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeds_module, "RETAINED_BYTES", 2 * PIECE)
    data = os.urandom(40 * PIECE)
    feeds, source = Feeds(), Source(data)
    slow, fast = Follower(feeds, source), Follower(feeds, source)
    while slow.offset < PIECE:
        await slow.take()
    assert await fast.read() == data  # while the slow one asks for nothing
    assert await slow.read() == data
    assert source.opened == 2
    assert nothing_left(feeds, source)


async def test_readers_that_pause_at_random_each_get_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_module, "RETAINED_BYTES", 3 * PIECE)
    monkeypatch.setattr(feeds_module, "IDLE_SECONDS", 0.01)
    data, rng = os.urandom(30 * PIECE), random.Random(5)
    feeds, source = Feeds(), Source(data)
    begins = [0, 0, 0, *(rng.randrange(len(data)) for _ in range(17))]
    readings = [
        Follower(feeds, source, begin).read(lambda: rng.choice([0, 0, 0, 0.001, 0.03])) for begin in begins
    ]
    for begin, got in zip(begins, await asyncio.gather(*readings), strict=True):
        assert got == data[begin:]
    assert nothing_left(feeds, source)


async def test_readers_that_all_stall_hold_no_stream_and_later_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_module, "IDLE_SECONDS", 0.02)
    data = os.urandom(30 * PIECE)
    feeds, source = Feeds(), Source(data)
    followers = [Follower(feeds, source) for _ in range(3)]
    for follower in followers:
        while follower.offset == 0:
            await follower.take()
    await eventually(lambda: source.open == 0)
    assert await asyncio.gather(*(f.read() for f in followers)) == [data] * 3
    assert nothing_left(feeds, source)


async def test_a_silent_output_is_not_taken_for_a_stalled_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_module, "IDLE_SECONDS", 0.4)
    feeds, source = Feeds(), Source(b"first", ended=False)
    follower = Follower(feeds, source)
    reading = asyncio.create_task(follower.read())
    for _ in range(2):
        at = follower.offset
        await asyncio.sleep(0.6)  # the silence itself
        source.write(b"more")
        await eventually(lambda: follower.offset >= at + 4)  # noqa: B023
    source.write(b"", ended=True)
    assert await reading == b"firstmoremore"
    assert source.opened == 1


async def test_a_break_is_a_cut_for_each_reader_at_his_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_module, "PIECES_BYTES", 1)
    monkeypatch.setattr(feeds_module, "IDLE_SECONDS", 0.05)
    feeds, source = Feeds(), Source(bytes(PIECE), ended=False)
    ahead, behind = Follower(feeds, source), Follower(feeds, source)
    while ahead.offset < PIECE:
        await ahead.take()
    while behind.offset == 0:
        await behind.take()
    assert behind.offset < PIECE
    waiting = asyncio.create_task(ahead.take())
    await asyncio.sleep(0.1)  # longer than it takes to be taken for stalled
    source.break_off(OutputCut(PIECE, "the worker died"))
    for follower, take in ((ahead, waiting), (behind, asyncio.create_task(behind.read()))):
        with pytest.raises(OutputCut, match="the worker died") as cut:
            await take
        assert cut.value.offset == follower.offset
    assert nothing_left(feeds, source)


async def test_what_cannot_be_opened_is_said_as_it_is_at_first_and_is_a_cut_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeds_module, "IDLE_SECONDS", 0.02)
    feeds, source = Feeds(), Source(bytes(10 * PIECE))
    follower = Follower(feeds, source)
    while follower.offset == 0:
        await follower.take()
    await eventually(lambda: source.open == 0)
    source.error = Unavailable("the worker is away")
    with pytest.raises(OutputCut, match="the worker is away") as cut:
        await follower.read()
    assert cut.value.offset == follower.offset > 0
    source.error = NotFound("no such output")
    others = [asyncio.create_task(Follower(feeds, source).read()) for _ in range(2)]
    for got in await asyncio.gather(*others, return_exceptions=True):
        assert isinstance(got, NotFound)
    assert nothing_left(feeds, source)
