from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from jobcluster_worker.launcher import wire
from jobcluster_worker.server.peer import BACKLOG_BYTES, Peer, PeerLost


class Line:
    """Both ends of a connection: the peer under test, and the other side, synchronous."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.messages: list[wire.Message] = []
        self.came = asyncio.Event()
        self.closed = 0
        self.peer = Peer(ours, self._on_message, self._on_closed)
        self.other = wire.Channel(theirs)

    def _on_message(self, message: wire.Message) -> None:
        self.messages.append(message)
        self.came.set()

    def _on_closed(self) -> None:
        self.closed += 1
        self.came.set()

    def say(self, message: dict[str, object]) -> None:
        self.other.queue(message)
        assert self.other.flush()

    async def hears(self) -> wire.Message:
        """The next message that the peer sent."""
        async with asyncio.timeout(10):
            while not (messages := self.other.receive()):  # noqa: ASYNC110
                await asyncio.sleep(0)
        return messages[0]


@pytest.fixture
async def line() -> Line:
    return Line()


async def test_replies_find_their_requests_in_any_order_and_the_rest_is_handed_on(line: Line) -> None:
    first = asyncio.ensure_future(line.peer.request({"op": "a"}, 10))
    one = await line.hears()
    second = asyncio.ensure_future(line.peer.request({"op": "b"}, 10))
    two = await line.hears()
    line.say({"event": "reply", "id": two["id"], "ok": True})
    line.say({"event": "task", "task": {}})
    line.say({"event": "reply", "id": 999})
    line.say({"event": "reply", "id": one["id"], "ok": False})
    assert ((await first)["ok"], (await second)["ok"]) == (False, True)
    assert [message["event"] for message in line.messages] == ["task"]
    line.peer.close()
    line.other.close()


async def test_a_request_ends_with_the_connection_or_with_its_time(line: Line) -> None:
    with pytest.raises(PeerLost, match=r"no answer within 0\.01 s"):
        await line.peer.request({"op": "a"}, 0.01)
    waiting = asyncio.ensure_future(line.peer.request({"op": "b"}, 10))
    await line.hears()
    line.other.close()
    with pytest.raises(PeerLost, match="closed"):
        await waiting
    assert (line.closed, line.peer.closed) == (1, True)
    with pytest.raises(PeerLost):
        line.peer.send({"op": "c"})
    line.peer.close()
    assert line.closed == 1


async def test_a_message_that_is_none_closes_the_connection(line: Line) -> None:
    line.other.sock.send(b"\xff\xff\xff\xff")
    await asyncio.wait_for(line.came.wait(), 10)
    assert line.peer.closed
    line.other.close()


async def test_a_peer_that_does_not_read_gets_no_more_than_a_bounded_backlog(line: Line) -> None:
    text = "x" * 60_000
    with pytest.raises(PeerLost, match="does not read"):
        for _ in range(2 * BACKLOG_BYTES // len(text)):
            line.peer.send({"text": text})
    line.peer.close()
    line.other.close()


async def test_what_waited_for_a_slow_reader_arrives_whole_and_in_order(line: Line) -> None:
    for number in range(200):
        line.peer.send({"number": number, "text": "x" * 20_000})
    line.peer.send({"number": 200, "text": "y" * 1_000_000})  # this one by a memfd
    numbers: list[int] = []
    async with asyncio.timeout(20):
        while len(numbers) < 201:
            numbers += [message["number"] for message in line.other.receive() or ()]
            await asyncio.sleep(0)
    assert numbers == list(range(201))
    line.peer.close()
    line.other.close()


async def test_where_nobody_listens_there_is_no_connection_and_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Peer.connect(tmp_path / "none.sock", lambda _message: None, lambda: None)
    listener = wire.listen(str(tmp_path / "full.sock"), backlog=0)
    peers = []
    with pytest.raises(BlockingIOError):
        while True:
            peers.append(Peer.connect(tmp_path / "full.sock", lambda _message: None, lambda: None))
    for peer in peers:
        peer.close()
    listener.close()
    assert len(os.listdir("/proc/self/fd")) == before
