"""Frames between server, launcher and supervisors, over real sockets."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobcluster_worker.launcher.wire import (
    INLINE_BYTES,
    Channel,
    Decoder,
    Message,
    ProtocolError,
    connect,
    encode,
    listen,
)

BIG: dict[str, object] = {"op": "start", "text": "x" * (INLINE_BYTES + 1)}


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(sock) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def receive(channel: Channel, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        assert select.select([channel], [], [], 5)[0], f"{len(messages)} of {count} came"
        more = channel.receive()
        assert more is not None
        messages += more
    return messages


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_frame_is_a_little_endian_length_and_json_that_says_its_version() -> None:
    frame, fds = encode({"op": "hello"})
    assert frame == framed(b'{"v":1,"op":"hello"}')
    assert fds == []


@settings(max_examples=50)
@given(
    messages=st.lists(
        st.dictionaries(st.sampled_from(["op", "a", "ü"]), st.text(max_size=20), max_size=3), max_size=5
    ),
    cut=st.integers(min_value=1, max_value=40),
)
def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(
    messages: list[dict[str, str]], cut: int
) -> None:
    stream = b"".join(encode(message)[0] for message in messages)
    decoder = Decoder()
    out = [m for at in range(0, len(stream), cut) for m in decoder.feed(stream[at : at + cut])]
    assert out == [{"v": 1, **message} for message in messages]


def test_big_and_small_messages_keep_their_order_and_leave_no_descriptor(
    pair: tuple[Channel, Channel],
) -> None:
    one, other = pair
    before = open_descriptors()
    sent: list[dict[str, object]] = [{"n": 0}, {**BIG, "n": 1}, {**BIG, "n": 2}, {"n": 3}, {**BIG, "n": 4}]
    for message in sent:
        one.queue(message)
    assert one.flush()
    assert receive(other, len(sent)) == [{"v": 1, **message} for message in sent]
    assert open_descriptors() == before


def test_a_big_message_is_no_burden_to_the_socket(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.queue({"text": "x" * (8 << 20)})
    assert one.backlog_bytes < 100
    assert one.flush()
    assert len(receive(other, 1)[0]["text"]) == 8 << 20


def test_a_peer_that_does_not_read_makes_a_backlog_and_no_block(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    count = 0
    while one.flush():
        one.queue({"text": "x" * 10_000})
        count += 1
    assert one.backlog_bytes > 0
    messages = 0
    while messages < count:
        messages += len(receive(other, 1))
        one.flush()
    assert one.backlog_bytes == 0


def test_the_end_of_the_peer_is_told_after_its_last_message(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.queue({"op": "last"})
    one.flush()
    one.close()
    assert other.receive() == [{"v": 1, "op": "last"}]
    assert other.receive() is None
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        other.queue({"op": "to nobody"})
        other.flush()


@pytest.mark.parametrize(
    "stream",
    [
        framed(b"no json"),
        framed(b"[1]"),
        framed(b'{"v":2,"op":"hello"}'),
        framed(b'{"op":"hello"}'),
        framed(b"\xff\xfe"),
        struct.pack("<I", INLINE_BYTES + 1),
        framed(json.dumps({"v": 1, "memfd": 10}).encode()),
    ],
)
def test_what_is_no_message_is_refused(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(stream)


@pytest.mark.parametrize("claimed", [-1, 0, 1 << 40, "10", 100])
def test_a_memfd_that_is_not_what_its_frame_says_is_refused_and_closed(claimed: object) -> None:
    before = open_descriptors()
    fd = os.memfd_create("test")
    os.write(fd, b'{"v":1}')
    with pytest.raises(ProtocolError):
        Decoder().feed(framed(json.dumps({"v": 1, "memfd": claimed}).encode()), [fd])
    assert open_descriptors() == before


def test_descriptors_that_nobody_asked_for_are_closed_with_the_connection() -> None:
    before = open_descriptors()
    decoder = Decoder()
    decoder.feed(b"", [os.memfd_create("a"), os.memfd_create("b")])
    decoder.close()
    assert open_descriptors() == before


def test_a_channel_closed_with_a_big_message_unsent_leaves_no_descriptor() -> None:
    before = open_descriptors()
    one, other = (Channel(sock) for sock in socket.socketpair())
    one.queue(BIG)
    one.close()
    other.close()
    assert open_descriptors() == before


def test_a_listening_socket_takes_the_place_of_a_stale_one_and_is_its_owners_only(scratch: Path) -> None:
    path = str(scratch / "s")
    listen(path).close()
    listener = listen(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    channel = connect(path)
    channel.close()
    listener.close()
    with pytest.raises(OSError, match="refused"):
        connect(path)
