"""The frames between server, launcher and supervisors: u32 little-endian length, then a JSON object with "v": 1.

A message over 64 KiB travels in a memfd: the frame says its length and the descriptor rides along (SCM_RIGHTS), so
that a big start (files, stdin) never sits in a socket's buffer. Stdlib only; both sides use this one module.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

VERSION: Final = 1
INLINE_BYTES: Final = 64 * 1024
MESSAGE_BYTES: Final = 64 * 1024 * 1024
_RECEIVE_BYTES: Final = 256 * 1024
_RECEIVE_FDS: Final = 64
_LENGTH = struct.Struct("<I")

Message = dict[str, Any]


class ProtocolError(Exception):
    """The peer sent something that is no message; the connection is of no more use."""


def encode(message: Mapping[str, Any]) -> tuple[bytes, list[int]]:
    """One message as (frame, descriptors to send with the frame's first byte); the caller closes the descriptors.

    :raises OSError: if a memfd could not be made or filled.
    """
    body = json.dumps({"v": VERSION, **message}, separators=(",", ":")).encode()
    if len(body) <= INLINE_BYTES:
        return _LENGTH.pack(len(body)) + body, []
    fd = os.memfd_create("jobcluster-message")
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    small = json.dumps({"v": VERSION, "memfd": len(body)}, separators=(",", ":")).encode()
    return _LENGTH.pack(len(small)) + small, [fd]


class Decoder:
    """Bytes and descriptors in, whole messages out. Owns the descriptors it was fed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes | memoryview, fds: Iterable[int] = ()) -> list[Message]:
        """The messages completed by these bytes.

        :raises ProtocolError: on an unknown version, an oversized frame, no JSON object, a missing descriptor.
        """
        self._fds.extend(fds)
        self._buffer += data
        messages, at = [], 0
        while len(self._buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            if length > INLINE_BYTES:
                raise ProtocolError(f"a frame of {length} bytes; {INLINE_BYTES} at most")
            end = at + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(self._message(bytes(self._buffer[at + _LENGTH.size : end])))
            at = end
        del self._buffer[:at]
        return messages

    def close(self) -> None:
        """Closes descriptors that no message claimed."""
        while self._fds:
            os.close(self._fds.popleft())

    def _message(self, body: bytes) -> Message:
        message = _parse(body)
        length = message.get("memfd")
        if length is None:
            return message
        if not self._fds:
            raise ProtocolError("a memfd frame without its descriptor")
        fd = self._fds.popleft()
        try:
            if type(length) is not int or not 0 < length <= MESSAGE_BYTES:
                raise ProtocolError(f"a message of {length!r} bytes; {MESSAGE_BYTES} at most")
            return _parse(_read(fd, length))
        finally:
            os.close(fd)


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(message, dict) or message.get("v") != VERSION:
        raise ProtocolError(f"not a message of version {VERSION}: {body[:80]!r}")
    return message


def _read(fd: int, length: int) -> bytes:
    parts, at = [], 0
    while at < length:
        part = os.pread(fd, length - at, at)
        if not part:
            raise ProtocolError("a memfd shorter than its message")
        parts.append(part)
        at += len(part)
    return b"".join(parts)


class Channel:
    """One connected socket, non-blocking: messages in, a bounded queue of frames out. The owner polls its fileno.

    ``backlog_bytes`` tells how much waits to be sent: the owner stops producing (and reading commands) above its
    own bound, so that a peer that does not read costs no memory.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.backlog_bytes = 0
        self._decoder = Decoder()
        self._queue: deque[tuple[memoryview, list[int]]] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def queue(self, message: Mapping[str, Any]) -> None:
        """Puts a message at the end of the queue; flush sends it."""
        frame, fds = encode(message)
        self._queue.append((memoryview(frame), fds))
        self.backlog_bytes += len(frame)

    def flush(self) -> bool:
        """Sends what the socket takes; True when nothing is left.

        :raises OSError: the peer is gone.
        """
        while self._queue:
            batch = self._batch()
            try:
                sent = self._send(batch)
            except (BlockingIOError, InterruptedError):
                return False
            self._consume(sent)
        return True

    def receive(self) -> list[Message] | None:
        """The messages that have come; None when the peer has closed.

        :raises OSError: the peer is gone.
        :raises ProtocolError: what came is no message.
        """
        try:
            data, fds = _receive(self.sock)
        except (BlockingIOError, InterruptedError):
            return []
        if not data:
            return None
        return self._decoder.feed(data, fds)

    def close(self) -> None:
        """Closes the socket and every descriptor still held."""
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self.backlog_bytes = 0
        self._decoder.close()
        self.sock.close()

    def _batch(self) -> list[memoryview]:
        """The frames that one sendmsg may carry: a frame with a descriptor only as the first."""
        batch: list[memoryview] = []
        for view, fds in self._queue:
            if batch and (fds or len(batch) == 64):
                break
            batch.append(view)
        return batch

    def _send(self, batch: list[memoryview]) -> int:
        fds = self._queue[0][1]
        if not fds:
            return self.sock.sendmsg(batch, (), socket.MSG_NOSIGNAL)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sent = self.sock.sendmsg(batch, rights, socket.MSG_NOSIGNAL)
        # The descriptors went with the first byte, however few bytes were taken.
        while fds:
            os.close(fds.pop())
        return sent

    def _consume(self, sent: int) -> None:
        self.backlog_bytes -= sent
        while sent:
            view, fds = self._queue[0]
            if sent < len(view):
                self._queue[0] = (view[sent:], fds)
                return
            sent -= len(view)
            self._queue.popleft()


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(_RECEIVE_FDS * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(_RECEIVE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return data, list(fds)


def connect(path: str, timeout_seconds: float = 5.0) -> Channel:
    """A channel to a listening socket.

    :raises OSError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_seconds)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Channel(sock)


def listen(path: str, backlog: int = 8) -> socket.socket:
    """A non-blocking socket that listens at ``path``, in place of any stale one there; only our own user may connect.

    :raises OSError: it cannot be bound.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
